// Scores: adapters by tasks as a heat map of which only the rows in view exist, and a leaderboard of one task.

import * as data from "./data.js";
import { command, fill, h, link, name, number, score, short, svg, table } from "./dom.js";
import { setParams } from "./app.js";
import { inkOn, rgb, scaleBar, shade } from "./charts.js";

const ROW = 22, CELL = 46, WINDOW = 560, MOST = 1000;

export async function show(box, address) {
  box.dataset.title = "Scores";
  await data.renew();
  const scores = await data.document_("scores.json");
  const of = (key) => { const { words, codes, values } = scores.columns[key]; return values ? (row) => values[row] : (row) => (codes[row] < 0 ? null : words[codes[row]]); };
  const [subject, task, split, metric, value, n, source] = ["adapter", "task", "split", "metric", "value", "n", "source"].map(of);
  const hidden = h("p", { class: "note" }, data.hiddenNote(scores.hidden));
  if (!scores.n) return fill(box, h("h1", null, "Scores"), hidden, h("p", null, "No scores are in the catalog. Measure some with ", h("code", null, "loradex evaluate"), ", or import a table:"), command("scores", "import", "FILE.csv"));
  if (address.get("task")) return showTask(box, address, scores);
  const splits = [...new Set(Array.from({ length: scores.n }, (_, row) => split(row)))].sort(), chosen = splits.includes(address.get("split")) ? address.get("split") : splits.includes("test") ? "test" : splits[0];
  const subjects = new Map(), tasks = new Set();
  for (let row = 0; row < scores.n; row++) {
    if (split(row) !== chosen) continue;
    tasks.add(task(row));
    if (!subjects.has(subject(row))) subjects.set(subject(row), new Map());
    const cells = subjects.get(subject(row));
    if (!cells.has(task(row))) cells.set(task(row), row);
  }
  const columns = [...tasks].sort(), mean = (cells) => { const all = [...cells.values()].map(value); return all.reduce((a, b) => a + b, 0) / all.length; };
  const rows = [...subjects].sort((a, b) => (b[0] === "base") - (a[0] === "base") || b[1].size - a[1].size || mean(b[1]) - mean(a[1]));
  const space = h("div", { class: "space" }), body = h("div", { class: "window", role: "rowgroup" });
  const heads = h("div", { class: "tr", role: "row" }, h("span", { class: "subject", role: "columnheader" }, "adapter"), columns.map((one) => h("span", { class: "cell", role: "columnheader", title: one }, link({ p: "scores", task: one, split: chosen }, one))));
  const grid = h("div", { class: "heatmap", role: "table", "aria-label": `Scores on ${chosen}`, "aria-rowcount": rows.length + 1, tabindex: 0 }, h("div", { class: "thead", role: "rowgroup" }, heads), space, body);
  space.style.height = `${rows.length * ROW}px`;
  space.style.width = `${290 + columns.length * CELL}px`;
  const draw = () => {
    const from = Math.max(0, Math.floor(grid.scrollTop / ROW) - 4), shown = Math.ceil(WINDOW / ROW) + 8;
    body.style.transform = `translateY(${from * ROW}px)`;
    fill(body, rows.slice(from, from + shown).map(([who, cells], at) => h("div", { class: "tr", role: "row", "aria-rowindex": from + at + 2 }, h("span", { class: "subject", role: "rowheader", title: who }, data.place(who) === undefined ? name(who) : link({ p: "adapter", a: who }, name(who))),
      columns.map((one) => {
        const row = cells.get(one), cell = h("span", { class: "cell", role: "cell", title: row === undefined ? `${who} has no score on ${one}` : `${who} on ${one}: ${short(value(row))} ${metric(row)}, n ${n(row) ?? "not stated"}, ${split(row)}, by ${source(row)}` }, row === undefined ? "" : value(row).toFixed(2));
        if (row !== undefined) {
          const ink = shade(value(row));
          cell.style.background = rgb(ink);
          cell.style.color = inkOn(ink);
        }
        return cell;
      }))));
  };
  grid.addEventListener("scroll", draw, { passive: true });
  draw();
  fill(box, h("h1", null, "Scores"), h("p", null, h("label", null, "split ", h("select", { onchange: (event) => { setParams({ split: event.target.value }, { push: true }); dispatchEvent(new PopStateEvent("popstate")); } }, splits.map((one) => h("option", { selected: one === chosen, value: one }, one === "test" ? "test (to judge by, not to choose by)" : one)))), ` ${number(rows.length - subjects.has("base"))} adapters and merges${subjects.has("base") ? ", the base model" : ""}, ${number(columns.length)} tasks`),
    hidden, scaleBar(0, 1, "score"), grid, table(["source", "split", "metric", "scores", "adapters", "tasks"], scores.sources.map((one) => [name(one.source), one.split, one.metric, number(one.scores), number(one.subjects), number(one.tasks)]), "Who measured"), command("scores", "show"));
  return undefined;
}

async function showTask(box, address, scores) {
  const task = address.get("task"), boards = scores.boards.map((board, at) => [board, at]).filter(([board]) => board.task === task);
  if (!boards.length) throw data.missing(`No scores are on the task ${task}.`);
  const wanted = boards.find(([board]) => board.split === address.get("split")) ?? boards[0], at = boards.some(([, place]) => String(place) === address.get("board")) ? Number(address.get("board")) : wanted[1];
  const { board, rows, note, hidden } = await data.document_(`leaderboard/${at}.json`);
  box.dataset.title = `Scores on ${task}`;
  const base = rows.find((row) => row.adapter === "base"), top = Math.max(...rows.map((row) => row.high ?? row.value), 1), width = 260, x = (value) => (value / top) * width;
  const bar = (row) => svg("svg", { viewBox: `0 0 ${width} 16`, width, height: 16, preserveAspectRatio: "none", role: "img", "aria-label": `${short(row.value)}${row.low === null ? "" : `, 95 % from ${short(row.low)} to ${short(row.high)}`}`, class: "bars" },
    svg("rect", { x: 0, y: 3, width: x(row.value), height: 10 }), row.low === null ? null : svg("line", { x1: x(row.low), x2: x(row.high), y1: 8, y2: 8, class: "interval" }), base ? svg("line", { x1: x(base.value), x2: x(base.value), y1: 0, y2: 16, class: "base" }) : null);
  fill(box, h("h1", null, `Scores on ${task}`), h("p", null, boards.map(([one, place], n) => { const title = [one.split, one.metric, one.protocol].filter(Boolean).join(" · "); return [n ? " | " : "", place === at ? h("strong", { "aria-current": "true" }, title) : link({ p: "scores", task, board: place }, title)]; }), board.split === "test" ? h("span", { class: "note" }, ". A test split is there to judge by, not to choose by.") : ""), note ? h("p", { class: "error" }, note) : "",
    h("p", { class: "note" }, data.hiddenNote(hidden)), table(["place", "adapter", "score", "interval", "n", "source", "difference from the first"], rows.slice(0, MOST).map((row) => [row.place, data.place(row.adapter) === undefined ? name(row.adapter) : link({ p: "adapter", a: row.adapter }, name(row.adapter)), score(row.value), bar(row), row.n === null ? "not stated" : number(row.n), name(row.source), row.p_holm === null ? "" : `${score(row.difference)}, p ${row.p_holm < 1e-4 ? "< 0.0001" : String(Number(row.p_holm.toPrecision(2)))}${row.differs ? "" : ": could be chance"}`]), `${board.split}, ${board.metric}; bars with 95 % intervals${base ? ", the line is the base model" : ""}`), rows.length > MOST ? h("p", { class: "note" }, `and ${number(rows.length - MOST)} more`) : "",
    command("scores", "leaderboard", task, "--split", board.split, "--metric", board.metric), h("p", null, link({ p: "scores" }, "All scores")));
}
