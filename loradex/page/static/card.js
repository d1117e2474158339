// A card as nodes: headings, lists, tables, code. No HTML, no images; links to http(s) alone, which tell nobody where from.

import { h, clean } from "./dom.js";

const MOST_BLOCKS = 4000, DEEPEST = 4;
const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+-]*)/, HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/, ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/, DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

// The text without front matter, comments and tags; code keeps its own.
function body(text) {
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  if (lines[0]?.trim() === "---") {
    const end = lines.findIndex((line, at) => at && line.trim() === "---");
    if (end > 0) lines.splice(0, end + 1);
  }
  return lines;
}
const plain = (text) => text.replace(/<!--.*?-->/g, "").replace(/<\/?[a-zA-Z][^<>]{0,500}>/g, "");

export function card(text) {
  const box = h("div", { class: "card" });
  blocks(body(text), box, 0);
  return box;
}

function blocks(lines, box, depth) {
  let at = 0, paragraph = [];
  const flush = () => { if (paragraph.length) { const text = plain(paragraph.join("\n")).trim(); if (text) box.append(h("p", null, inline(text))); paragraph = []; } };
  while (at < lines.length && box.childElementCount < MOST_BLOCKS) {
    const line = lines[at], fence = FENCE.exec(line), heading = HEADING.exec(line), item = ITEM.exec(line);
    if (fence) {
      flush();
      const code = [];
      for (at += 1; at < lines.length && !lines[at].trim().startsWith(fence[1]); at++) code.push(lines[at]);
      at += 1;
      box.append(h("pre", { tabindex: 0 }, h("code", null, code.join("\n"))));
    } else if (heading) {
      flush();
      box.append(h(`h${Math.min(6, heading[1].length + 2)}`, null, inline(plain(heading[2]))));
      at += 1;
    } else if (RULE.test(line)) { flush(); box.append(h("hr")); at += 1; }
    else if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "") && (lines[at + 1] ?? "").includes("-")) {
      flush();
      const rows = [];
      while (at < lines.length && lines[at].includes("|") && rows.length < 500) rows.push(lines[at++]);
      const cells = (row) => plain(row).trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => inline(cell.trim().replaceAll("\\|", "|")));
      box.append(h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of the card" }, h("table", null, h("thead", null, h("tr", null, cells(rows[0]).map((cell) => h("th", { scope: "col" }, cell)))),
        h("tbody", null, rows.slice(2).map((row) => h("tr", null, cells(row).map((cell) => h("td", null, cell))))))));
    } else if (item) {
      flush();
      const ordered = /\d/.test(item[2]), list = h(ordered ? "ol" : "ul"), indent = item[1].length;
      while (at < lines.length) {
        const next = ITEM.exec(lines[at]);
        if (!next || next[1].length < indent) break;
        const inner = [next[3]];
        for (at += 1; at < lines.length && (/^\s{2,}\S/.test(lines[at]) && lines[at].search(/\S/) > indent); at++) inner.push(lines[at].slice(indent + 2));
        const entry = h("li", null, inline(plain(inner[0])));
        if (inner.length > 1 && depth < DEEPEST) blocks(inner.slice(1), entry, depth + 1);
        list.append(entry);
      }
      box.append(list);
    } else if (/^\s{0,3}>/.test(line) && depth < DEEPEST) {
      flush();
      const quoted = [];
      while (at < lines.length && /^\s{0,3}>/.test(lines[at])) quoted.push(lines[at++].replace(/^\s{0,3}> ?/, ""));
      const place = h("blockquote");
      blocks(quoted, place, depth + 1);
      box.append(place);
    } else if (!line.trim()) { flush(); at += 1; }
    else { paragraph.push(line); at += 1; }
  }
  flush();
}

const INLINE = /`([^`\n]{1,2000})`|!\[([^\]]{0,200})\]\([^)\s]{0,2000}\)|\[([^\]]{1,500})\]\((https?:\/\/[^)\s]{1,2000})\)|\[([^\]]{1,500})\]\([^)]{0,2000}\)|<?(https?:\/\/[^\s<>)]{1,2000})>?|\*\*([^*\n]{1,1000})\*\*|(?<![\w*])[*_]([^*_\n]{1,1000})[*_](?![\w*])/g;

function inline(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(from, match.index));
    const [all, code, image, label, url, plainLabel, bare, strong, emphasis] = match;
    nodes.push(code !== undefined ? h("code", null, code) : image !== undefined ? h("span", { class: "note" }, image && `[picture: ${image}]`) :
      label !== undefined ? outside(url, label) : plainLabel !== undefined ? plainLabel : bare !== undefined ? outside(bare, bare) :
        strong !== undefined ? h("strong", null, strong) : h("em", null, emphasis));
    from = match.index + all.length;
  }
  nodes.push(text.slice(from));
  return nodes;
}

export function outside(url, text) {
  let place;
  try { place = new URL(url); } catch { return text; }
  if (!["http:", "https:"].includes(place.protocol)) return text;
  return h("a", { href: clean(place.href), rel: "noreferrer nofollow noopener", title: place.hostname }, text);
}
