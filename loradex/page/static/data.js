// The documents of the catalog: head, columns, details. Addresses are relative, so that any web server does.

import { compile, needs, parse, basesAsked, holds } from "./filter.js";

const SHARED = 100;
const PARTS = new Map();
const OWN = ["own_tags", "note", "hidden"];
export let head = null;
export const columns = new Map();
let rules = "ours";
let loading = new Map();

async function answer(url, options) {
  const response = await fetch(url, options);
  if (!response.ok) {
    let text = `${url.split("?")[0]} answers ${response.status}.`;
    try { text = (await response.json()).error ?? text; } catch { /* not JSON */ }
    throw Object.assign(new Error(text), { status: response.status });
  }
  return response;
}

// That the address asks for what is not there: no fault of the page.
export const missing = (text) => Object.assign(new Error(text), { status: 404 });

export async function start() {
  head = await (await answer("head.json")).json();
  columns.clear();
  loading = new Map();
  PARTS.clear();
  written.clear();
  await Promise.all([columnsOf("list.json"), own()]);
}

// What the user wrote: a column of nothing where that is nothing.
async function own() {
  if (OWN.some((key) => head.own[key])) return columnsOf("own.json");
  const codes = (code) => new Int32Array(head.adapters).fill(code);
  columns.set("own_tags", new Column({ words: [], sets: [[]], codes: codes(0) }, fieldOf("own_tags")));
  columns.set("note", new Column({ words: [], codes: codes(-1) }, fieldOf("note")));
  columns.set("hidden", new Column({ words: [false], codes: codes(0) }, fieldOf("hidden")));
  return undefined;
}

async function columnsOf(file) {
  const data = await document_(file);
  for (const [key, column] of Object.entries(data.columns)) columns.set(key, new Column(column, fieldOf(key)));
  if (data.objections) {
    head.objections = new Map(data.objections);
    columns.set("uses", derived("license", (license) => {
      const objections = head.objections.get(license) ?? [];
      return head.uses.filter((_, at) => !objections[at]);
    }, true));
    const names = columns.get("adapter"), owners = columns.get("owner");
    columns.set("name", new Column({ values: Array.from({ length: head.adapters }, (_, row) => {
      const [name, owner] = [names.at(row), owners.at(row)];
      return owner ? name.slice(owner.length + 1) : name;
    }) }, fieldOf("name")));
    judge(rules);
  }
}

// The verdict of each adapter by a set of rules.
export function judge(name) {
  rules = Object.hasOwn(head.rules, name) ? name : "ours";
  const refusing = new Set(head.rules[rules]);
  columns.set("verdict", derived("reasons", (reasons) => (reasons.some((one) => refusing.has(one)) ? "skipped" : "accepted"), false));
}

export const rulesInUse = () => rules;
export const more = () => once("more.json", () => columnsOf("more.json"));
const fieldOf = (key) => head.fields.find((field) => field.key === key) ?? null;

// A column whose values follow from those of another, one for each of its codes.
function derived(key, make, many) {
  const source = columns.get(key), field = fieldOf(key === "license" ? "uses" : "verdict");
  const groups = source.sets ? source.sets.map((codes) => codes.map((code) => source.words[code])) : source.words ?? null;
  if (!groups) {
    const words = [...new Set(source.values)];
    const places = new Map(words.map((word, at) => [word, at]));
    return assemble(words.map(make), source.values.map((value) => places.get(value)), field, many);
  }
  const values = groups.map(make), codes = Int32Array.from(source.codes);
  if (codes.some((code) => code < 0)) {
    values.push(make(null));
    for (let row = 0; row < codes.length; row++) if (codes[row] < 0) codes[row] = values.length - 1;
  }
  return assemble(values, codes, field, many);
}

function assemble(values, codes, field, many) {
  if (!many) {
    const words = [...new Set(values)];
    const place = values.map((value) => words.indexOf(value));
    return new Column({ words, codes: Int32Array.from(codes, (code) => place[code]) }, field);
  }
  const words = [...new Set(values.flat())];
  return new Column({ words, sets: values.map((set) => set.map((word) => words.indexOf(word))), codes }, field);
}

export class Column {
  constructor({ words, sets, codes, values }, field) {
    Object.assign(this, { words, sets, values, field, codes: codes && Int32Array.from(codes) });
  }
  // The value of a row: null where it is missing, a list in a column of lists.
  at(row) {
    if (this.values) return this.values[row];
    const code = this.codes[row];
    if (this.sets) return this.sets[code].map((one) => this.words[one]);
    return code < 0 ? null : this.words[code];
  }
  // A function that tells for a row whether one of its values passes a test.
  test(passes) {
    const { words, sets, codes, values, field } = this;
    const absent = field && field.absent !== null && !field.many ? passes(field.absent) : false;
    if (values) return (row) => (values[row] === null ? absent : passes(values[row]));
    const table = Uint8Array.from(words, (word) => (passes(word) ? 1 : 0));
    if (sets) {
      const some = Uint8Array.from(sets, (set) => (set.some((code) => table[code]) ? 1 : 0));
      return (row) => some[codes[row]] === 1;
    }
    return (row) => (codes[row] < 0 ? absent : table[codes[row]] === 1);
  }
  // The column with other values in some rows, as [row, value].
  changed(rows) {
    const copy = new Column({ words: this.words && [...this.words], sets: this.sets && [...this.sets], codes: this.codes, values: this.values && [...this.values] }, this.field);
    const code = (word) => { const at = copy.words.indexOf(word); return at < 0 ? copy.words.push(word) - 1 : at; };
    for (const [row, value] of rows)
      if (copy.values) copy.values[row] = value;
      else copy.codes[row] = copy.sets ? copy.sets.push(value.map(code)) - 1 : value === null ? -1 : code(value);
    return copy;
  }
  // The rows in ascending order of values, missing ones last; made once.
  get order() {
    if (this._order) return this._order;
    const n = this.values ? this.values.length : this.codes.length;
    const rows = Array.from({ length: n }, (_, row) => row);
    if (this.sets) return (this._order = rows);
    let key = this.values ?? null;
    if (!key || typeof key.find((value) => value !== null) === "string") {
      const words = [...new Set(key ?? this.words)].filter((word) => word !== null);
      words.sort(typeof words[0] === "number" ? (a, b) => a - b : undefined);
      const place = new Map(words.map((word, at) => [word, at]));
      key = key ? key.map((value) => place.get(value)) : Array.from(this.codes, (code) => place.get(this.words[code]));
    }
    const value = Float64Array.from(key, (one) => (one === null || one === undefined ? Infinity : one));
    return (this._order = rows.sort((a, b) => value[a] - value[b] || a - b));
  }
}

function once(name, make) {
  if (!loading.has(name)) loading.set(name, make().catch((error) => { loading.delete(name); throw error; }));
  return loading.get(name);
}

const kept = new Map();
export async function document_(name, type = "json", signal = undefined) {
  const key = `${head.stamp}/${name}`;
  if (!kept.has(key)) {
    if (kept.size > 60) kept.delete(kept.keys().next().value);
    kept.set(key, answer(`d/${key}`, { signal }).then((response) => response[type === "json" ? "json" : "arrayBuffer"]())
      .catch((error) => { kept.delete(key); throw error; }));
  }
  return kept.get(key);
}

async function unpacked(name) {
  if (!PARTS.has(name)) {
    if (PARTS.size > 20) PARTS.delete(PARTS.keys().next().value);
    PARTS.set(name, answer(`d/${head.stamp}/${name}`).then(async (response) => {
      const bytes = await response.arrayBuffer(), [first, second] = new Uint8Array(bytes, 0, 2);
      // A server may have undone the compression already.
      if (first !== 0x1f || second !== 0x8b) return new Response(bytes).json();
      return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
    }));
  }
  return PARTS.get(name);
}

// A document of one adapter by its place in the list: "adapter", "nearest" or "copies".
export async function part(kind, row, signal) {
  if (head.host) return document_(`${kind}/${row}.json`, "json", signal);
  return (await unpacked(`${kind === "adapter" ? "adapters" : kind}/${Math.floor(row / SHARED)}.json.gz`))[row % SHARED];
}

let places = null;
export function place(adapter) {
  if (places?.stamp !== head.stamp) {
    const names = columns.get("adapter");
    places = { stamp: head.stamp, map: new Map(Array.from({ length: head.adapters }, (_, row) => [names.at(row), row])) };
  }
  return places.map.get(adapter);
}

export async function ask(name, params) {
  return (await answer(`api/${name}?${new URLSearchParams(params)}`)).json();
}

export const canSave = () => Boolean(head.host) && !head.host.read_only;
// Saves a pool ("pools") or what the user writes about adapters ("notes").
export async function save(what, value) {
  const response = await answer(`api/${what}`, {
    method: "POST", body: JSON.stringify(value),
    headers: { "content-type": "application/json", "x-loradex-token": head.host.token },
  });
  return response.json();
}

// What was written since the documents were made, by adapter: the columns are changed, not loaded again.
export const written = new Map();

// Loads what was made before something was written; for documents that depend on it.
export const renew = () => (written.size ? start() : undefined);
const isWritten = (value) => Boolean(value?.length ?? value);
export async function annotate(adapters, changes) {
  const { rows } = await save("notes", { adapters, ...changes });
  for (const row of rows) written.set(row.adapter, row);
  rewrite(rows);
  document.dispatchEvent(new CustomEvent("annotated"));
}
function rewrite(rows) {
  const known = rows.filter((row) => place(row.adapter) !== undefined);
  for (const key of OWN) {
    head.own[key] ||= known.filter((row) => isWritten(row[key])).length;
    columns.set(key, columns.get(key).changed(known.map((row) => [place(row.adapter), row[key]])));
  }
}

// What the user hid is left out of every list of adapters, which says so.
export const isHidden = (adapter) => place(adapter) !== undefined && columns.get("hidden").at(place(adapter)) === true;
export const hiddenCount = (passes) => (head.own.hidden ? rowsOf(marksOf(columns.get("hidden").test(Boolean)).marks).filter(passes).length : 0);
export function hiddenNote(n = hiddenCount(() => true), of = "") {
  return n ? `${n.toLocaleString("en-US")} ${of}hidden by you ${n === 1 ? "is" : "are"} left out.` : "";
}

const cards = new Map();
async function inCards(word) {
  if (!head.host) return () => false;
  const key = `${head.stamp} ${word}`;
  if (!cards.has(key)) cards.set(key, ask("word", { w: word }).then((rows) => {
    const marks = new Uint8Array(head.adapters);
    for (const row of rows) marks[row] = 1;
    return (row) => marks[row] === 1;
  }));
  return cards.get(key);
}

// The test of rows for a filter, its query and notes on it; throws FilterError.
export async function filter(text) {
  const query = parse(text, head.fields), { keys, words } = needs(query);
  if ([...keys].some((key) => !columns.has(key))) await more();
  const tests = new Map(await Promise.all([...words].map(async (word) => [word, await inCards(word)])));
  const notes = [];
  if (words.size && !head.host) notes.push("Words are looked for in names and tags: this copy has no search of cards.");
  const bases = columns.get("base").words ?? columns.get("base").values;
  for (const asked of basesAsked(query))
    if (!bases.some((base) => base !== null && holds(asked)(base))) notes.push(`No base model here is called ${asked.text}.`);
  const all = compile(query, (key) => columns.get(key), (word) => tests.get(word)), asksHidden = keys.has("hidden");
  if (asksHidden || !head.own.hidden) return { query, notes, asksHidden, passes: all, hides: () => false };
  const hidden = columns.get("hidden").test(Boolean);
  return { query, notes, asksHidden, passes: (row) => !hidden(row) && all(row), hides: (row) => hidden(row) && all(row) };
}

// The rows that pass, as marks and their number.
export function marksOf(passes) {
  const marks = new Uint8Array(head.adapters);
  let count = 0;
  for (let row = 0; row < marks.length; row++) if (passes(row)) { marks[row] = 1; count += 1; }
  return { marks, count };
}

// The rows that are marked, in the order of the list.
export function rowsOf(marks) {
  const rows = [];
  for (let row = 0; row < marks.length; row++) if (marks[row]) rows.push(row);
  return rows;
}

export const objectionsOf = (row) => head.objections.get(columns.get("license").at(row)) ?? [];
