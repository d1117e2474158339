// Nodes from values. Text reaches the document as text alone; what could steer its display is shown as an escape.

const UNSAFE = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;
const SVG = "http://www.w3.org/2000/svg";

export const clean = (text) => String(text).replace(UNSAFE, (sign) => {
  const code = sign.charCodeAt(0);
  return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
});

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : clean(value));
  }
  append(node, children);
  return node;
}

export function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    node.append(child instanceof Node ? child : document.createTextNode(clean(child)));
  }
}

// An element; `on…` attributes are listeners, children are nodes or texts.
export const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);
export const fill = (node, ...children) => { node.replaceChildren(); append(node, children); return node; };

// A name of foreign origin, whose direction of writing ends with it.
export const name = (text) => h("bdi", null, text);
export const link = (params, ...children) => h("a", { href: `?${new URLSearchParams(params)}` }, ...children);

export function say(text) { fill(document.getElementById("live"), text); }

export function copyButton(text, label = "copy") {
  const button = h("button", { type: "button", class: "small", onclick: async () => {
    try {
      await navigator.clipboard.writeText(typeof text === "function" ? text() : text);
      say("Copied.");
      button.textContent = "copied";
    } catch { button.textContent = "select and copy"; }
    setTimeout(() => { button.textContent = label; }, 1500);
  } }, label);
  return button;
}

// The command that prints what a view shows, as a shell reads it.
export const shell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
export const command = (...words) => {
  const text = `loradex ${words.filter((word) => word !== null && word !== "").map(shell).join(" ")}`;
  return h("p", { class: "command" }, h("code", null, `$ ${text}`), " ", copyButton(text));
};

export const number = (value) => (value === null || value === undefined ? "" : value.toLocaleString("en-US"));
export const short = (value) => (value === null || value === undefined || value === "" ? "" :
  !Number.isFinite(value) ? String(value) : Number.isInteger(value) && Math.abs(value) < 1e6 ? number(value) :
    Math.abs(value) >= 1e9 ? `${(value / 1e9).toPrecision(3)}B` : Math.abs(value) >= 1e6 ? `${(value / 1e6).toPrecision(3)}M` :
      String(Number(value.toPrecision(4))));
export const day = (seconds) => (seconds === null || seconds === undefined ? "" : new Date(seconds * 1000).toISOString().slice(0, 10));
export const cosine = (value) => (value === null || value === undefined ? "–" : (Math.round(value * 100) / 100 || 0).toFixed(2));

// A score, so that those below one another have the same decimals.
export const score = (value) => (typeof value === "number" && Math.abs(value) < 10 ? value.toFixed(3) : short(value));

const NUMBER = /^-?[\d,]+(\.\d+)?(e[-+]?\d+)?[MB]?$/;
// Texts that need room on a phone.
const LONG = 20;
// How the adapters of a group of duplicates are the same.
const SAME = { file: "same file", tensor: "same tensors", delta: "same update" };
export const sameness = (group) => `${number(group.size)} with the ${SAME[group.level]}${group.cosine === null ? "" : ` · weakest cosine ${cosine(group.cosine)}${group.exact ? "" : " (sketched)"}`}`;

// A table with its caption, which stays in view where the table is wider; columns without any text are left out, and those
// of numbers stand to the right.
export function table(head, rows, caption) {
  const columns = head.map((_, at) => at).filter((at) => !rows.length || rows.some((cells) => cells[at] !== "" && cells[at] !== null && cells[at] !== undefined));
  const texts = (at) => rows.map((cells) => (cells[at] instanceof Node ? cells[at].textContent : String(cells[at] ?? ""))).filter(Boolean);
  const numbers = new Set(columns.filter((at) => texts(at).length && texts(at).every((text) => NUMBER.test(text))));
  const kind = (at, cell) => (numbers.has(at) ? "number" : typeof cell === "string" && cell.length > LONG ? "long" : null);
  return [h("p", { class: "caption" }, caption), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", { "aria-label": caption },
      h("thead", null, h("tr", null, columns.map((at) => h("th", { scope: "col", class: kind(at) }, head[at])))),
      h("tbody", null, rows.map((cells) => h("tr", null, columns.map((at) => h("td", { class: kind(at, cells[at]) }, cells[at])))))))];
}

export function download(text, file, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: file }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

export const debounce = (wait, call) => {
  let timer;
  return (...values) => { clearTimeout(timer); timer = setTimeout(() => call(...values), wait); };
};
