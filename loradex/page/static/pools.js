// Pools: the list, one in whole, and a new one of what is marked.

import * as data from "./data.js";
import { command, day, download, fill, h, link, name, number, say, short, table } from "./dom.js";
import { go, selection } from "./app.js";

export async function show(box, address, view) {
  return view === "pool" ? showOne(box, address) : showAll(box, address);
}

async function showAll(box, address) {
  box.dataset.title = "Pools";
  const pools = await data.document_("pools.json");
  fill(box, h("h1", null, "Pools"), address.get("new") || selection.names.size ? form() : "",
    pools.rows.length ? table(["pool", "members", "by", "base model", "use", "made", "digest"], pools.rows.map((row) => [link({ p: "pool", n: row.pool }, row.pool), number(row.members), row.by ?? "", row.base ?? "", row.use, day(Date.parse(row.created) / 1000), h("code", null, row.digest.slice(0, 12))]), "All pools") : h("p", null, "There are no pools. Mark adapters in the list, then make one of them."),
    pools.left_out ? h("p", { class: "note" }, `${number(pools.left_out)} ${pools.left_out === 1 ? "pool that names" : "pools that name"} adapters which this copy leaves out ${pools.left_out === 1 ? "is" : "are"} not in it.`) : "", command("pools"));
}

function form() {
  const names = [...selection.names], problem = h("p", { class: "error", role: "alert" });
  if (!names.length) return h("section", { class: "panel" }, h("h2", null, "A new pool"), h("p", null, "Mark adapters first, in the ", link({ p: "list" }, "list"), " or on the ", link({ p: "map" }, "map"), "."));
  const title = h("input", { id: "pool-name", required: true, pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]{0,99}", value: "", autocomplete: "off" }), use = h("select", { id: "pool-use" }, data.head.uses.map((one) => h("option", null, one)));
  const controls = h("input", { type: "checkbox", id: "pool-controls" });
  const line = h("div");
  const drawLine = () => fill(line, command("select", title.value || "NAME", "--by", "named", ...names.flatMap((one) => ["--adapter", one]), ...(use.value === "research" ? [] : ["--use", use.value]), ...(controls.checked ? ["--controls"] : [])));
  [title, use, controls].forEach((one) => one.addEventListener("input", drawLine));
  drawLine();
  return h("form", { class: "panel", onsubmit: async (event) => {
    event.preventDefault();
    fill(problem);
    try {
      const result = await data.save("pools", { name: title.value, adapters: names, use: use.value, controls: controls.checked });
      say(`Saved ${result.pool}.`);
      selection.clear();
      await data.start();
      go({ p: "pool", n: result.pool });
    } catch (error) { fill(problem, error.message); }
  } }, h("h2", null, `A new pool of ${names.length}`), h("ul", { class: "chosen" }, names.map((one) => h("li", null, name(one), " ", h("button", { type: "button", class: "small", "aria-label": `take out ${one}`, onclick: () => { selection.set(one, false); go({ p: "pools", new: "1" }); } }, "×")))),
    h("p", { class: "line" }, h("label", { for: "pool-name" }, "Name"), title, h("label", { for: "pool-use" }, "for"), use, h("label", null, controls, " with control pools")),
    problem, data.canSave() ? h("p", null, h("button", { type: "submit" }, "Save the pool")) : h("p", { class: "note" }, "This copy cannot save; run the command:"), line);
}

async function showOne(box, address) {
  const which = address.get("n") ?? "";
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/.test(which)) throw data.missing("The address names no pool.");
  const pool = await data.document_(`pool/${which}.json`), rows = new Map((await data.document_("pools.json")).rows.map((row) => [row.pool, row]));
  box.dataset.title = `Pool ${pool.name}`;
  const adapter = (member) => (member.subfolder ? `${member.repository}:${member.subfolder}` : member.repository), { digest, problems, ...manifest } = pool;
  const shown = pool.members.filter((member) => !data.isHidden(adapter(member))), known = shown.map(adapter).filter((one) => data.place(one) !== undefined);
  fill(box, h("h1", null, `Pool ${pool.name}`), h("p", null, `${number(pool.members.length)} members of ${pool.base ?? "an unknown base model"}, for ${pool.use}; sha256 `, h("code", null, digest)), command("pool", "show", pool.name),
    problems.length ? h("ul", { class: "reasons" }, problems.map((one) => h("li", { class: "skipped" }, `${one.member ?? ""} ${one.detail}`))) : h("p", { class: "note" }, `No license speaks against ${pool.use}.`),
    table(["adapter", "score", "rank", "norm", "license", "why", "commit"], shown.map((member) => [data.place(adapter(member)) === undefined ? name(adapter(member)) : link({ p: "adapter", a: adapter(member) }, name(adapter(member))), short(member.score), member.rank ?? "", short(member.norm), member.license ?? "–", member.why, h("code", null, member.commit.slice(0, 12))]), "Members"), h("p", { class: "note" }, data.hiddenNote(pool.members.length - shown.length)),
    h("div", { class: "cards" }, h("section", null, h("h2", null, "How they were chosen"), h("dl", null, Object.entries(pool.chosen).map(([key, value]) => [h("dt", null, key), h("dd", null, name(Array.isArray(value) ? few(value) : value))]))),
      h("section", null, h("h2", null, "Controls"), pool.controls.length ? h("ul", null, pool.controls.map((one) => h("li", null, one.kind, ": ", one.pool ? (rows.has(one.pool) ? link({ p: "pool", n: one.pool }, one.pool) : one.pool) : `made when merging, seed ${one.seed}`))) : h("p", { class: "note" }, "It has none."))),
    h("p", null, known.length >= 2 && known.length <= 6 ? h("a", { class: "button", href: `?${new URLSearchParams([["p", "compare"], ...known.map((one) => ["a", one])])}` }, "compare the members") : "", " ", h("button", { type: "button", onclick: () => selection.add(known) }, "mark the members"), " ",
      h("button", { type: "button", onclick: () => download(canonical({ format: "loradex-pool/1", ...manifest }), "pool.json", "application/json") }, "pool.json")),
    command("pool", "export", pool.name, "--weights"), command("pool", "export", pool.name, "--weights", "--format", "vllm"));
}

// Of a long list the first: what a pool was made of is its table of members already.
const few = (values) => (values.length > 10 ? `${values.slice(0, 3).join(", ")} and ${number(values.length - 3)} more` : values.join(", "));

// JSON as the program writes manifests: sorted keys, two spaces, one newline at the end.
function canonical(value) {
  const sort = (one) => (Array.isArray(one) ? one.map(sort) : one && typeof one === "object" ? Object.fromEntries(Object.keys(one).sort().map((key) => [key, sort(one[key])])) : one);
  return `${JSON.stringify(sort(value), null, 2)}\n`;
}
