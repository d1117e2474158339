// Duplicates by level, and families: one owner's series and the checkpoints of one run.

import * as data from "./data.js";
import { command, fill, h, link, name, number, sameness } from "./dom.js";

// Groups that are listed at first, so that families are not far below, and those that are added at a time.
const FIRST = 20, MOST = 200;

function long(groups, draw) {
  const box = h("div");
  let n = FIRST;
  const put = () => fill(box, groups.slice(0, n).map(draw), n < groups.length ? h("button", { type: "button", onclick: () => { n += MOST; put(); } }, `show ${number(Math.min(MOST, groups.length - n))} of ${number(groups.length - n)} more`) : "");
  put();
  return box;
}

export async function show(box) {
  box.dataset.title = "Duplicates and families";
  fill(box, h("h1", null, "Duplicates and families"), h("p", { class: "note" }, "Comparing…"));
  const groups = await data.document_("groups.json");
  const member = (one) => { const row = data.place(one), verdict = row === undefined ? "" : data.columns.get("verdict").at(row); return h("li", null, row === undefined ? name(one) : link({ p: "adapter", a: one }, name(one)), verdict === "skipped" ? h("span", { class: "note" }, " skipped") : ""); };
  const members = (list) => h("ul", null, list.slice(0, 30).map(member), list.length > 30 ? h("li", { class: "note" }, `and ${number(list.length - 30)} more`) : "");
  const shown = (list) => list.map((group) => { const members = group.members.filter((one) => !data.isHidden(one)); return members.length < group.members.length ? { ...group, members, size: members.length } : group; })
    .filter((group) => group.size > 1).sort((a, b) => b.size - a.size);
  const copies = shown(groups.duplicates), series = shown(groups.families);
  fill(box, h("h1", null, "Duplicates and families"), h("p", { class: "note" }, data.hiddenNote()),
    h("section", null, h("h2", null, `${copies.length ? number(copies.length) : "No"} ${copies.length === 1 ? "group" : "groups"} of the same or nearly the same weights`), command("duplicates", "--verdict", "any"), long(copies, (group) => h("details", { open: copies.length < 20 }, h("summary", null, h("strong", null, name(group.members[0])), ` · ${sameness(group)}`), group.note ? h("p", { class: "note" }, group.note) : "", members(group.members)))),
    h("section", null, h("h2", null, `${series.length ? number(series.length) : "No"} ${series.length === 1 ? "family" : "families"}`), command("duplicates", "--level", "family", "--verdict", "any"), long(series, (group) => h("details", { open: series.length < 20 }, h("summary", null, h("strong", null, name(group.family)), ` · ${number(group.size)} adapters · ${group.why}`), members(group.members)))));
}
