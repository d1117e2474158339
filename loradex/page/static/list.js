// All adapters: a filter, facets that count what is left, histograms, and rows of which only those in view exist.

import * as data from "./data.js";
import { FilterError, parse, toText, valueText } from "./filter.js";
import { command, debounce, day, download, h, fill, link, name, number, short, svg } from "./dom.js";
import { PATIENCE, params, selection, setParams } from "./app.js";

const FACETS = [["verdict", "verdict"], ["license", "license"], ["use", "use"], ["base", "base model"], ["health", "health"],
  ["reason", "reason"], ["runs", "runs in"], ["owner", "owner"], ["tool", "tool"], ["mytag", "tags of yours"]];
const HISTOGRAMS = ["rank", "norm", "downloads"];
const MOST_WORDS = 8, BINS = 24;
const COLUMNS = {
  rank: { key: "rank", title: "rank", right: true }, license: { key: "license", title: "license" },
  use: { key: "uses", title: "use", show: uses }, norm: { key: "norm", title: "norm", right: true, show: (row) => short(data.columns.get("norm").at(row)) },
  downloads: { key: "downloads", title: "downloads", right: true }, likes: { key: "likes", title: "likes", right: true },
  created: { key: "created", title: "created", show: (row) => day(data.columns.get("created").at(row)) },
  modified: { key: "modified", title: "modified", show: (row) => day(data.columns.get("modified").at(row)) },
  base: { key: "base", title: "base model" }, health: { key: "health", title: "health" }, noted: { key: "reasons", title: "verdict", show: noted },
};
const USUAL = ["rank", "license", "use", "norm", "downloads", "created", "noted"];

export function uses(row) {
  const objections = data.objectionsOf(row);
  return h("span", { class: "uses" }, data.head.uses.map((use, at) => objections[at]
    ? h("span", { class: "no", title: `${use}: ${objections[at]}` }, h("span", { "aria-hidden": "true" }, use[0]), h("span", { class: "hidden" }, `not ${use} `))
    : h("span", { class: "yes", title: use }, h("span", { "aria-hidden": "true" }, use[0]), h("span", { class: "hidden" }, `${use} `))));
}

function noted(row) {
  const reasons = data.columns.get("reasons").at(row), verdict = data.columns.get("verdict").at(row);
  return h("span", { class: verdict, title: reasons.map((one) => `${one}: ${data.head.reasons[one] ?? ""}`).join("\n") },
    verdict === "skipped" ? "skipped" : "accepted", reasons.length ? h("span", { class: "note" }, ` ${reasons.join(", ")}`) : "");
}

// The parts of a query that must all hold.
const parts = (query) => (!query ? [] : query.op === "and" ? query.parts : [query]);
const join = (list) => (list.length > 1 ? { op: "and", parts: list } : list[0] ?? null);
const isOf = (part, field) => {
  const terms = part.op === "or" ? part.parts : [part];
  return terms.every((term) => term.op === "equals" && term.field.name === field);
};
const chosen = (query, field) => parts(query).filter((part) => isOf(part, field)).flatMap((part) => (part.op === "or" ? part.parts : [part]).map((term) => term.text));
const excluded = (query, field) => parts(query).filter((part) => part.op === "not" && isOf(part.part, field)).flatMap((part) => (part.part.op === "or" ? part.part.parts : [part.part]).map((term) => term.text));
const without = (query, field) => join(parts(query).filter((part) => !isOf(part, field) && part.field?.name !== field && !(part.op === "not" && isOf(part.part, field))));

// The text of a filter after a value of a field was clicked: included, or left out.
function toggled(text, field, value, leaveOut) {
  const query = parse(text, data.head.fields), word = value.replace(/[A-Z]/g, (letter) => letter.toLowerCase());
  const [included, omitted] = [new Set(chosen(query, field)), new Set(excluded(query, field))];
  const mine = leaveOut ? omitted : included;
  (leaveOut ? included : omitted).delete(word);
  if (!mine.delete(word)) mine.add(word);
  const write = (words) => `${field}:${[...words].map(valueText).join(",")}`;
  const rest = toText(without(query, field));
  return [rest, included.size ? write(included) : "", omitted.size ? `-${write(omitted)}` : ""].filter(Boolean).join(" ");
}

export async function show(box, address) {
  box.dataset.title = "Adapters";
  const state = { marks: new Uint8Array(0), count: 0, rows: [], query: undefined, hits: null };
  const where = h("input", { type: "search", id: "where", value: address.get("where") ?? "", autocomplete: "off", spellcheck: "false",
    placeholder: "rank:8..64 license:mit -owner:someone", "aria-describedby": "problem" });
  const question = h("input", { type: "search", id: "question", value: address.get("q") ?? "", autocomplete: "off", placeholder: "what it should be good for" });
  const meaning = h("input", { type: "checkbox", id: "meaning", checked: address.get("meaning") === "1" });
  const problem = h("p", { id: "problem", class: "error", role: "alert" });
  const notes = h("p", { class: "note" }), count = h("p", { class: "count", role: "status" });
  const facets = h("div", { class: "facets", id: "facets", "aria-label": "Narrow down", role: "group" });
  const rows = new Rows(state);
  const bottom = h("div");
  const toggle = h("button", { type: "button", class: "filters-toggle", "aria-expanded": "false", "aria-controls": "facets", onclick: () => {
    const open = facets.classList.toggle("open");
    toggle.setAttribute("aria-expanded", open);
  } }, "Narrow down");
  fill(box, h("h1", { class: "hidden" }, "Adapters"),
    h("form", { class: "search", role: "search", onsubmit: (event) => { event.preventDefault(); update(); } },
      h("label", { for: "where" }, "Filter"), where,
      h("label", { for: "question" }, "Search"), question,
      data.head.host ? h("label", { class: "inline" }, meaning, " by meaning, too") : null),
    problem, notes, h("div", { class: "bar" }, count, toggle),
    h("div", { class: "columns" }, facets, h("div", { class: "rows" }, rows.node, bottom)));

  const search = debounce(250, () => update());
  where.addEventListener("input", debounce(15, () => update()));
  question.addEventListener("input", search);
  meaning.addEventListener("change", () => update());
  rows.onSort = (sort) => { setParams({ sort: sort === "adapter" ? null : sort }); update(); };
  const marked = () => rows.draw(true);
  selection.listeners.add(marked);
  const annotated = () => update();
  document.addEventListener("annotated", annotated);

  let turn = 0;
  async function update() {
    const mine = ++turn, started = performance.now();
    setParams({ where: where.value.trim(), q: question.value.trim(), meaning: meaning.checked ? "1" : null });
    const waiting = setTimeout(() => (mine === turn ? fill(notes, "Searching…") : ""), PATIENCE);
    try {
      const result = await data.filter(where.value);
      const hits = await searched(question.value.trim(), meaning.checked && data.head.host, where.value, result.passes);
      if (mine !== turn) return;
      const inHits = hits && new Set(hits.rows);
      const passes = inHits ? (row) => inHits.has(row) && result.passes(row) : result.passes;
      Object.assign(state, data.marksOf(passes), { query: result.query, hits });
      fill(problem);
      where.removeAttribute("aria-invalid");
      fill(notes, [...result.notes, ...(hits?.notes ?? [])].join(" "));
      const sort = params().get("sort") ?? "adapter";
      state.rows = hits && sort === "adapter" ? hits.rows.filter((row) => state.marks[row]) : sorted(sort, state.marks);
      const hides = data.head.own.hidden ? data.marksOf((row) => (!inHits || inHits.has(row)) && result.hides(row)).count : 0;
      const left = countWords(data.columns.get("verdict"), state.marks).get("skipped");
      fill(count, h("strong", null, number(state.count)), ` of ${number(data.head.adapters)} adapters`,
        left ? [" · ", h("button", { type: "button", class: "link", onclick: () => { where.value = toggled(where.value, "verdict", "skipped", true); update(); } }, `${number(left)} skipped`)] : "",
        data.head.left_out.private || data.head.left_out.gated ? ` · ${number(data.head.left_out.private)} private and ${number(data.head.left_out.gated)} gated ones are left out` : "",
        hides ? [" · ", link({ ...Object.fromEntries(params()), where: toText(join([...parts(result.query), ...parts(parse("hidden:yes", data.head.fields))])) }, `${number(hides)} hidden by you ${hides === 1 ? "is" : "are"} left out`)] : "");
      rows.draw();
      drawFacets();
      const asked = question.value.trim();
      fill(bottom, asked && data.head.host ? command("search", asked, meaning.checked ? null : "--words", "-k", "100", ...whereWords()) :
        command("adapters", ...whereWords(), ...(["rank", "downloads", "likes", "norm", "created", "modified"].includes(sort.slice(1)) && sort[0] === "-" ? ["--sort", sort.slice(1)] : [])),
        state.rows.length > 0 && h("p", null, h("button", { type: "button", onclick: saveCsv }, "save as CSV"), " ",
          h("button", { type: "button", onclick: () => selection.add(state.rows.slice(0, 1000).map((row) => data.columns.get("adapter").at(row))) }, `select ${number(Math.min(state.rows.length, 1000))}`)));
      box.dataset.milliseconds = (performance.now() - started).toFixed(1);
      box.dataset.count = state.count;
    } catch (error) {
      if (mine !== turn) return;
      if (!(error instanceof FilterError) && !error.status) throw error;
      where.setAttribute("aria-invalid", "true");
      fill(problem, error.message);
      rows.draw();
    } finally { clearTimeout(waiting); }
  }
  const whereWords = () => [...(where.value.trim() ? ["--where", where.value.trim()] : []), ...(data.rulesInUse() === "ours" ? [] : ["--rules", data.rulesInUse()])];

  function saveCsv() {
    const keys = ["adapter", "base", "rank", "license", "verdict", "norm", "downloads", "likes", "created", "modified", "reasons"];
    const cell = (value) => (Array.isArray(value) ? value.join(" ") : value ?? "");
    const text = (value) => { const one = String(value).replace(/^(?=[=+\-@\t\r])/, typeof value === "string" ? "'" : ""); return /[",\n]/.test(one) ? `"${one.replaceAll('"', '""')}"` : one; };
    const line = (row) => keys.map((key) => text(["created", "modified"].includes(key) ? day(data.columns.get(key).at(row)) : cell(data.columns.get(key).at(row)))).join(",");
    download([keys.join(","), ...state.rows.map(line)].join("\n") + "\n", "adapters.csv", "text/csv");
  }

  function drawFacets() {
    const open = new Set([...facets.querySelectorAll("details[open]")].map((one) => one.dataset.name));
    const first = !facets.childElementCount;
    fill(facets, FACETS.filter(([field]) => field !== "mytag" || data.head.own.own_tags).map(([field, title], at) => facet(field, title, first ? at < 4 : open.has(field))),
      own(first ? false : open.has("own")), HISTOGRAMS.map((field, at) => histogram(field, first ? at < 1 : open.has(field))));
  }

  function marksWithout(field) {
    if (!parts(state.query).some((part) => isOf(part, field) || part.field?.name === field)) return state.marks;
    return null;
  }

  function facet(field, title, isOpen) {
    const details = h("details", { open: isOpen, "data-name": field }, h("summary", null, title));
    const list = h("ul");
    details.append(list);
    const draw = async () => {
      const key = data.head.fields.find((one) => one.name === field).key;
      if (!data.columns.has(key)) await data.more();
      const column = data.columns.get(key);
      let marks = marksWithout(field);
      if (!marks) marks = data.marksOf((await data.filter(toText(without(state.query, field)))).passes).marks;
      const counts = countWords(column, marks), included = chosen(state.query, field), omitted = excluded(state.query, field);
      const isChosen = (word) => included.includes(word.toLowerCase()) || omitted.includes(word.toLowerCase());
      const words = [...counts].sort((a, b) => isChosen(b[0]) - isChosen(a[0]) || b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
      const rest = words.length - MOST_WORDS;
      fill(list, words.slice(0, MOST_WORDS).map(([word, n]) => {
        const on = included.includes(word.toLowerCase()), off = omitted.includes(word.toLowerCase());
        const press = (leaveOut) => { where.value = toggled(where.value, field, word, leaveOut); update(); };
        return h("li", { class: on ? "on" : off ? "off" : null },
          h("button", { type: "button", class: "facet", "aria-pressed": String(on), title: `${word}; click: only these, shift-click: without these`, onclick: (event) => press(event.shiftKey) }, name(word), h("span", { class: "n" }, number(n))),
          h("button", { type: "button", class: "minus", "aria-pressed": String(off), "aria-label": `without ${word}`, onclick: () => press(true) }, "−"));
      }), rest > 0 ? h("li", { class: "note" }, `and ${number(rest)} more`) : words.length ? "" : h("li", { class: "note" }, "none"));
    };
    details.addEventListener("toggle", () => { if (details.open && !list.childElementCount) draw(); });
    if (isOpen) draw();
    return details;
  }

  // What the user wrote: a note or none, hidden or not.
  function own(isOpen) {
    const terms = [["note:*", "with a note", "note"], ["-note:*", "without a note", "note"], ["hidden:yes", "hidden", "hidden"]].filter(([, , key]) => data.head.own[key]);
    if (!terms.length) return "";
    const list = h("ul"), details = h("details", { open: isOpen, "data-name": "own" }, h("summary", null, "notes of yours"), list);
    const draw = async () => {
      const rows = await Promise.all(terms.map(async ([text, title, key]) => {
        const other = parts(state.query).filter((part) => !new RegExp(`^-?${key}:`).test(toText(part))), on = parts(state.query).some((part) => toText(part) === text);
        const alone = parts(parse(text, data.head.fields)), { count: n } = data.marksOf((await data.filter(toText(join([...other, ...alone])))).passes);
        return h("li", { class: on ? "on" : null }, h("button", { type: "button", class: "facet", "aria-pressed": String(on), onclick: () => { where.value = toText(join([...other, ...(on ? [] : alone)])); update(); } }, name(title), h("span", { class: "n" }, number(n))));
      }));
      fill(list, rows);
    };
    details.addEventListener("toggle", () => { if (details.open && !list.childElementCount) draw(); });
    if (isOpen) draw();
    return details;
  }

  function histogram(field, isOpen) {
    const details = h("details", { open: isOpen, "data-name": field }, h("summary", null, field));
    const draw = async () => {
      const column = data.columns.get(field);
      let marks = marksWithout(field);
      if (!marks) marks = data.marksOf((await data.filter(toText(without(state.query, field)))).passes).marks;
      const counts = column.values ? data.rowsOf(marks).map((row) => [column.values[row], 1]).filter(([value]) => value !== null) : [...countWords(column, marks)];
      if (!counts.length) return details.append(h("p", { class: "note" }, "No values are left."));
      const [low, high] = [Math.min, Math.max].map((choose) => counts.reduce((a, [b]) => choose(a, b), counts[0][0]));
      const scale = (value) => Math.log1p(Math.max(value, 0) - Math.max(low, 0)), top = scale(high) || 1;
      const back = (share) => Math.expm1(share * top) + Math.max(low, 0);
      const bins = new Array(BINS).fill(0);
      for (const [value, n] of counts) bins[Math.min(BINS - 1, Math.floor((scale(value) / top) * BINS))] += n;
      const tallest = Math.max(...bins), range = parts(state.query).find((part) => part.op === "between" && part.field.name === field);
      const handles = ["low", "high"].map((side) => {
        const current = range && range[side] !== null ? scale(Number(range[side])) / top : side === "low" ? 0 : 1;
        return h("input", { type: "range", min: 0, max: BINS, step: 1, value: Math.round(current * BINS), "aria-label": `${field}, ${side === "low" ? "at least" : "at most"}`, onchange: () => {
          let [from, to] = handles.map((handle) => Number(handle.value));
          if (from > to) [from, to] = [to, from];
          const whole = data.head.fields.find((one) => one.name === field).kind === "whole";
          const text = (share, up) => { const value = back(share / BINS); return whole ? String(up ? Math.ceil(value) : Math.floor(value)) : String(Number(value.toPrecision(3))); };
          const rest = toText(without(state.query, field));
          const term = from === 0 && to === BINS ? "" : `${field}:${from ? text(from, true) : ""}..${to < BINS ? text(to, false) : ""}`;
          where.value = [rest, term].filter(Boolean).join(" ");
          update();
        } });
      });
      fill(details, h("summary", null, field),
        svg("svg", { viewBox: `0 0 ${BINS * 6} 30`, class: "histogram", role: "img", "aria-label": `${field} from ${short(low)} to ${short(high)}` },
          bins.map((n, at) => svg("rect", { x: at * 6, y: 30 - (n ? Math.max(1, (n / tallest) * 30) : 0), width: 5, height: n ? Math.max(1, (n / tallest) * 30) : 0 }, svg("title", null, `${number(n)} from ${short(back(at / BINS))} to ${short(back((at + 1) / BINS))}`)))),
        h("div", { class: "handles" }, handles), h("p", { class: "ends" }, h("span", null, short(low)), h("span", null, short(high))));
      return undefined;
    };
    details.addEventListener("toggle", () => { if (details.open && details.childElementCount < 2) draw(); });
    if (isOpen) draw();
    return details;
  }

  await update();
  box.addEventListener("placed", () => { rows.draw(true); });
  const resized = () => rows.draw(true);
  addEventListener("resize", resized);
  return () => { selection.listeners.delete(marked); document.removeEventListener("annotated", annotated); removeEventListener("resize", resized); };
}

function countWords(column, marks) {
  const counts = new Map();
  if (column.values) {
    for (let row = 0; row < marks.length; row++) if (marks[row] && column.values[row] !== null && column.values[row] !== "") counts.set(column.values[row], (counts.get(column.values[row]) ?? 0) + 1);
    return counts;
  }
  const byCode = new Int32Array((column.sets ?? column.words).length), { codes } = column;
  for (let row = 0; row < codes.length; row++) if (marks[row] && codes[row] >= 0) byCode[codes[row]] += 1;
  byCode.forEach((n, code) => {
    for (const word of column.sets ? column.sets[code].map((one) => column.words[one]) : [column.words[code]])
      if (n && word !== "") counts.set(word, (counts.get(word) ?? 0) + n);
  });
  return counts;
}

function sorted(sort, marks) {
  const down = sort.startsWith("-"), key = sort.replace(/^-/, "");
  const column = data.columns.get(COLUMNS[key]?.key ?? "adapter");
  if (!COLUMNS[key]) return data.rowsOf(marks);
  const rows = column.order.filter((row) => marks[row]);
  if (!down) return rows;
  const missing = rows.findIndex((row) => column.at(row) === null);
  return missing < 0 ? rows.reverse() : [...rows.slice(0, missing).reverse(), ...rows.slice(missing)];
}

// The best rows of a search among those that pass a filter: the server's, or names, tags and data sets that contain the words.
async function searched(text, byMeaning, where, passes) {
  if (!text) return null;
  if (data.head.host) {
    const result = await data.ask("search", { q: text, meaning: byMeaning ? "1" : "0", where, rules: data.rulesInUse() });
    return { rows: result.rows.map((row) => data.place(row.adapter)).filter((row) => row !== undefined), notes: result.notes, why: new Map(result.rows.map((row) => [data.place(row.adapter), row.why])) };
  }
  await data.more();
  const words = text.toLowerCase().split(/\s+/).filter(Boolean), scores = new Float32Array(data.head.adapters);
  for (const word of words)
    for (const [key, weight] of [["adapter", 3], ["datasets", 2], ["tags", 1]]) {
      const inside = data.columns.get(key).test((one) => one.toLowerCase().includes(word));
      for (let row = 0; row < scores.length; row++) if (inside(row)) scores[row] += weight;
    }
  const rows = [...scores.keys()].filter((row) => scores[row] && passes(row)).sort((a, b) => scores[b] - scores[a] || a - b).slice(0, 100);
  return { rows, notes: ["This copy searches names, tags and data sets; meaning takes a server."] };
}

// A table of which only the rows in view are in the document.
class Rows {
  constructor(state) {
    this.state = state;
    this.onSort = () => {};
    this.space = h("div", { class: "space" });
    this.head = h("div", { class: "tr head", role: "row" });
    this.body = h("div", { class: "window", role: "rowgroup" });
    this.node = h("div", { class: "table", role: "table", "aria-label": "Adapters", tabindex: 0 },
      h("div", { role: "rowgroup", class: "thead" }, this.head), this.space, this.body);
    this.node.addEventListener("scroll", () => this.draw(), { passive: true });
    this.from = -1;
  }
  get height() { return matchMedia("(max-width: 700px)").matches ? 92 : 32; }
  columns() {
    const asked = params().get("cols");
    return (asked ? asked.split(",") : USUAL).filter((one) => Object.hasOwn(COLUMNS, one));
  }
  drawHead() {
    // The best hits of a search stand in their own order.
    const sort = params().get("sort") ?? (this.state.hits ? null : "adapter"), columns = ["adapter", ...this.columns()];
    fill(this.head, h("span", { class: "td mark", role: "columnheader" }, h("span", { class: "hidden" }, "marked")), columns.map((one) => {
      const down = sort === `-${one}`, up = sort === one;
      return h("span", { class: `td c-${one}`, role: "columnheader", "aria-sort": up ? "ascending" : down ? "descending" : "none" },
        h("button", { type: "button", class: "link", onclick: () => this.onSort(one === "adapter" ? "adapter" : down ? one : up ? `-${one}` : ["license", "base", "health"].includes(one) ? one : `-${one}`) },
          COLUMNS[one]?.title ?? one, up ? " ▲" : down ? " ▼" : ""));
    }));
  }
  draw(again) {
    const { rows } = this.state, height = this.height;
    this.node.setAttribute("aria-rowcount", rows.length + 1);
    this.space.style.height = `${rows.length * height}px`;
    const shown = Math.ceil((this.node.clientHeight || 600) / height) + 8;
    const from = Math.max(0, Math.min(Math.floor(this.node.scrollTop / height) - 4, rows.length - shown));
    if (!again && this.rows === rows && this.from === from) return;
    if (again || this.rows !== rows) this.drawHead();
    Object.assign(this, { rows, from });
    this.body.style.transform = `translateY(${from * height}px)`;
    const focused = document.activeElement?.dataset?.row, columns = this.columns();
    fill(this.body, rows.slice(from, from + shown).map((row, at) => this.row(row, from + at, columns)));
    if (focused) this.body.querySelector(`[data-row="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    if (!rows.length) fill(this.body, h("div", { role: "row", class: "tr" }, h("span", { role: "cell", class: "td note whole" }, this.state.query === undefined ? "Nothing is listed until the filter can be read." : "No adapter matches. Take out a part of the filter.")));
  }
  row(row, at, columns) {
    const adapter = data.columns.get("adapter").at(row), why = this.state.hits?.why?.get(row);
    return h("div", { class: `tr ${data.columns.get("verdict").at(row)}`, role: "row", "aria-rowindex": at + 2 },
      h("span", { class: "td mark", role: "cell" }, h("input", { type: "checkbox", "data-row": `m${row}`, checked: selection.names.has(adapter), "aria-label": `mark ${adapter}`, onchange: (event) => selection.set(adapter, event.target.checked) })),
      h("span", { class: "td c-adapter", role: "cell" }, (() => { const one = link({ p: "adapter", a: adapter }, name(adapter)); one.dataset.row = `n${row}`; one.title = why ?? adapter; return one; })()),
      columns.map((one) => {
        const { key, show: draw, right, title } = COLUMNS[one], value = draw ? draw(row) : data.columns.get(key).at(row);
        const none = value === null || value === "";
        return h("span", { class: `td c-${one}${right ? " right" : ""}${none ? " none" : ""}`, role: "cell", "data-title": title }, none ? h("span", { class: "note" }, "–") : typeof value === "number" ? number(value) : value);
      }));
  }
}
