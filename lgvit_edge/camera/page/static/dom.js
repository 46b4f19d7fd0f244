// Elements and numbers. Names come from strangers: they are only ever set as text.

export function make(tag, { text, cls, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function set(node, attribute, value) {
  if (node.getAttribute(attribute) !== String(value)) node.setAttribute(attribute, value);
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
