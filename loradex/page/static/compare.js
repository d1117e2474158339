// Two to six adapters side by side: what differs first, how alike their weights are, norms on one scale.

import * as data from "./data.js";
import { command, cosine, fill, h, link, name, number, score, short } from "./dom.js";
import { selection } from "./app.js";
import { details } from "./adapter.js";
import { inkOn, normMap, normTable, rgb, shade, sketchCosine } from "./charts.js";

const FACTS = [["base", "base model"], ["rank", "rank"], ["alpha", "alpha"], ["scaling", "scaling"], ["use_rslora", "rank-stabilised"], ["targets", "targets"], ["parameters", "parameters"], ["dtypes", "data types"], ["norm", "norm"], ["health", "health"],
  ["partial", "more than s·B·A"], ["license", "license"], ["uses", "use"], ["verdict", "verdict"], ["training", "training"], ["runs_in", "runs in"], ["downloads", "downloads"], ["created", "created"], ["modified", "modified"], ["card_quality", "card"]];

// What the program reads as the name of an adapter.
const REFERENCE = /^[^@:\s]+(@[0-9a-f]{4,40})?(:.+)?$/i;
const plain = (value) => (value === null || value === undefined ? "–" : Array.isArray(value) ? value.join(", ") || "–" : typeof value === "boolean" ? (value ? "yes" : "no") : typeof value === "number" ? short(value) : /^\d{4}-\d\d-\d\dT/.test(value) ? value.slice(0, 10) : typeof value === "object" ? Object.entries(value).map(([key, one]) => `${key} ${plain(one)}`).join(", ") || "–" : String(value));

// As wide as the window, if each of its columns has room; one column has the titles.
function sized(place, n) {
  Object.assign(place.style, { width: `min(100%, ${160 + n * 260}px)`, minWidth: `${(n + 1) * (n > 2 ? 140 : 112)}px` });
  return place;
}

export async function show(box, address) {
  box.dataset.title = "Compare";
  const names = [...new Set(address.getAll("a"))];
  if (names.length < 2 || names.length > 6) {
    const marked = [...selection.names];
    return fill(box, h("h1", null, "Compare"), h("p", null, names.length > 6 ? "Six adapters fit beside each other; more make a pool." : "Mark two to six adapters in the list or on the map."),
      marked.length > 1 ? h("p", null, h("a", { class: "button", href: `?${new URLSearchParams([["p", "compare"], ...marked.slice(0, 6).map((one) => ["a", one])])}` }, `compare the ${Math.min(6, marked.length)} that are marked`)) : h("p", null, link({ p: "list" }, "All adapters")));
  }
  const rows = await Promise.all(names.map(details)), refusing = new Set(data.head.rules[data.rulesInUse()]);
  const value = (detail, key) => (key === "uses" ? data.head.uses.filter((use) => !detail.uses[use]).join(", ") || "none" : key === "verdict" ? (detail.reasons.some((one) => refusing.has(one)) ? "skipped" : "accepted") :
    key === "runs_in" ? detail.runs_in.filter((one) => one.runs).map((one) => one.engine).join(", ") || "–" : plain(detail[key]));
  const facts = FACTS.map(([key, title]) => [title, rows.map((detail) => value(detail, key))]).filter(([, values]) => values.some((one) => one !== "–"));
  const differs = (values) => new Set(values).size > 1;
  facts.sort((a, b) => differs(b[1]) - differs(a[1]));
  const scores = new Map();
  rows.forEach((detail, at) => detail.scores.forEach((one) => { const key = `${one.task} · ${one.split} · ${one.metric}`; if (!scores.has(key)) scores.set(key, rows.map(() => "–")); scores.get(key)[at] = `${score(one.value)}${one.n ? ` (n ${number(one.n)})` : ""}`; }));
  const matrix = rows.map((left) => rows.map((right) => (left.base === right.base ? sketchCosine(left.sketch, right.sketch) : null))), exact = rows.map(() => rows.map(() => false));
  const sameBase = rows.every((detail) => detail.base === rows[0].base);
  const heat = h("section");
  const drawMatrix = () => fill(heat, h("h2", null, "How alike the weights are"), h("p", { class: "note" }, "Cosines of where the updates write to, 0 unrelated to 1 the same, on a scale that begins at 0. ", matrix.some((row) => row.includes(null)) ? "– stands for weights that were not read, or another base model. " : "", exact.some((row, i) => row.some((one, j) => one && i !== j)) ? "Bold: exact." : "Sketched: off by about 0.03."),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Cosines" }, h("table", { class: "matrix" }, h("thead", null, h("tr", null, h("td"), rows.map((_, at) => h("th", { scope: "col" }, `${at + 1}`)))), h("tbody", null, matrix.map((line, i) => h("tr", null, h("th", { scope: "row" }, `${i + 1} `, name(names[i])), line.map((one, j) => {
      const cell = h("td", { class: exact[i][j] && i !== j ? "exact" : null }, cosine(one));
      if (one !== null) {
        cell.style.background = rgb(shade(Math.abs(one)));
        cell.style.color = inkOn(shade(Math.abs(one)));
      }
      return cell;
    })))))), names.length === 2 ? command("similar", names[0], "--exact") : command("similar", names[0]));
  const tables = rows.filter((detail) => detail.spectrum).map((detail) => normTable(detail.spectrum)), largest = Math.max(0, ...tables.flatMap(({ cells }) => [...cells.values()]));
  const modules = rows.map((detail) => new Set(detail.spectrum?.modules ?? [])), shared = modules.length && modules.every((set) => set.size) ? [...modules[0]].filter((one) => modules.every((set) => set.has(one))).length : null;
  fill(box, h("h1", null, `Compare ${names.length}`), sameBase ? "" : h("p", { class: "error" }, "They have different base models: their weights cannot be compared, nor merged."),
    h("section", null, h("h2", null, "Facts"), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Facts" }, sized(h("table", { class: "compare" }, h("thead", null, h("tr", null, h("th", { scope: "col" }, "fact"), rows.map((detail, at) => h("th", { scope: "col" }, `${at + 1} `, link({ p: "adapter", a: detail.adapter }, name(detail.adapter)))))),
      h("tbody", null, [...facts, ...scores].map(([title, values]) => h("tr", { class: differs(values) ? "differs" : null }, h("th", { scope: "row" }, title, differs(values) ? "" : h("span", { class: "hidden" }, " (the same)")), values.map((one) => h("td", null, name(one))))))), names.length))),
    heat,
    h("section", null, h("h2", null, "Norm by layer and module, one scale"), shared === null ? "" : h("p", null, `${number(shared)} modules are in all of them; they have ${modules.map((set) => number(set.size)).join(", ")}.`), h("div", { class: "norms" }, rows.map((detail, at) => h("figure", null, h("figcaption", null, `${at + 1} `, name(detail.adapter)), detail.spectrum ? normMap(detail.spectrum, { largest, title: `norms of ${detail.adapter}` }) : h("p", { class: "note" }, detail.unmeasured))))),
    h("p", null, h("a", { class: "button", href: "?p=pools&new=1", onclick: () => selection.add(names) }, "make a pool of these")));
  drawMatrix();
  if (data.head.host && sameBase) askExact();
  async function askExact() {
    for (let i = 0; i < names.length; i++)
      for (let j = i + 1; j < names.length; j++) {
        if (matrix[i][j] === null || ![names[i], names[j]].every((one) => REFERENCE.test(one))) continue;
        const pair = await data.ask("compare", { a: names[i], b: names[j] }).catch(() => null);
        if (!pair) continue;
        matrix[i][j] = matrix[j][i] = pair.output;
        exact[i][j] = exact[j][i] = pair.exact;
      }
    drawMatrix();
  }
  return undefined;
}
