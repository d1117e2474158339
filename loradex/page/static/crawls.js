// Crawls, and what each found: new, changed, gone, failed.

import * as data from "./data.js";
import { command, fill, h, link, name, number, table } from "./dom.js";
import { setParams } from "./app.js";

const CHANGES = [["new", "new"], ["changed", "with another commit"], ["gone", "gone"], ["license", "with another license"], ["gated", "newly gated"]], CODE = new Set(["new", "changed", "gone"]);
const MOST = 2000;
const when = (text) => (text ? text.replace("T", " ").slice(0, 16) : "–");
const size = (bytes) => (bytes >= 9.9995e11 ? `${(bytes / 1e12).toFixed(1)} TB` : bytes >= 9.995e8 ? `${(bytes / 1e9).toFixed(1)} GB` : bytes > 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e3).toFixed(0)} kB`);
const OUTCOMES = ["new", "changed", "gone", "failed", "quarantined", "pending"];
const outcomes = (counts) => OUTCOMES.filter((name) => counts[name]).map((name) => `${number(counts[name])} ${name}`).join(", ") || "nothing new";

export async function show(box, address, view) {
  const crawls = await data.document_("crawls.json");
  if (view === "crawl") return showOne(box, address, crawls.rows);
  box.dataset.title = "Crawls";
  const totals = Object.entries(data.head.totals).filter(([, n]) => n).map(([name, n]) => `${number(n)} ${name}`);
  return fill(box, h("h1", null, "Crawls"), totals.length ? h("p", null, totals.join(" · "), data.head.retries ? ` · ${number(data.head.retries)} to be tried again` : "") : "",
    !crawls.rows.length ? h("p", { class: "note" }, "There are no crawls.") : table(["crawl", "began", "state", "what it found", "requests", "read", "seconds"], crawls.rows.map((row) => [link({ p: "crawl", id: row.id }, `crawl ${row.id}`), when(row.started), row.state, outcomes(row.outcomes), `${number(row.requests.api)} API, ${number(row.requests.resolver)} files`, size(row.bytes), number(Math.round(row.seconds))]), "Crawls, the newest first. A repository counts for the newest crawl of its listing that met it, and as changed for the newest that found it changed."), command("status"), data.head.host ? await changes(address) : "");
}

// What changed since a time, told by the rows of the catalog rather than by one crawl.
async function changes(address) {
  const since = address.get("since") ?? "7d", where = address.get("where") ?? "", list = h("div");
  const time = h("input", { id: "since", value: since, size: 10, autocomplete: "off" }), filter = h("input", { id: "where", type: "search", value: where, autocomplete: "off", spellcheck: "false", placeholder: "owner:someone" });
  const problem = await data.ask("changes", { since, where }).then(({ rows, beyond }) => {
    const groups = Map.groupBy(rows, (row) => row.change), at = (row) => (data.place(row.adapter) === undefined ? name(row.adapter) : link({ p: "adapter", a: row.adapter }, name(row.adapter)));
    const value = (row, text) => (text === null ? "none" : CODE.has(row.change) ? h("code", null, text.slice(0, 12)) : text);
    fill(list, [...CHANGES].filter(([change]) => groups.has(change)).map(([change, title]) => h("details", { open: groups.get(change).length < 100 }, h("summary", null, `${number(groups.get(change).length)} ${title}`),
      h("ul", null, groups.get(change).slice(0, MOST).map((row) => h("li", null, at(row), h("span", { class: "note" }, ` ${when(row.at)} · `, change === "new" ? "" : [value(row, row.before), " → "], value(row, row.after))))), groups.get(change).length > MOST ? h("p", { class: "note" }, `and ${number(groups.get(change).length - MOST)} more`) : "")),
    rows.length ? "" : h("p", { class: "note" }, "Nothing changed since."), beyond ? h("p", { class: "note" }, `${number(beyond)} more are not listed.`) : "");
    return "";
  }, (error) => error.message);
  return h("section", { id: "changes" }, h("h2", null, "What changed"), h("form", { class: "line", onsubmit: (event) => { event.preventDefault(); setParams({ since: time.value.trim(), where: filter.value.trim() }, { push: true }); dispatchEvent(new PopStateEvent("popstate")); } },
    h("label", { for: "since" }, "since "), time, " ", h("label", { for: "where" }, "of "), filter, " ", h("button", { type: "submit" }, "list")),
    h("p", { class: "error", role: "alert" }, problem), list, command("changes", "--since", since, ...(where ? ["--where", where] : [])));
}

async function showOne(box, address, crawls) {
  const id = Number(address.get("id")), at = crawls.findIndex((row) => row.id === id);
  if (at < 0) throw data.missing("The catalog has no such crawl.");
  const crawl = crawls[at], { rows, counts } = await data.document_(`crawl/${id}.json`), before = crawls[at + 1];
  box.dataset.title = `Crawl ${id}`;
  const groups = Map.groupBy(rows, (row) => row.outcome);
  const one = (row) => h("li", null, row.repository === null ? "a row without a name" : data.place(row.repository) === undefined ? name(row.repository) : link({ p: "adapter", a: row.repository }, name(row.repository)), row.error ? h("span", { class: "note" }, ` ${row.error}${row.detail ? `: ${row.detail}` : ""}`) : "");
  fill(box, h("h1", null, `Crawl ${id}`), h("p", null, `${crawl.state}, ${when(crawl.started)} to ${when(crawl.finished)}${before ? `; since crawl ${before.id} of ${when(before.started)}` : "; the first one"}`), at > 0 ? h("p", { class: "note" }, "Repositories that a later crawl of the same listing met count for that one, but those that are changed: they count here until they change again.") : "",
    Object.entries(counts).map(([outcome, n]) => { const list = (groups.get(outcome) ?? []).slice(0, MOST); return h("details", { open: n < 100 }, h("summary", null, `${number(n)} ${outcome}`), h("ul", null, list.map(one)), n > list.length ? h("p", { class: "note" }, `and ${number(n - list.length)} more`) : ""); }), rows.length ? "" : h("p", null, "Nothing was new."),
    h("p", null, link({ p: "crawls" }, "All crawls")));
}
