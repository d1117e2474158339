// The shell: which view the address names, the way between views, and what all of them share.

import * as data from "./data.js";
import { h, fill, link, say } from "./dom.js";

const VIEWS = {
  list: ["Adapters", () => import("./list.js")],
  map: ["Map", () => import("./map.js")],
  compare: ["Compare", () => import("./compare.js")],
  pools: ["Pools", () => import("./pools.js")],
  scores: ["Scores", () => import("./scores.js")],
  groups: ["Duplicates", () => import("./groups.js")],
  crawls: ["Crawls", () => import("./crawls.js")],
};
const BELOW = { adapter: ["list", () => import("./adapter.js")], pool: ["pools", () => import("./pools.js")], crawl: ["crawls", () => import("./crawls.js")] };
const MAIN = document.getElementById("main");
// Milliseconds until a view is shown that is not complete.
export const PATIENCE = 400;
let leave = () => {};
let turn = 0;

export const params = () => new URLSearchParams(location.search);

// Changes parameters of the address without leaving the view; null removes one.
export function setParams(changes, { push = false } = {}) {
  const next = params();
  for (const [name, value] of Object.entries(changes))
    if (value === null || value === "") next.delete(name);
    else next.set(name, value);
  const url = `?${next}`;
  if (url === location.search) return;
  history[push ? "pushState" : "replaceState"](null, "", url);
}

export function go(values) {
  history.pushState(null, "", `?${values instanceof URLSearchParams ? values : new URLSearchParams(values)}`);
  return show();
}

// The adapters that are marked, kept for this tab.
export const selection = {
  names: new Set(JSON.parse(sessionStorage.getItem("selection") ?? "[]")),
  listeners: new Set(),
  set(name, marked) {
    if (marked) this.names.add(name);
    else this.names.delete(name);
    this.changed();
  },
  add(names) { for (const name of names) this.names.add(name); this.changed(); },
  clear() { this.names.clear(); this.changed(); },
  changed() {
    sessionStorage.setItem("selection", JSON.stringify([...this.names]));
    drawFoot();
    for (const listener of this.listeners) listener();
  },
};

function drawFoot() {
  const names = [...selection.names], foot = document.getElementById("foot");
  if (!names.length) return fill(foot);
  const few = names.length >= 2 && names.length <= 6;
  return fill(foot, h("strong", null, `${names.length} selected`), " ",
    few ? h("a", { class: "button", href: `?${new URLSearchParams([["p", "compare"], ...names.map((name) => ["a", name])])}` }, "compare") :
      h("span", { class: "note" }, names.length > 6 ? "compare takes six" : "mark another one to compare"),
    h("a", { class: "button", href: "?p=pools&new=1" }, "make a pool"),
    h("button", { type: "button", onclick: () => navigator.clipboard.writeText(names.join("\n")).then(() => say("Names copied.")) }, "copy names"),
    data.canSave() ? h("button", { type: "button", onclick: async () => { const open = foot.querySelector(".own"), { panel } = await import("./own.js"); if (open) open.remove(); else foot.append(panel(names)); } }, "tag, note, hide") : "",
    h("button", { type: "button", onclick: () => selection.clear() }, "clear"));
}

function drawTop(view) {
  const current = view in BELOW ? BELOW[view][0] : view;
  const rules = h("select", { id: "rules", onchange: (event) => { setParams({ rules: event.target.value === "ours" ? null : event.target.value }, { push: true }); show(); } },
    Object.keys(data.head.rules).map((name) => h("option", { selected: name === data.rulesInUse() }, name)));
  const kept = data.rulesInUse() === "ours" ? {} : { rules: data.rulesInUse() };
  fill(document.getElementById("top"), h("a", { class: "name", href: `?${new URLSearchParams({ p: "list", ...kept })}` }, "loradex"),
    h("nav", { "aria-label": "Views" }, Object.entries(VIEWS).map(([name, [title]]) => {
      const place = link({ p: name, ...kept }, title);
      if (name === current) place.setAttribute("aria-current", "page");
      return place;
    })),
    h("label", { class: "rules", title: "Which reasons refuse an adapter" }, "rules ", rules));
}

async function show() {
  const mine = ++turn, address = params(), view = address.get("p") ?? "list";
  leave();
  leave = () => {};
  const known = view in VIEWS || view in BELOW;
  try {
    data.judge(address.get("rules") ?? "ours");
    drawTop(view);
    const module = await (known ? (VIEWS[view] ?? BELOW[view])[1]() : Promise.reject(data.missing(`The page has no view "${view}".`)));
    if (mine !== turn) return;
    const box = h("div", { class: view, "aria-busy": "true" });
    // A view that takes long is seen as far as it is, rather than the one before; only a complete one is a .view.
    const place = () => { if (mine === turn && box.parentNode !== MAIN) fill(MAIN, box); };
    const waiting = setTimeout(() => { if (!box.childElementCount) fill(box, h("p", { class: "note" }, "Reading…")); place(); }, PATIENCE);
    const end = await module.show(box, address, view).finally(() => clearTimeout(waiting));
    if (mine !== turn) return end?.();
    box.removeAttribute("aria-busy");
    box.classList.add("view");
    place();
    leave = typeof end === "function" ? end : () => {};
    document.title = `${box.dataset.title ?? VIEWS[view]?.[0] ?? view} · loradex`;
    document.dispatchEvent(new CustomEvent("shown", { detail: view }));
    box.dispatchEvent(new CustomEvent("placed"));
  } catch (error) {
    if (error.status === 404 && data.head?.host && /^The catalog has changed;/.test(error.message)) {
      await data.start();
      return show();
    }
    fill(MAIN, h("div", { class: "view" }, h("h1", null, "This cannot be shown"), h("p", { class: "error", role: "alert" }, error.message), h("p", null, link({ p: "list" }, "All adapters"))));
    if (!error.status) console.error(error);
  }
}

document.addEventListener("click", (event) => {
  const target = event.target.closest?.("a[href^='?']");
  if (!target || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(new URLSearchParams(target.getAttribute("href").slice(1))).then(() => { MAIN.focus({ preventScroll: true }); scrollTo(0, 0); });
});
addEventListener("popstate", () => show());

// Views import this module, which must therefore not wait for them.
data.start().then(() => { drawFoot(); return show(); }).catch((error) => {
  fill(MAIN, h("p", { class: "error", role: "alert" }, `The catalog cannot be read: ${error.message}`));
});
