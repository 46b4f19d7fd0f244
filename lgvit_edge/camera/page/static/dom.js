// Elements and numbers. Names come from strangers: they are only ever set as text.

// What turns the reading direction, and so shows a name as another, or shows nothing.
const UNSAFE = /[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]/gu;

export function plain(text) {
  return String(text).replace(UNSAFE, (unit) => {
    return `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

export function make(tag, { text, cls, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = plain(text);
  if (cls) node.className = cls;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, plain(value));
  node.append(...children);
  return node;
}

export function put(node, text) {
  const shown = plain(text);
  if (node.textContent !== shown) node.textContent = shown;
}

export function set(node, attribute, value) {
  const shown = plain(value);
  if (node.getAttribute(attribute) !== shown) node.setAttribute(attribute, shown);
}

// As many children as there are items: makes and removes at the end, and returns all.
export function fit(parent, count, create) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(create(parent.children.length));
  return [...parent.children];
}

const grouped = new Intl.NumberFormat("en");

export const whole = (value) => (value == null ? "–" : grouped.format(value));

export function number(value, digits = 1) {
  if (value == null || !Number.isFinite(value)) return "–";
  return value >= 100 ? grouped.format(Math.round(value)) : value.toFixed(digits);
}

export const share = (part, all) => (all ? `${number((100 * part) / all)} %` : "–");

export function clock(seconds) {
  const date = new Date(1000 * seconds);
  const time = date.toLocaleTimeString("en-GB");
  const today = date.toDateString() === new Date().toDateString();
  return today ? time : `${date.toLocaleDateString("en-CA")} ${time}`;
}

export function duration(seconds) {
  const parts = [
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
  ];
  for (const [size, unit] of parts) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.floor(seconds)} s`;
}

// How sure an answer is, in the unit of its measure.
export function sureness(answer) {
  if (answer.measure === "entropy") return `${answer.confidence.toFixed(3)} nats`;
  if (answer.measure === "probability") return `${(100 * answer.confidence).toFixed(1)} %`;
  return answer.confidence.toFixed(3);
}
