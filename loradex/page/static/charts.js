// Drawings as SVG: heat maps on scales that begin at nothing, and curves. Colour is never the only sign: cells have titles.

import { h, svg, short } from "./dom.js";

const ORDER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
// From nothing to the largest value; each stop is red, green, blue.
const STOPS = [[240, 243, 248], [190, 211, 236], [120, 165, 214], [52, 108, 173], [14, 48, 102]];
const DARK = [[34, 39, 48], [38, 66, 104], [52, 108, 173], [120, 165, 214], [214, 230, 250]];
export const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;

// The colour of a share of the whole scale, 0 to 1.
export function shade(share) {
  const stops = isDark() ? DARK : STOPS, at = Math.max(0, Math.min(1, share)) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(at));
  return stops[low].map((from, i) => Math.round(from + (stops[low + 1][i] - from) * (at - low)));
}
// The ink that stands out more from a colour, black or white, by the relative luminance of WCAG: at least 4.58 to 1.
export function inkOn(colour) {
  const [r, g, b] = colour.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}
export const rgb = (colour) => `rgb(${colour.join(",")})`;

// The layer and kind of a module by its name.
function placeOf(module) {
  const parts = module.split("."), layer = parts.find((part) => /^\d+$/.test(part)), kind = [...parts].reverse().find((part) => !/^\d+$/.test(part)) ?? module;
  return { layer: layer === undefined ? -1 : Number(layer), kind };
}

// Norms by layer and kind of module, as the root of the sum of squares where several share a cell.
export function normTable(spectrum) {
  const cells = new Map(), kinds = new Set(), layers = new Set();
  spectrum.modules.forEach((module, at) => {
    const { layer, kind } = placeOf(module), key = `${kind} ${layer}`;
    kinds.add(kind);
    layers.add(layer);
    cells.set(key, Math.hypot(cells.get(key) ?? 0, spectrum.norms[at] ?? 0));
  });
  const rank = (kind) => (ORDER.includes(kind) ? ORDER.indexOf(kind) : ORDER.length);
  return { cells, kinds: [...kinds].sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1)), layers: [...layers].sort((a, b) => a - b) };
}

export function normMap(spectrum, { largest = null, title = "norm of the update by layer and module" } = {}) {
  const { cells, kinds, layers } = normTable(spectrum), top = largest ?? Math.max(...cells.values(), 0);
  const size = 16, left = 92, width = left + layers.length * size + 4, height = kinds.length * size + 26;
  const step = Math.ceil(layers.length / 12);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${title}, up to ${short(top)}`, class: "heat" },
    kinds.map((kind, row) => [svg("text", { x: left - 6, y: row * size + 12, "text-anchor": "end" }, kind.length > 14 ? `${kind.slice(0, 13)}…` : kind),
      layers.map((layer, column) => {
        const value = cells.get(`${kind} ${layer}`);
        return svg("rect", { x: left + column * size, y: row * size, width: size - 1, height: size - 1, fill: value === undefined ? "none" : rgb(shade(top ? value / top : 0)), stroke: value === undefined ? "currentColor" : "none", "stroke-opacity": 0.12 },
          svg("title", null, value === undefined ? `${kind}, layer ${layer}: no module` : `${kind}, ${layer < 0 ? "no layer" : `layer ${layer}`}: ${short(value)}`));
      })]),
    layers.map((layer, column) => (column % step ? null : svg("text", { x: left + column * size + 7, y: kinds.length * size + 12, "text-anchor": "middle" }, layer < 0 ? "none" : layer))));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, drawing, scaleBar(0, top, "norm"));
}

export function scaleBar(low, high, label) {
  const steps = 24;
  return svg("svg", { viewBox: "0 0 220 26", width: 220, height: 26, role: "img", "aria-label": `${label}, colours from ${short(low)} to ${short(high)}`, class: "scale" },
    Array.from({ length: steps }, (_, at) => svg("rect", { x: at * 6, y: 0, width: 6, height: 9, fill: rgb(shade(at / (steps - 1))) })),
    svg("text", { x: 0, y: 22 }, short(low)), svg("text", { x: steps * 6, y: 22, "text-anchor": "end" }, short(high)), svg("text", { x: steps * 6 + 8, y: 9 }, label));
}

// Singular values over the largest, the median of each kind of module with its range.
export function spectra(spectrum) {
  const kinds = new Map();
  spectrum.modules.forEach((module, at) => {
    const values = spectrum.values[at], first = values[0];
    if (!first) return;
    const { kind } = placeOf(module);
    if (!kinds.has(kind)) kinds.set(kind, []);
    kinds.get(kind).push(values.map((value) => (value ?? 0) / first));
  });
  const rank = (kind) => (ORDER.includes(kind) ? ORDER.indexOf(kind) : ORDER.length);
  const width = 110, height = 64;
  return h("div", { class: "spectra" }, [...kinds].sort((a, b) => rank(a[0]) - rank(b[0]) || (a[0] < b[0] ? -1 : 1)).slice(0, 12).map(([kind, rows]) => {
    // Beyond the rank there are none.
    const n = Math.max(...rows.map((row) => row.findLastIndex((value) => value > 0))) + 1, at = (i, q) => { const column = rows.map((row) => row[i]).sort((a, b) => a - b); return column[Math.min(column.length - 1, Math.floor(q * column.length))]; };
    const x = (i) => 4 + (i / Math.max(1, n - 1)) * (width - 8), y = (value) => 4 + (1 - value) * (height - 20);
    const line = (q) => Array.from({ length: n }, (_, i) => `${x(i).toFixed(1)},${y(at(i, q)).toFixed(1)}`);
    const medians = Array.from({ length: n }, (_, i) => short(at(i, 0.5))).join(", ");
    return h("figure", null, svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${kind}: median singular values over the largest ${medians}` },
      svg("line", { x1: 4, x2: width - 4, y1: y(0), y2: y(0), class: "axis" }), svg("polygon", { points: [...line(0), ...line(0.999).reverse()].join(" "), class: "band" }), svg("polyline", { points: line(0.5).join(" "), class: "curve" }),
      svg("text", { x: 4, y: height - 3 }, "σ₁"), svg("text", { x: width - 4, y: height - 3, "text-anchor": "end" }, `σ${n}`)), h("figcaption", null, kind));
  }));
}

// Cosines of the sketches of two details.
export function sketchCosine(left, right) {
  if (!left || !right || left.length !== right.length) return null;
  const [a, b] = [left, right].map((text) => Int8Array.from(atob(text), (sign) => sign.charCodeAt(0)));
  let dot = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) { dot += a[i] * b[i]; aa += a[i] * a[i]; bb += b[i] * b[i]; }
  return aa && bb ? dot / Math.sqrt(aa * bb) : null;
}
