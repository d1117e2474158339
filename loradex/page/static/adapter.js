// One adapter: facts, reasons in words, training, scores, weights, neighbours, files and its card.

import * as data from "./data.js";
import { append, command, copyButton, cosine, fill, h, link, name, number, sameness, score, short, table } from "./dom.js";
import { selection } from "./app.js";
import { card, outside } from "./card.js";
import { section as own } from "./own.js";
import { normMap, spectra } from "./charts.js";

const FACTS = [["base", "base model"], ["rank", "rank r"], ["alpha", "alpha"], ["scaling", "scaling s"], ["use_rslora", "rank-stabilised"], ["targets", "targets"], ["modules", "modules"],
  ["parameters", "parameters"], ["dtypes", "data types"], ["norm", "norm ‖s·B·A‖"], ["health", "health"], ["partial", "more than s·B·A"], ["license", "license"], ["peft_type", "kind"], ["task_type", "task type"],
  ["downloads", "downloads of the last month"], ["likes", "likes"], ["created", "created"], ["modified", "modified"], ["gated", "gated"], ["gone", "gone from the Hub"], ["base_raw", "base model as spelled"], ["base_evidence", "from"],
  ["aliases", "earlier names"], ["other_adapters", "other folders"], ["tags", "tags"]];
const LONGEST = 60;

const text = (value) => (Array.isArray(value) ? value.slice(0, LONGEST).map((one) => String(one)).join(", ") + (value.length > LONGEST ? ", …" : "") :
  value === true ? "yes" : value === false ? "no" : typeof value === "number" ? short(value) : /^\d{4}-\d\d-\d\dT/.test(value) ? value.slice(0, 10) : typeof value === "object" ? Object.entries(value).map(([key, one]) => `${key} ${text(one)}`).join(", ") : String(value));

export const details = async (reference) => {
  const row = data.place(reference);
  if (row !== undefined) return data.part("adapter", row);
  if (!data.head.host) throw data.missing(`${reference} is not in this copy.`);
  return data.ask("adapter", { a: reference }).catch((error) => { throw error.status === 404 ? data.missing(`${reference} is not in this catalog.`) : error; });
};

export async function show(box, address) {
  const reference = address.get("a") ?? "", detail = await details(reference), row = data.place(detail.adapter);
  const refusing = new Set(data.head.rules[data.rulesInUse()]), reasons = [...detail.reasons].sort((a, b) => refusing.has(b) - refusing.has(a));
  const skipped = reasons.some((one) => refusing.has(one));
  box.dataset.title = detail.adapter;
  const mark = h("input", { type: "checkbox", checked: selection.names.has(detail.adapter), onchange: (event) => selection.set(detail.adapter, event.target.checked) });
  const near = h("section", { id: "nearest" }, h("h2", null, "Nearest by weights"), h("p", { class: "note" }, "Comparing…"));
  const copies = h("section", { id: "copies" }, h("h2", null, "Duplicates and family"), h("p", { class: "note" }, "Comparing…"));
  fill(box, h("h1", null, name(detail.adapter)),
    h("p", null, h("span", { class: `badge ${skipped ? "skipped" : "accepted"}` }, skipped ? "skipped" : "accepted"), ` by the rules ${data.rulesInUse()} · `,
      data.head.uses.map((use) => h("span", { class: "useword", title: detail.uses[use] ?? "nothing in its license speaks against it" }, `${use} ${detail.uses[use] ? "✗" : "✓"} `)),
      " · ", outside(`https://huggingface.co/${detail.adapter.split(":")[0]}/tree/${detail.commit}`, "on the Hub"), " · ", h("label", null, mark, " mark")),
    command("show", detail.current ? detail.adapter : reference, ...(data.rulesInUse() === "ours" ? [] : ["--rules", data.rulesInUse()])),
    Object.values(detail.uses).some(Boolean) ? h("ul", { class: "why" }, data.head.uses.filter((use) => detail.uses[use]).map((use) => h("li", null, `${use} ✗: it ${detail.uses[use]}`))) : "",
    own(detail),
    h("div", { class: "cards" },
      h("section", null, h("h2", null, "Facts"), h("dl", null, FACTS.filter(([key]) => ![null, undefined, "", false].includes(detail[key]) && !(Array.isArray(detail[key]) && !detail[key].length) && !(key === "base_raw" && detail[key] === detail.base))
        .map(([key, title]) => [h("dt", null, title), h("dd", null, name(text(detail[key])))]), h("dt", null, "commit"), h("dd", null, h("code", null, detail.commit.slice(0, 12)), " ", copyButton(detail.commit)))),
      h("section", null, h("h2", null, reasons.length ? "Reasons" : "No reason against it"), h("ul", { class: "reasons" }, reasons.map((one) => h("li", { class: refusing.has(one) ? "skipped" : "accepted" }, h("strong", null, one), refusing.has(one) ? "" : " (noted only)", `: ${data.head.reasons[one] ?? ""}`, detail.details[one] ? h("div", { class: "note" }, detail.details[one]) : ""))),
        Object.keys(detail.training).length ? [h("h2", null, "Training"), h("dl", null, Object.entries(detail.training).map(([key, value]) => [h("dt", null, key.replaceAll("_", " ")), h("dd", null, name(text(value)))]))] : "",
        detail.runs_in.length ? [h("h2", null, "Engines"), h("ul", { class: "engines" }, detail.runs_in.map((one) => h("li", null, h("strong", null, one.engine), ` ${engine(one)}`)))] : ""),
      detail.scores.length ? h("section", null, table(["task", "split", "metric", "score", "n", "source"], detail.scores.map((one) => [link({ p: "scores", task: one.task }, one.task), one.split, one.metric, score(one.value), number(one.n), name(one.source)]), "Scores"), command("scores", "show", detail.adapter)) : ""),
    detail.spectrum ? h("section", null, h("h2", null, "Norm by layer and module"), normMap(detail.spectrum), h("h2", null, "Singular values of B·A over the largest"), h("p", { class: "note" }, "Median over the layers, with the range."), spectra(detail.spectrum), command("show", detail.adapter, "--plot", "adapter.svg")) :
      h("section", null, h("h2", null, "Weights"), h("p", { class: "note" }, detail.unmeasured)),
    h("div", { class: "cards" }, near, copies),
    h("section", null, table(["file", "bytes", "digest"], (detail.files ?? []).map((file) => [name(file.name), number(file.size), h("code", null, (file.digest ?? "").slice(0, 16))]), "Files")),
    h("section", null, h("h2", null, "Card"), detail.card === null ? [h("p", { class: "note" }, detail.card_left_out ? "Not in the snapshot." : data.head.cards ? "It has no card." : "This copy has no cards."), detail.card_left_out ? command("show", detail.adapter, "--card") : ""] : [card(detail.card), detail.card_length > detail.card.length ? h("p", { class: "note" }, "The card is longer than this.") : ""]));
  if (row === undefined || !detail.current) return [near, copies].forEach((one) => one.remove());
  // What takes long comes later; it is not waited for once the view is left, as a browser waits for few answers at a time.
  const waiting = new AbortController(), later = (place, drawn) => drawn.catch((error) => (waiting.signal.aborted ? "" : append(place, [h("p", { class: "error" }, error.message)])));
  later(near, drawNearest(near, row, detail.adapter, waiting.signal));
  later(copies, drawCopies(copies, row, waiting.signal));
  return () => waiting.abort();
}

const engine = (one) => [one.runs === true ? "runs" : one.runs === false ? "does not run" : "its file must be read", [...one.reasons, one.remedies.length ? `remedy: ${one.remedies.join(", ")}` : "", one.option ? `needs ${one.option}` : ""].filter(Boolean).join("; ")].filter(Boolean).join(": ");

async function drawNearest(place, row, adapter, signal) {
  const result = await data.part("nearest", row, signal);
  const draw = (all, text, hidden) => {
    const rows = all.filter((one) => !data.isHidden(one.adapter)), note = [text, data.hiddenNote(hidden + all.length - rows.length, "of the nearest ")].filter(Boolean).join(" ");
    return fill(place, h("h2", null, "Nearest by weights"), rows.length ? table(["adapter", "cosine", "rank", "license", "verdict"], rows.map((one) => {
      const at = data.place(one.adapter);
      return [link({ p: "adapter", a: one.adapter }, name(one.adapter)), h("span", { title: one.why }, cosine(one.score)), one.rank, one.license ?? "–", at === undefined ? "" : data.columns.get("verdict").at(at)];
    }), "Adapters of the same base model, cosines of output sketches") : "", h("p", { class: "note" }, note), command("similar", adapter, "--verdict", "any"),
    data.head.host && rows.length ? h("button", { type: "button", onclick: async (event) => { event.target.disabled = true; const exact = await data.ask("similar", { a: adapter }); draw(exact.rows, exact.notes.join(" ") || "Exact cosines.", 0); } }, "compare the weights exactly") : "");
  };
  draw(result.rows, result.note || "Cosines of sketches are off by about 0.03.", result.hidden);
}

// Of the groups of the page Duplicates those with this adapter.
async function drawCopies(place, row, signal) {
  const { duplicates, families } = await data.part("copies", row, signal);
  const group = (one, title) => {
    const members = one.members.filter((member) => !data.isHidden(member)), more = one.size - 1 - one.members.length;
    return members.length || more ? [h("p", null, title), h("ul", null, members.map((member) => h("li", null, link({ p: "adapter", a: member }, name(member)))), more ? h("li", { class: "note" }, `and ${number(more)} more`) : "")] : "";
  };
  const copies = duplicates ? group(duplicates, `${sameness(duplicates)}${duplicates.note ? `; ${duplicates.note}` : ""}. The others:`) : "";
  fill(place, h("h2", null, "Duplicates and family"), copies || h("p", { class: "note" }, "It has no duplicates here."), families ? group(families, [name(families.family), `: ${number(families.size)} of one owner, ${families.why}. The others:`]) : "");
}
