// What the user writes about adapters: tags, notes and hidden marks, kept in the catalog whatever a crawl finds.

import * as data from "./data.js";
import { command, fill, h, link, name, say } from "./dom.js";
import { valueText } from "./filter.js";

const button = (text, onclick) => h("button", { type: "button", class: "small", onclick }, text);
// A control has the text itself, not what is shown of it.
const control = (node, value) => { node.value = value; return node; };
const tagInput = () => h("input", { maxlength: 100, placeholder: "a tag", "aria-label": "a tag of yours", autocomplete: "off" });

function writer(adapters, done) {
  const problem = h("p", { class: "error", role: "alert" });
  return { problem, write: async (changes, text) => {
    fill(problem);
    try {
      await data.annotate(adapters, changes);
      say(text);
      done();
    } catch (error) { fill(problem, error.message); }
  } };
}

// The section of one adapter's page; empty where nothing is written and nothing can be.
export function section(detail) {
  const box = h("section", { class: "own" }), adapter = detail.adapter;
  const draw = () => {
    const { own_tags: tags, note, hidden } = data.written.get(adapter) ?? detail;
    if (!data.canSave() && !tags.length && !note && !hidden) return box;
    const { problem, write } = writer([adapter], draw), input = tagInput(), canSave = data.canSave();
    const text = control(h("textarea", { maxlength: 10000, rows: 2, "aria-label": "your note", placeholder: "a note of yours" }), note ?? "");
    return fill(box, h("h2", null, "Yours", hidden ? h("span", { class: "note" }, " · hidden: lists leave it out") : ""),
      h("form", { class: "line", onsubmit: (event) => { event.preventDefault(); if (input.value.trim()) write({ tags: [input.value] }, "Tagged."); } },
        tags.map((tag) => h("span", { class: "badge" }, link({ p: "list", where: `mytag:${valueText(tag.toLowerCase())}` }, name(tag)), canSave ? h("button", { type: "button", class: "link", "aria-label": `remove the tag ${tag}`, onclick: () => write({ remove_tags: [tag] }, "Removed.") }, "×") : "")),
        canSave ? [input, h("button", { type: "submit", class: "small" }, "add"), " ", button(hidden ? "show in lists" : "hide", () => write({ hidden: !hidden }, hidden ? "Shown." : "Hidden."))] : ""),
      canSave ? h("p", { class: "line" }, text, button("save the note", () => write({ note: text.value.trim() }, "Saved.")), note ? button("remove it", () => write({ note: "" }, "Removed.")) : "") : note ? h("p", null, name(note)) : "",
      problem, tags.length ? command("tag", adapter, ...tags) : "");
  };
  draw();
  return box;
}

// The same for all that are marked.
export function panel(adapters) {
  const { problem, write } = writer(adapters, () => {}), input = tagInput();
  const note = h("input", { class: "note-text", maxlength: 10000, placeholder: "a note", "aria-label": "a note of yours", autocomplete: "off" }), tag = () => input.value.trim(), text = () => note.value.trim();
  return h("form", { class: "own line", onsubmit: (event) => event.preventDefault() },
    input, button("add", () => tag() && write({ tags: [tag()] }, "Tagged.")), button("remove", () => tag() && write({ remove_tags: [tag()] }, "Removed.")),
    note, button("write", () => text() && write({ note: text() }, "Written.")), button("remove notes", () => write({ note: "" }, "Removed.")),
    button("hide", () => write({ hidden: true }, "Hidden.")), button("show", () => write({ hidden: false }, "Shown.")), problem);
}
