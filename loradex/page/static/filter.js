// The filter language of `loradex adapters --where`, a third face of catalog.query: text -> test of a row.
// tests/page compares it with the Python one, by text, matches and place of error.

const INT64 = 2n ** 63n - 1n;
const MOST = { length: 10000, terms: 250, depth: 20 };
// White space as Python has it, which does not agree with JavaScript about a few signs.
const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const regex = (source, flags = "") => new RegExp(source.replaceAll("\\s", SPACE), "yu" + flags);
const IN_SET = (source, flags) => regex(source, flags);
const AT = {
  space: IN_SET(`[${SPACE}]*`),
  name: IN_SET('([^\\s()|":]+):'),
  word: IN_SET('[^\\s()|"]+'),
  value: IN_SET('[^\\s()|",]+'),
  quoted: IN_SET('"((?:[^"\\\\]|\\\\.)*)"', "s"),
  group: IN_SET(`[${SPACE}]+-*(?:\\(|([^\\s()|":]+):)`),
  compared: IN_SET(
    `([A-Za-z_]+)([${SPACE}]*)(>=|<=|==|!=|<>|=~|!~|~=|:=|=>|=<|[=><~≥≤≠]|(?<=[${SPACE}]):)` +
      `[${SPACE}]*("(?:[^"\\\\]|\\\\.)*"\\*?|'[^']*'|[^\\s()|"]*)`),
  words: IN_SET(
    `([A-Za-z_]+)[${SPACE}]+(not[${SPACE}]+)?(is[${SPACE}]+not|is|in|like|contains|equals|between)` +
      `[${SPACE}]+(\\([^()]*\\)?|"(?:[^"\\\\]|\\\\.)*"|'[^']*'|` +
      `[^\\s()|",]+(?:[${SPACE}]+and[${SPACE}]+[^\\s()|",:]+(?=[${SPACE})|]|$))?)`, "i"),
  turned: IN_SET(`[0-9][0-9.,kKmMbB-]*[${SPACE}]*(?:[<>]=?|[=≥≤])[${SPACE}]*([A-Za-z_]+)`),
};
const NUMBER = /^([+-]?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,3}))?([kKmMbB]?)$/;
const POWERS = { "": 0, k: 3, m: 6, b: 9 };
const PERIOD = /^([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2}))?)?$/;
const FLAGS = { yes: true, true: true, no: false, false: false };
const BESIDE = "leave it out, since terms next to each other must all match";
const NOT_OPERATORS = { AND: BESIDE, "&&": BESIDE, "&": BESIDE, NOT: "write - directly before the term" };
const MAYBE_OPERATORS = { and: BESIDE, or: "write | or OR", not: NOT_OPERATORS.NOT };
const COMPARING = ["is", "in", "like", "contains", "equals", "between"];
const SAMPLES = { text: ":value", whole: ":8..64", number: ":0.5..2", date: ":2024..", flag: ":yes", engine: ":vllm" };
const DAY = 86400;

export class FilterError extends Error {
  constructor(problem, advice, at, text) {
    const place = [...text.slice(0, at)].length + 1;
    super(`${problem} at character ${place}: ${advice}.`);
    this.place = place;
  }
}

export const fold = (text) => text.replace(/[A-Z]/g, (letter) => letter.toLowerCase());

// ratio of difflib.SequenceMatcher: twice the matching characters over all.
function likeness(a, b) {
  const match = (alo, ahi, blo, bhi) => {
    let best = [alo, blo, 0], lengths = {};
    for (let i = alo; i < ahi; i++) {
      const next = {};
      for (let j = blo; j < bhi; j++) {
        if (a[i] !== b[j]) continue;
        const k = (next[j] = (lengths[j - 1] || 0) + 1);
        if (k > best[2]) best = [i - k + 1, j - k + 1, k];
      }
      lengths = next;
    }
    const [i, j, k] = best;
    return k && k + match(alo, i, blo, j) + match(i + k, ahi, j + k, bhi);
  };
  return a.length + b.length ? (2 * match(0, a.length, 0, b.length)) / (a.length + b.length) : 1;
}

function nearest(text, choices, cutoff = 0.6) {
  let best = null;
  for (const choice of choices) {
    const score = likeness([...choice], [...text]);
    if (score >= cutoff && (!best || score > best[0] || (score === best[0] && choice > best[1])))
      best = [score, choice];
  }
  return best && best[1];
}

function shown(text) {
  const short = [...text].length <= 40 ? text : [...text].slice(0, 39).join("") + "…";
  const quote = short.includes("'") && !short.includes('"') ? '"' : "'";
  const escaped = short.replace(/[\\\n\r\t]/g, (sign) => ({ "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" })[sign]);
  return quote + (quote === "'" ? escaped.replaceAll("'", "\\'") : escaped) + quote;
}

class Misfit extends Error {}

class Reader {
  constructor(text, fields) {
    Object.assign(this, { text, at: 0, depth: 0, terms: 0, fields });
    this.names = new Map();
    for (const field of fields) for (const name of [field.name, ...field.aliases]) this.names.set(name, field);
    this.listed = fields.map((field) => field.name).join(", ");
  }
  fail(problem, advice, at = this.at) { throw new FilterError(problem, advice, at, this.text); }
  match(pattern, at = this.at) { pattern.lastIndex = at; return pattern.exec(this.text); }
  skip() { const match = this.match(AT.space); this.at += match ? match[0].length : 0; }
  peek() { return this.text[this.at] ?? ""; }
  ends() { return this.peek() === "" || regex(`[${SPACE})|]`).test(this.peek()); }
  bare() { const match = this.match(AT.word); return match ? match[0] : ""; }

  either() {
    const parts = [this.all()];
    while (this.bar()) parts.push(this.all());
    return parts.length > 1 ? joined("or", parts) : parts[0];
  }
  bar() {
    if (this.peek() === "|") this.at += 1;
    else if (this.bare() === "OR") this.at += 2;
    else return false;
    return true;
  }
  all() {
    const parts = [];
    this.skip();
    while (!["", ")", "|"].includes(this.peek()) && this.bare() !== "OR") {
      parts.push(this.one());
      this.skip();
    }
    if (!parts.length) this.fail("A term is missing", "write one, such as rank:8..64 or a word");
    return parts.length > 1 ? joined("and", parts) : parts[0];
  }
  one() {
    const sign = this.peek();
    if (sign === "-" || sign === "(") {
      if (++this.depth > MOST.depth)
        this.fail(`More than ${MOST.depth} levels are nested`, "write it with fewer parentheses");
      const query = sign === "-" ? this.negation() : this.group();
      this.depth -= 1;
      return query;
    }
    const name = this.match(AT.name);
    return name ? this.term(name) : this.word();
  }
  negation() {
    this.at += 1;
    if (this.ends()) this.fail("The - excludes nothing", "put it directly before a term", this.at - 1);
    return { op: "not", part: this.one() };
  }
  group() {
    const opened = this.at;
    this.at += 1;
    const query = this.either();
    if (this.peek() !== ")") this.fail("The ( is never closed", "put a ) at the end of the group", opened);
    this.at += 1;
    return query;
  }
  word() {
    this.refuseComparison();
    const start = this.at, [text, quoted] = this.piece(AT.word);
    const advice = quoted ? null : this.operator(text);
    if (advice) this.fail(`${text} is not an operator`, `${advice}, or put the word in quotes`, start);
    if (!quoted && text.includes("*"))
      this.fail(`The word ${shown(text)} has a *`, "leave it out, since words match parts of words", start);
    if (!text) this.fail("The word is empty", "write something between the quotes", start);
    this.boundary('put the whole word in quotes, such as "a (b)"');
    this.count(start);
    return { op: "word", text: fold(text), isName: this.names.has(fold(text)) };
  }
  operator(word) {
    if (Object.hasOwn(NOT_OPERATORS, word)) return NOT_OPERATORS[word];
    const ahead = this.match(AT.group);
    const isTerm = ahead && (ahead[1] === undefined || this.names.has(fold(ahead[1])));
    const lower = word.toLowerCase();
    return isTerm && Object.hasOwn(MAYBE_OPERATORS, lower) ? MAYBE_OPERATORS[lower] : null;
  }
  refuseComparison() {
    const turned = this.match(AT.turned);
    if (turned && this.names.has(fold(turned[1])))
      this.fail("Filters do not support this comparison",
        `write the field first and a range after a colon, such as ${turned[1]}:8..64`);
    const inWords = this.match(AT.words);
    if (inWords && this.names.has(fold(inWords[1]))) {
      const [all, name, not, word, text] = inWords;
      const rest = all.slice(name.length), before = rest.slice(0, rest.length - text.length).trimEnd();
      const at = this.at + name.length + before.length - word.length;
      const advice = this.insteadOfWords(this.names.get(fold(name)), not, word, text);
      this.fail(`${word.toUpperCase()} is not an operator`, `write ${advice}, or put the word in quotes`, at);
    }
    const compared = this.match(AT.compared);
    if (!compared) return;
    const [, name, space, sign, text] = compared;
    const near = nearest(fold(name), this.names.keys(), 0.75);
    let advice;
    if (!near) {
      if ([...sign].length === 1 && (!"<>≥≤".includes(sign) || !NUMBER.test(text))) return;
      advice = `no field is called ${shown(name)} (the fields are ${this.listed})`;
    } else if (sign === ":" && !this.names.has(fold(name))) return;
    else advice = `write ${this.instead(this.names.get(near), sign, text)}`;
    this.fail(sign === ":" ? "There is a space before the :" : `${sign} is not part of the filter language`,
      `${advice}, or put a word with it in quotes`, this.at + name.length + space.length);
  }
  instead(field, sign, text) {
    const value = text.length > 2 && text[0] === "'" && text.at(-1) === "'" ? `"${text.slice(1, -1)}"` : text;
    try {
      return toText(comparison(field, sign, parse(`${field.name}:${value}`, this.fields)));
    } catch (error) {
      if (!(error instanceof FilterError || error instanceof Misfit)) throw error;
      return `${field.name}: and a value directly after it, such as ${field.name}${SAMPLES[field.kind]}`;
    }
  }
  insteadOfWords(field, not, word, text) {
    const negated = Boolean(not) || word.toLowerCase().endsWith("not");
    if (["null", "none"].includes(text.toLowerCase())) return negated ? `${field.name}:*` : `-${field.name}:*`;
    const parts = text.split(/\s+and\s+/i);
    text = word.toLowerCase() === "between" ? parts.join("..")
      : parts[0].replace(/^[()]+|[()]+$/g, "").split(",").map((one) => one.trim().replace(/^'(.*)'$/, '"$1"')).join(",");
    return this.instead(field, negated ? "!=" : "=", text);
  }
  term(name) {
    const start = this.at, field = this.field(name[1]);
    this.at += name[0].length;
    const parts = [this.value(field)];
    while (this.peek() === ",") {
      this.at += 1;
      parts.push(this.value(field));
    }
    this.boundary('put the whole value in quotes, such as name:"a (b)"');
    this.count(start, parts.reduce((sum, part) => sum + (part.parts?.length ?? 1), 0));
    return parts.length > 1 ? joined("or", parts) : parts[0];
  }
  field(name) {
    const field = this.names.get(fold(name));
    if (field) return field;
    const near = nearest(fold(name), this.names.keys());
    return this.fail(`No field is called ${shown(name)}`,
      `${near ? `write ${near}` : `the fields are ${this.listed}`}, or put a word with a colon in quotes`);
  }
  value(field) {
    const start = this.at;
    let [text, quoted] = this.piece(AT.value), starred = text.endsWith("*") && !quoted;
    if (quoted && this.peek() === "*") {
      starred = true;
      this.at += 1;
    } else if (starred) text = text.slice(0, -1);
    if (text.includes("*") && !quoted)
      this.fail(`${shown(text)} contains a *`, "put it at the end, or the value in quotes", start);
    if (!text && starred && !quoted && field.kind !== "engine") return { op: "present", field };
    if (!text && (quoted || !starred))
      this.fail(`${field.name} has no value`,
        `write one directly after the colon, or -${field.name}:* for adapters without`, start);
    try {
      return test(field, text, starred);
    } catch (error) {
      if (!(error instanceof Misfit)) throw error;
      return this.fail(`${field.name} cannot be ${shown(text)}`, error.message, start);
    }
  }
  piece(pattern) {
    if (this.peek() === '"') {
      const match = this.match(AT.quoted);
      if (!match) this.fail("The quote is never closed", 'put a " after the text');
      this.at += match[0].length;
      return [match[1].replace(/\\(.)/gsu, "$1"), true];
    }
    const match = this.match(pattern);
    if (match) this.at += match[0].length;
    return [match ? match[0] : "", false];
  }
  boundary(advice) {
    if (!this.ends()) this.fail(`A space is missing before ${[...this.text.slice(this.at)][0]}`, advice);
  }
  count(start, terms = 1) {
    this.terms += terms;
    if (this.terms > MOST.terms) this.fail(`The filter has more than ${MOST.terms} terms`, "split the filter", start);
  }
}

const joined = (op, parts) => ({ op, parts: parts.flatMap((part) => (part.op === op ? part.parts : [part])) });

// The query of a text, null for an empty one; throws FilterError. `fields` are those of head.json.
export function parse(text, fields) {
  const length = [...text].length;
  if (length > MOST.length)
    throw new FilterError(`A filter may have at most ${MOST.length} characters, not ${length}`, "shorten it", 0, text);
  const reader = new Reader(text.replaceAll("\0", "\ufffd").toWellFormed(), fields);
  reader.skip();
  if (reader.at === reader.text.length) return null;
  const query = reader.either();
  if (reader.at < reader.text.length)
    reader.fail("The ) has no matching (", "leave it out, or put a ( before");
  return query;
}

function test(field, text, starred) {
  if (field.kind === "text" || field.kind === "engine") {
    text = fold(text);
    const fits = (choice) => (starred ? choice.startsWith(text) : choice === text);
    if (field.choices.length && !field.choices.some(fits)) {
      const near = nearest(text, field.choices);
      throw new Misfit(`${near ? `write ${near}; ` : ""}it is one of ${field.choices.join(", ")}`);
    }
    if (field.kind === "text") return { op: starred ? "prefix" : "equals", field, text };
    const named = field.choices.filter(fits).map((one) => ({ op: "equals", field, text: one }));
    return named.length > 1 ? joined("or", named) : named[0];
  }
  if (starred) throw new Misfit("a * may only end a text");
  if (field.kind === "flag") {
    if (!Object.hasOwn(FLAGS, fold(text))) throw new Misfit("it is yes or no");
    return { op: "flag", field, yes: FLAGS[fold(text)] };
  }
  return (field.kind === "date" ? dateRange : numberRange)(field, text);
}

function ends(text, read) {
  const at = text.indexOf("..");
  if (at < 0) {
    const value = read(text);
    return [value, value];
  }
  const low = text.slice(0, at), high = text.slice(at + 2);
  if (!low && !high) throw new Misfit("a range has at least one end, such as 8..64, 8.. or ..64");
  return [low ? read(low) : null, high ? read(high) : null];
}

function numberRange(field, text) {
  const [low, high] = ends(text, field.kind === "whole" ? whole : real);
  if (low !== null && high !== null && low > high)
    throw new Misfit(`it contains no number, so write ${high}..${low}`);
  return { op: "between", field, low, high };
}

function parts(text) {
  const match = NUMBER.exec(text);
  if (!match) throw new Misfit("write a number such as 8, 0.5 or 16k, or a range such as 8..64, 8.. or ..64");
  const [, sign, digits, fraction = "", exponent = "0", letter] = match;
  return { sign: sign === "-" ? "-" : "", digits, fraction, power: Number(exponent) + POWERS[letter.toLowerCase()] };
}

function whole(text) {
  const { sign, digits, fraction, power } = parts(text), shift = power - fraction.length;
  const mantissa = BigInt(sign + digits + fraction), scale = 10n ** BigInt(Math.abs(shift));
  const fits = shift >= 0 || mantissa % scale === 0n;
  const value = shift >= 0 ? mantissa * scale : mantissa / scale;
  if (!fits || value > INT64 || value < -INT64) throw new Misfit(`it must be one of the whole numbers up to ${INT64}`);
  return value;
}

function real(text) {
  const { sign, digits, fraction, power } = parts(text);
  const value = Number(`${sign}${digits}.${fraction || 0}e${power}`);
  if (!Number.isFinite(value)) throw new Misfit("it must be at most about 1.8e308");
  return value;
}

const seconds = (year, month, day) => {
  const date = new Date(0);
  date.setUTCFullYear(year, month - 1, day);
  return date.getTime() / 1000;
};

function period(text) {
  const match = PERIOD.exec(text);
  if (match) {
    const [year, month, day] = match.slice(1).map((part) => (part === undefined ? null : Number(part)));
    const value = make(year, month, day);
    if (value) return value;
  }
  throw new Misfit("write a date such as 2024, 2024-08 or 2024-08-15, or a range such as ..2024-08");
}

function make(year, month, day) {
  if (year < 1 || year > 9999 || (month !== null && (month < 1 || month > 12))) return null;
  const date = new Date(seconds(year, month ?? 1, day ?? 1) * 1000);
  if (day !== null && (day < 1 || date.getUTCMonth() + 1 !== month)) return null;
  const start = date.getTime() / 1000;
  const end = day !== null ? start + DAY : month !== null ? seconds(year, month + 1, 1) : seconds(year + 1, 1, 1);
  return { year, month, day, start, end: end >= seconds(10000, 1, 1) ? null : end };
}

function shifted({ year, month, day, start }, by) {
  let value;
  if (day !== null) {
    const date = new Date((start + by * DAY) * 1000);
    value = make(date.getUTCFullYear(), date.getUTCMonth() + 1, date.getUTCDate());
  } else if (month !== null) {
    const months = 12 * year + month - 1 + by;
    value = make(Math.floor(months / 12), (months % 12) + 1, null);
  } else value = make(year + by, null, null);
  if (!value) throw new Misfit("outside of the calendar");
  return value;
}

function dateRange(field, text) {
  const [low, high] = ends(text, period);
  if (low && high && high.end !== null && low.start >= high.end)
    throw new Misfit(`it contains no day, so write ${endText(high)}..${endText(low)}`);
  return { op: "between", field, low, high };
}

function comparison(field, sign, equal) {
  if (sign.includes("~") && equal.op === "equals") equal = { op: "prefix", field, text: equal.text };
  if (["!=", "<>", "!~", "≠"].includes(sign)) return { op: "not", part: equal };
  if (equal.op !== "between" || !/[<>≥≤]/.test(sign)) return equal;
  const same = field.kind === "date" ? equal.low && equal.high && endText(equal.low) === endText(equal.high) : equal.low === equal.high;
  if (!same || equal.low === null) throw new Misfit("a range already includes both ends");
  const above = /[>≥]/.test(sign), step = /[=≥≤]/.test(sign) ? 0 : above ? 1 : -1;
  let end = equal.low;
  if (field.kind === "date") end = shifted(end, step);
  else if (field.kind === "whole") end += BigInt(step);
  return above ? { op: "between", field, low: end, high: null } : { op: "between", field, low: null, high: end };
}

const PLAIN_WORD = /^[a-z0-9_./@#+][a-z0-9_./@#+-]*$/, PLAIN_VALUE = /^[a-z0-9_./@#+:-]+$/;
export const quote = (text) => `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
export const valueText = (text) => (PLAIN_VALUE.test(text) ? text : quote(text));
const pad = (number, length) => String(number).padStart(length, "0");
function endText(end) {
  if (end === null) return "";
  if (typeof end !== "object") return String(end);
  return [pad(end.year, 4), ...[end.month, end.day].filter((part) => part !== null).map((part) => pad(part, 2))].join("-");
}

function common(query) {
  const fields = new Set(query.parts.map((part) => part.field?.name ?? null));
  return fields.size === 1 ? [...fields][0] : null;
}
const loose = (query) => query.op === "or" && common(query) === null;

function value(query) {
  if (query.op === "flag") return query.yes ? "yes" : "no";
  if (query.op === "between") {
    const [low, high] = [endText(query.low), endText(query.high)];
    return low === high ? low : `${low}..${high}`;
  }
  if (query.op === "present") return "*";
  return valueText(query.text) + (query.op === "prefix" ? "*" : "");
}

// The query as canonical text, which parses to it.
export function toText(query) {
  if (!query) return "";
  if (query.op === "and")
    return query.parts.map((part, at) => {
      const before = query.parts[at - 1];
      if (part.op === "word" && before?.op === "word")
        return before.isName && COMPARING.includes(part.text) ? quote(part.text) : toText(part);
      return loose(part) ? `(${toText(part)})` : toText(part);
    }).join(" ");
  if (query.op === "or") {
    const field = common(query);
    return field !== null ? `${field}:${query.parts.map(value).join(",")}` : query.parts.map(toText).join(" | ");
  }
  if (query.op === "not") return query.part.op === "and" || loose(query.part) ? `-(${toText(query.part)})` : `-${toText(query.part)}`;
  if (query.op === "word") return PLAIN_WORD.test(query.text) && !["and", "or", "not"].includes(query.text) ? query.text : quote(query.text);
  return `${query.field.name}:${value(query)}`;
}

// The keys of columns that a query reads, and the words that it looks for in cards.
export function needs(query, keys = new Set(), words = new Set()) {
  if (!query) return { keys, words };
  if (query.parts) for (const part of query.parts) needs(part, keys, words);
  else if (query.part) needs(query.part, keys, words);
  else if (query.op === "word") ["adapter", "tags"].forEach((key) => keys.add(key)), words.add(query.text);
  else keys.add(query.field.key);
  return { keys, words };
}

// The base models that a query asks for by name, outside of what it leaves out.
export function basesAsked(query) {
  if (!query) return [];
  if (query.parts) return query.parts.flatMap(basesAsked);
  return ["equals", "prefix"].includes(query.op) && query.field.name === "base" ? [query] : [];
}

// A test of one value of a field.
export function holds(query) {
  if (query.op === "equals") return (one) => fold(one) === query.text;
  if (query.op === "prefix") return (one) => fold(one).startsWith(query.text);
  if (query.op === "present") return (one) => one !== "";
  if (query.op === "flag") return (one) => Boolean(one) === query.yes;
  const { low, high } = query;
  if (query.field.kind === "date")
    return (one) => !(low && one < low.start) && (!high || high.end === null || one < high.end);
  return (one) => !(low !== null && one < low) && (high === null || one <= high);
}

// The test of rows 0..n-1. `column(key)` gives {test(holds) -> row -> bool} of a column, `word(text)` that of cards.
export function compile(query, column, word) {
  if (!query) return () => true;
  if (query.parts) {
    const tests = query.parts.map((part) => compile(part, column, word));
    return query.op === "and" ? (row) => tests.every((one) => one(row)) : (row) => tests.some((one) => one(row));
  }
  if (query.op === "not") {
    const inner = compile(query.part, column, word);
    return (row) => !inner(row);
  }
  if (query.op === "word") {
    const inside = (text) => fold(text).includes(query.text);
    const [name, tags, card] = [column("adapter").test(inside), column("tags").test(inside), word(query.text)];
    return (row) => name(row) || tags(row) || card(row);
  }
  return column(query.field.key, query.field).test(holds(query));
}
