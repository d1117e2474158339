// The adapters of a base model in two dimensions: near each other where their weights are.
// Points are drawn into the pixels of a canvas, which for 100,000 is faster than paths; the list beside it is its twin.

import * as data from "./data.js";
import { command, cosine, debounce, fill, h, link, name, number, short } from "./dom.js";
import { go, selection, setParams } from "./app.js";
import { isDark, scaleBar, shade } from "./charts.js";

const NOWHERE = -32768, EXTENT = 32000, MOST_LISTED = 60, MOST_NAMES = 60, NEAR = 12;
const COLOURS = ["owner", "license", "tool", "health", "verdict", "rank", "norm", "downloads", "created"];
const KEYS = { tool: "library" };
// Okabe and Ito's colours, told apart by most people; shapes are in the list's words.
const PALETTE = [[0, 114, 178], [230, 159, 0], [0, 158, 115], [213, 94, 0], [86, 180, 233], [204, 121, 167], [148, 130, 30]];
const OTHER = [140, 140, 140], UNKNOWN = [170, 170, 170];

export async function show(box, address) {
  box.dataset.title = "Map";
  const bases = (data.columns.get("base").words ?? [...new Set(data.columns.get("base").values)]).filter((base) => base !== null);
  const counts = data.head.measured, usual = counts.indexOf(Math.max(...counts));
  let base = bases.indexOf(address.get("base"));
  if (base < 0) base = usual;
  if (base < 0 || counts[base] < 2) return fill(box, h("h1", null, "Map"), h("p", { class: "note" }, "A map takes two adapters of one base model whose weights were read; crawl some with --weights stream."));
  const by = address.get("by") === "delta" ? "delta" : "output", colour = COLOURS.includes(address.get("colour")) ? address.get("colour") : usualColour(bases[base]);
  const canvas = h("canvas", { tabindex: 0, role: "img", "aria-describedby": "map-help", "aria-label": `Map of ${counts[base]} adapters; the list beside it has the same` });
  const over = h("canvas", { "aria-hidden": "true", class: "over" }), tip = h("div", { class: "tip hidden", role: "status" });
  const legend = h("div", { class: "legend" }), list = h("div", { class: "inview" });
  const where = h("input", { type: "search", id: "where", value: address.get("where") ?? "", placeholder: "points that do not match are faint", spellcheck: "false", autocomplete: "off" }), problem = h("p", { class: "error", role: "alert" });
  const choose = (id, title, options, current, change) => h("label", { class: "inline" }, `${title} `, h("select", { id, onchange: (event) => change(event.target.value) }, options.map(([value, text]) => h("option", { value, selected: value === current }, text ?? value))));
  const reload = (changes) => { setParams({ ...changes }, { push: true }); dispatchEvent(new PopStateEvent("popstate")); };
  fill(box, h("h1", null, "Map"),
    h("form", { class: "search", onsubmit: (event) => event.preventDefault() }, h("label", { for: "where" }, "Filter"), where,
      choose("base", "base", bases.map((one, at) => [one, `${one} (${number(counts[at])})`]).filter((_, at) => counts[at] > 1), bases[base], (value) => reload({ base: value, view: null })),
      choose("by", "by", [["output"], ["delta"]], by, (value) => reload({ by: value, view: null })), choose("colour", "colour", COLOURS.map((one) => [one]), colour, (value) => reload({ colour: value }))),
    problem, h("p", { class: "note", id: "map-help" }, "Who is near whom has a meaning; distances between groups have none. Drag or arrow keys move, wheel or + and − zoom, shift-drag marks, click opens."),
    h("div", { class: "columns" }, h("div", { class: "plane" }, canvas, over, tip), h("div", { class: "side" }, legend, list)),
    command("map", "map.svg", "--base", bases[base], "--by", by, "--colour", ["owner", "rank", "norm", "tool", "task", "health", "verdict", "partial"].includes(colour) ? colour : "owner"));

  fill(list, h("p", { class: "note" }, `Laying out ${number(counts[base])} adapters…`));
  const coordinates = new Int16Array(await data.document_(`points/${base}-${by}.bin`, "bytes"));
  const rows = [];
  for (let row = 0; row < data.head.adapters; row++) if (coordinates[2 * row] !== NOWHERE) rows.push(row);
  const names = data.columns.get("adapter"), px = (row) => coordinates[2 * row], py = (row) => coordinates[2 * row + 1];
  const paint = colours(colour, rows);
  const hidden = new Set();
  let marks = null, hiddenByUser = 0, view = readView(address.get("view")), size = [600, 500], hover = -1, lines = [];
  const dense = rows.length > 3000, radius = rows.length > 30000 ? 1.3 : dense ? 2 : rows.length > 300 ? 4 : 6;
  const ratio = Math.min(2, devicePixelRatio || 1);

  const toScreen = (row) => [(px(row) / EXTENT - view.x) * view.zoom * scale() + size[0] / 2, (view.y - py(row) / EXTENT) * view.zoom * scale() + size[1] / 2];
  const scale = () => (Math.min(size[0], size[1]) / 2) * 0.92;
  // Cells of the plane, to find the point below the pointer.
  const CELLS = 128, cells = Array.from({ length: CELLS * CELLS }, () => null);
  const cellOf = (value) => Math.max(0, Math.min(CELLS - 1, Math.floor(((value / EXTENT + 1) / 2) * CELLS)));
  for (const row of rows) { const at = cellOf(py(row)) * CELLS + cellOf(px(row)); (cells[at] ??= []).push(row); }
  const visible = (row) => !hidden.has(paint.group(row));
  const clear = (row) => visible(row) && (!marks || marks[row] === 1);
  // What is faint lies below, then what has no colour of its own.
  const LAYERS = [0, 1, 2], layerOf = (row) => (!clear(row) ? 0 : paint.isRest(row) ? 1 : 2);

  function nearestTo(x, y) {
    const wx = ((x - size[0] / 2) / (view.zoom * scale()) + view.x) * EXTENT, wy = (view.y - (y - size[1] / 2) / (view.zoom * scale())) * EXTENT;
    const reach = (NEAR / (view.zoom * scale())) * EXTENT;
    let best = -1, least = reach * reach;
    for (let cy = cellOf(wy - reach); cy <= cellOf(wy + reach); cy++)
      for (let cx = cellOf(wx - reach); cx <= cellOf(wx + reach); cx++)
        for (const row of cells[cy * CELLS + cx] ?? []) {
          if (!visible(row)) continue;
          const away = (px(row) - wx) ** 2 + (py(row) - wy) ** 2 + (clear(row) ? 0 : least * 0.3);
          if (away < least) { least = away; best = row; }
        }
    return best;
  }

  function draw() {
    const width = Math.round(size[0] * ratio), height = Math.round(size[1] * ratio), context = canvas.getContext("2d");
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const faint = isDark() ? [52, 56, 64] : [222, 224, 228];
    context.clearRect(0, 0, width, height);
    if (dense) stamp(context, width, height, faint);
    else for (const layer of LAYERS)
      for (const row of rows) {
        if (!visible(row) || layerOf(row) !== layer) continue;
        const [x, y] = toScreen(row), [r, g, b] = layer ? paint.colour(row) : faint;
        context.fillStyle = `rgb(${r} ${g} ${b})`;
        context.strokeStyle = isDark() ? "#14171c" : "#fff";
        context.lineWidth = ratio;
        context.beginPath();
        context.arc(x * ratio, y * ratio, radius * ratio, 0, 7);
        context.fill();
        context.stroke();
      }
    drawOver();
  }

  // Discs of some pixels, written into the picture itself.
  function stamp(context, width, height, faint) {
    const image = context.createImageData(width, height), pixels = new Uint32Array(image.data.buffer), r = Math.max(1, Math.round(radius * ratio)), disc = [];
    for (let y = -r; y <= r; y++) for (let x = -r; x <= r; x++) if (x * x + y * y <= r * r + 0.5) disc.push([x, y]);
    const pack = ([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red, dim = pack(faint);
    const kx = (view.zoom * scale() * ratio) / EXTENT, ox = (size[0] / 2 - view.x * view.zoom * scale()) * ratio, oy = (size[1] / 2 + view.y * view.zoom * scale()) * ratio;
    for (const layer of LAYERS)
      for (const row of rows) {
        if (!visible(row) || layerOf(row) !== layer) continue;
        const x = Math.round(px(row) * kx + ox), y = Math.round(oy - py(row) * kx);
        if (x < r || y < r || x >= width - r || y >= height - r) continue;
        const ink = layer ? pack(paint.colour(row)) : dim;
        for (const [dx, dy] of disc) pixels[(y + dy) * width + x + dx] = ink;
      }
    context.putImageData(image, 0, 0);
  }

  function drawOver() {
    const context = over.getContext("2d");
    Object.assign(over, { width: canvas.width, height: canvas.height });
    context.scale(ratio, ratio);
    const ink = isDark() ? "#e8eaee" : "#1b1f26";
    context.font = "12px system-ui, sans-serif";
    const inView = rows.filter((row) => clear(row) && within(row));
    if (inView.length <= MOST_NAMES) drawNames(context, inView, ink);
    for (const row of rows.length < 5000 ? rows : inView.slice(0, 5000)) if (selection.names.has(names.at(row))) ring(context, row, ink, 2);
    for (const [from, to] of lines) {
      context.strokeStyle = ink;
      context.beginPath();
      context.moveTo(...toScreen(from));
      context.lineTo(...toScreen(to));
      context.stroke();
      ring(context, to, ink, 1);
    }
    if (hover >= 0) ring(context, hover, ink, 2);
    if (frame) { context.strokeStyle = ink; context.setLineDash([4, 3]); context.strokeRect(frame[0], frame[1], frame[2] - frame[0], frame[3] - frame[1]); }
  }
  function ring(context, row, ink, width) {
    context.strokeStyle = ink;
    context.lineWidth = width;
    context.beginPath();
    context.arc(...toScreen(row), radius + 3, 0, 7);
    context.stroke();
  }
  // Names where no other one stands yet.
  function drawNames(context, inView, ink) {
    const taken = inView.map((row) => { const [x, y] = toScreen(row); return [x - radius, y - radius, x + radius, y + radius]; });
    context.fillStyle = ink;
    for (const row of inView) {
      const [x, y] = toScreen(row), text = names.at(row).split("/").pop().slice(0, 28), width = context.measureText(text).width;
      const place = [[x + radius + 4, y + 4], [x - radius - 4 - width, y + 4], [x - width / 2, y - radius - 5], [x - width / 2, y + radius + 14]].find(([left, bottom]) =>
        left > 0 && left + width < size[0] && bottom > 12 && bottom < size[1] - 2 && !taken.some(([l, t, r, b]) => left < r && left + width > l && bottom - 12 < b && bottom > t));
      if (!place) continue;
      taken.push([place[0], place[1] - 12, place[0] + width, place[1]]);
      context.fillText(text.replace(/[\u202a-\u202e\u2066-\u2069\u200e\u200f]/g, "·"), ...place);
    }
  }
  const within = (row) => { const [x, y] = toScreen(row); return x >= 0 && y >= 0 && x <= size[0] && y <= size[1]; };

  const drawList = debounce(60, () => {
    const inView = rows.filter((row) => clear(row) && within(row));
    const ranked = inView.length > MOST_LISTED ? [...inView].sort((a, b) => (data.columns.get("downloads").at(b) ?? 0) - (data.columns.get("downloads").at(a) ?? 0)) : inView;
    box.dataset.inView = inView.length;
    fill(list, h("h2", null, `In view: ${number(inView.length)}`), h("ul", { tabindex: 0, "aria-label": "Adapters in view" }, ranked.slice(0, MOST_LISTED).map((row) => h("li", { onmouseenter: () => hoverOn(row), onfocusin: () => hoverOn(row) },
      h("input", { type: "checkbox", checked: selection.names.has(names.at(row)), "aria-label": `mark ${names.at(row)}`, onchange: (event) => selection.set(names.at(row), event.target.checked) }),
      h("span", { class: "dot", "aria-hidden": "true" }, dot(paint.colour(row))), link({ p: "adapter", a: names.at(row) }, name(names.at(row))), colour === "owner" ? "" : h("span", { class: "note" }, ` ${paint.word(row)}`)))),
      inView.length > MOST_LISTED ? h("p", { class: "note" }, `and ${number(inView.length - MOST_LISTED)} more; zoom in`) : "", h("p", { class: "note" }, data.hiddenNote(hiddenByUser)));
  });
  const dot = (ink) => { const place = h("i"); place.style.background = `rgb(${ink.join(" ")})`; return place; };

  function drawLegend() {
    fill(legend, h("h2", null, colour), paint.groups.map(([word, ink, count], at) => h("button", { type: "button", "aria-pressed": String(!hidden.has(at)), onclick: () => { if (!hidden.delete(at)) hidden.add(at); redraw(); drawLegend(); } }, dot(ink), name(word), h("span", { class: "n" }, number(count)))), paint.bar ?? "");
  }
  const keepView = debounce(200, () => setParams({ view: view.zoom === 1 && !view.x && !view.y ? null : [view.x.toFixed(4), view.y.toFixed(4), view.zoom.toFixed(3)].join(",") }));
  function redraw() { draw(); drawList(); }
  let asked = false;
  const soon = () => { if (!asked) { asked = true; requestAnimationFrame(() => { asked = false; redraw(); }); } };

  const askNear = debounce(120, async (row) => {
    const result = await data.part("nearest", row).catch(() => ({ rows: [] }));
    if (hover !== row) return;
    const near = result.rows.filter((one) => !data.isHidden(one.adapter)).map((one) => [data.place(one.adapter), one.score]).filter(([at]) => at !== undefined && coordinates[2 * at] !== NOWHERE).slice(0, 5);
    lines = near.map(([at]) => [row, at]);
    if (near.length) tip.append(h("div", { class: "note" }, `nearest: ${names.at(near[0][0])} (${cosine(near[0][1])})`));
    drawOver();
  });
  function hoverOn(row) {
    if (row === hover) return;
    [hover, lines] = [row, []];
    drawOver();
    if (row < 0) return tip.classList.add("hidden");
    const [x, y] = toScreen(row);
    fill(tip, h("strong", null, name(names.at(row))), h("div", null, `rank ${data.columns.get("rank").at(row) ?? "?"} · ${data.columns.get("license").at(row) ?? "no license"} · norm ${short(data.columns.get("norm").at(row))}`));
    tip.classList.remove("hidden");
    tip.style.left = `${Math.min(Math.max(0, size[0] - 250), x + 12)}px`;
    tip.style.top = `${Math.min(y + 12, Math.max(0, size[1] - 70))}px`;
    return askNear(row);
  }
  function zoomAt(x, y, factor) {
    const zoom = Math.max(0.8, Math.min(400, view.zoom * factor)), k = scale();
    const wx = (x - size[0] / 2) / (view.zoom * k) + view.x, wy = view.y - (y - size[1] / 2) / (view.zoom * k);
    view = { zoom, x: wx - (x - size[0] / 2) / (zoom * k), y: wy + (y - size[1] / 2) / (zoom * k) };
    keepView();
    soon();
  }

  let drag = null, frame = null;
  const pointers = new Map(), at = (event) => { const edge = canvas.getBoundingClientRect(); return [event.clientX - edge.left, event.clientY - edge.top]; };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    drag = { from: at(event), view: { ...view }, moved: false, marking: event.shiftKey };
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    if (!drag) return hoverOn(nearestTo(x, y));
    if (pointers.size === 2) {
      const [a, b] = [...pointers.values()], before = Math.hypot(a[0] - b[0], a[1] - b[1]);
      pointers.set(event.pointerId, [x, y]);
      const [c, d] = [...pointers.values()], after = Math.hypot(c[0] - d[0], c[1] - d[1]);
      drag.moved = true;
      return zoomAt((c[0] + d[0]) / 2, (c[1] + d[1]) / 2, after / (before || 1));
    }
    if (Math.hypot(x - drag.from[0], y - drag.from[1]) > 3) drag.moved = true;
    if (drag.marking) { frame = [...drag.from, x, y]; return drawOver(); }
    const k = drag.view.zoom * scale();
    view = { zoom: drag.view.zoom, x: drag.view.x - (x - drag.from[0]) / k, y: drag.view.y + (y - drag.from[1]) / k };
    keepView();
    return soon();
  });
  canvas.addEventListener("pointerup", (event) => {
    pointers.delete(event.pointerId);
    const was = drag;
    if (pointers.size) return undefined;
    drag = null;
    if (frame) {
      const [l, r] = [frame[0], frame[2]].sort((a, b) => a - b), [t, b] = [frame[1], frame[3]].sort((a, c) => a - c);
      frame = null;
      return selection.add(rows.filter((row) => { const [x, y] = toScreen(row); return clear(row) && x >= l && x <= r && y >= t && y <= b; }).map((row) => names.at(row)));
    }
    if (was?.moved) return undefined;
    const row = nearestTo(...at(event));
    return row >= 0 ? go({ p: "adapter", a: names.at(row) }) : undefined;
  });
  canvas.addEventListener("pointercancel", (event) => { pointers.delete(event.pointerId); drag = frame = null; });
  canvas.addEventListener("pointerleave", () => hoverOn(-1));
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoomAt(...at(event), Math.exp(-event.deltaY / 400)); }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = 0.15 / view.zoom, moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (moves[event.key]) view = { ...view, x: view.x + moves[event.key][0], y: view.y + moves[event.key][1] };
    else if (event.key === "+" || event.key === "=") return zoomAt(size[0] / 2, size[1] / 2, 1.4);
    else if (event.key === "-") return zoomAt(size[0] / 2, size[1] / 2, 1 / 1.4);
    else if (event.key === "0") view = { x: 0, y: 0, zoom: 1 };
    else return undefined;
    event.preventDefault();
    keepView();
    return soon();
  });
  const refilter = async () => {
    try {
      const { passes, hides } = await data.filter(where.value), norms = data.columns.get("norm"), baseOf = data.columns.get("base");
      marks = where.value.trim() || data.head.own.hidden ? data.marksOf(passes).marks : null;
      hiddenByUser = data.hiddenCount((row) => hides(row) && baseOf.at(row) === bases[base] && norms.at(row) !== null);
      setParams({ where: where.value.trim() });
      fill(problem);
      redraw();
    } catch (error) { fill(problem, error.message); }
  };
  where.addEventListener("input", debounce(60, refilter));
  const resize = () => {
    size = [canvas.clientWidth || 600, canvas.clientHeight || 500];
    redraw();
  };
  box.addEventListener("placed", () => { resize(); refilter(); });
  const marked = () => redraw(), scheme = matchMedia("(prefers-color-scheme: dark)");
  selection.listeners.add(marked);
  addEventListener("resize", resize);
  scheme.addEventListener("change", marked);
  drawLegend();
  box.screenOf = (adapter) => toScreen(data.place(adapter));
  return () => { selection.listeners.delete(marked); removeEventListener("resize", resize); scheme.removeEventListener("change", marked); };
}

function readView(text) {
  const [x, y, zoom] = (text ?? "").split(",").map(Number);
  return text && [x, y, zoom].every(Number.isFinite) && zoom > 0 ? { x, y, zoom } : { x: 0, y: 0, zoom: 1 };
}

// Owners tell little where most adapters belong to those without a colour of their own.
function usualColour(base) {
  const owners = data.columns.get("owner"), bases = data.columns.get("base"), counts = new Map();
  for (let row = 0; row < data.head.adapters; row++) if (bases.at(row) === base) counts.set(owners.at(row), (counts.get(owners.at(row)) ?? 0) + 1);
  const sum = (list) => list.reduce((a, b) => a + b, 0), sizes = [...counts.values()].sort((a, b) => b - a);
  return 2 * sum(sizes.slice(0, PALETTE.length)) >= sum(sizes) ? "owner" : "rank";
}

// How points are coloured: groups with their colour and number, or a scale from nothing to the largest value.
function colours(by, rows) {
  const column = data.columns.get(KEYS[by] ?? by);
  if (["rank", "norm", "downloads", "created"].includes(by)) {
    const values = rows.map((row) => column.at(row)).filter((value) => value !== null);
    const low = by === "created" ? values.reduce((a, b) => Math.min(a, b), Infinity) : 0, high = values.reduce((a, b) => Math.max(a, b), 0);
    const log = by !== "created", share = (value) => (high > low ? (log ? Math.log1p(value) / Math.log1p(high) : (value - low) / (high - low)) : 0.5);
    const text = (value) => (by === "created" ? new Date(value * 1000).toISOString().slice(0, 10) : short(value));
    return { groups: [], group: () => 0, isRest: (row) => column.at(row) === null, word: (row) => (column.at(row) === null ? "unknown" : text(column.at(row))), bar: by === "created" ? h("p", { class: "note" }, `from ${text(low)} (light) to ${text(high)}`) : scaleBar(0, high, "logarithmic"),
      colour: (row) => (column.at(row) === null ? UNKNOWN : shade(0.18 + 0.82 * share(column.at(row)))) };
  }
  const counts = new Map();
  for (const row of rows) { const word = column.at(row); counts.set(word, (counts.get(word) ?? 0) + 1); }
  const ranked = [...counts].filter(([word]) => word !== null).sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)), first = ranked.slice(0, PALETTE.length);
  const place = new Map(first.map(([word], at) => [word, at])), rest = ranked.slice(PALETTE.length).reduce((sum, [, n]) => sum + n, 0);
  const groups = [...first.map(([word, n], at) => [word, PALETTE[at], n])];
  const other = rest ? groups.push([`${number(ranked.length - first.length)} others`, OTHER, rest]) - 1 : -1;
  const unknown = counts.has(null) ? groups.push(["unknown", UNKNOWN, counts.get(null)]) - 1 : -1;
  const group = (row) => { const word = column.at(row); return word === null ? unknown : place.get(word) ?? other; };
  return { groups, group, isRest: (row) => group(row) >= first.length, colour: (row) => groups[group(row)][1], word: (row) => column.at(row) ?? "unknown" };
}
