// Plots of the last minutes, as SVG; each has its figures as text beside it.

import { duration, fit, make, number, put, set, share } from "./dom.js";

const [SPAN, SHORTEST] = [180, 30]; // seconds that are shown, and at first
const GAP = 3; // seconds without news that break a line
const MINUTE = 60;
const [WIDTH, HEIGHT] = [300, 64];
const SPOKEN_EVERY = 10000; // ms between changes of the text alternatives

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// The smallest of 1, 2, 5, 10, 20 ... that is no less.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value);
}

class Plot {
  // `lines` are the names of what is drawn, in their order.
  constructor(title, unit, lines) {
    this.title = title;
    this.unit = unit;
    this.spoken = -Infinity;
    this.top = make("span", { cls: "top-value" });
    this.svg = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    for (const y of [0.5, HEIGHT / 2, HEIGHT - 0.5]) {
      this.svg.append(svg("line", { x1: 0, x2: WIDTH, y1: y, y2: y, class: "rule" }));
    }
    this.lines = svg("g");
    this.svg.append(this.lines);
    this.legend = make("ul", { cls: "legend" });
    this.empty = make("p", { cls: "note", hidden: "" });
    this.from = make("span");
    const now = make("span", { text: "now" });
    this.axis = make("p", { cls: "axis", "aria-hidden": "true" }, this.from, now);
    this.node = make(
      "figure",
      {},
      make("figcaption", {}, make("span", { text: title }), make("span", { cls: "unit", text: unit })),
      make("div", { cls: "plot" }, this.svg, this.top),
      this.axis,
      this.legend,
      this.empty,
    );
    this.name(lines);
  }

  name(lines) {
    this.names = lines;
    fit(this.legend, lines.length, (i) =>
      make("li", {}, sample(i), make("bdi"), make("strong")),
    ).forEach((item, i) => put(item.children[1], lines[i]));
    fit(this.lines, lines.length, (i) => svg("path", { class: `line line-${i}` }));
  }

  // `rows` are [seconds, values]; the last one is now.
  draw(rows) {
    const now = rows.at(-1)[0];
    const span = Math.min(SPAN, Math.max(SHORTEST, now - rows[0][0]));
    put(this.from, `${span < 60 ? `${Math.round(span)} s` : `${(span / 60).toFixed(1)} min`} ago`);
    const all = rows.flatMap((row) => row[1]).filter((value) => value != null);
    const top = ceiling(Math.max(0, ...all));
    put(this.top, `${number(top, 0)}`);
    this.names.forEach((_, i) => {
      let path = "";
      let last = -Infinity;
      for (const [seconds, values] of rows) {
        if (values[i] == null) continue;
        const x = WIDTH * (1 - (now - seconds) / span);
        const y = 1 + (HEIGHT - 2) * (1 - values[i] / top);
        path += `${seconds - last > GAP ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
        last = seconds;
      }
      set(this.lines.children[i], "d", path);
      put(this.legend.children[i].children[2], number(rows.at(-1)[1][i]));
    });
    this.speak(rows);
  }

  speak(rows) {
    if (performance.now() - this.spoken < SPOKEN_EVERY) return;
    this.spoken = performance.now();
    const said = this.names.map((name, i) => {
      const values = rows.map((row) => row[1][i]).filter((value) => value != null);
      if (!values.length) return `${name}: nothing`;
      const range = `${number(Math.min(...values))} to ${number(Math.max(...values))}`;
      return `${name}: now ${number(values.at(-1))}, ${range} in the last ${duration(SPAN)}`;
    });
    set(this.svg, "aria-label", `${this.title}, ${this.unit}. ${said.join(". ")}.`);
  }

  // Without anything to draw there is only a sentence.
  say(text) {
    for (const node of [this.svg.parentNode, this.axis, this.legend]) node.hidden = text !== "";
    this.empty.hidden = text === "";
    put(this.empty, text);
  }
}

function sample(i) {
  return svg("svg", { viewBox: "0 0 18 8", class: "sample", "aria-hidden": "true" }, svg("path", { d: "M0 4H18", class: `line line-${i}` }));
}

export class Figures {
  constructor(parent) {
    this.rows = [];
    this.rate = new Plot("Frame rate", "frames per second, all cameras", ["answered"]);
    this.latency = new Plot("Latency", "ms from frame to answer, slowest camera", ["median", "p99"]);
    this.load = new Plot("Processor", "cores", ["this application", "load of the machine"]);
    this.power = new Plot("Power", "watts", []);
    this.bar = make("div", { cls: "shares", "aria-hidden": "true" });
    this.list = make("ul", { cls: "legend exits" });
    this.exits = make(
      "figure",
      {},
      make("figcaption", {}, make("span", { text: "Where images leave" }), make("span", { cls: "unit", text: "share of the last minute" })),
      this.bar,
      this.list,
    );
    parent.append(this.rate.node, this.latency.node, this.exits, this.load.node, this.power.node);
  }

  update(state) {
    const seconds = performance.now() / 1000;
    const cameras = state.names.map((name) => state.cameras[name]);
    const live = cameras.filter((camera) => camera.state === "live");
    const most = (name) => {
      const times = live.map((camera) => camera.latency_ms[name]).filter((time) => time != null);
      return times.length ? Math.max(...times) : null;
    };
    const exits = state.blocks.map((_, i) => cameras.reduce((sum, camera) => sum + camera.exits[i], 0));
    const last = this.rows.at(-1);
    if (last && last.exits.some((count, i) => count > exits[i])) this.rows = []; // it began anew
    this.rows.push({
      seconds,
      exits,
      rate: live.reduce((sum, camera) => sum + camera.fps, 0),
      latency: [most("p50"), most("p99")],
      load: [state.cpu, state.load],
      watts: state.watts,
    });
    while (this.rows[0].seconds < seconds - SPAN) this.rows.shift();
    const over = (value) => this.rows.map((row) => [row.seconds, value(row)]);
    this.rate.draw(over((row) => [row.rate]));
    this.latency.draw(over((row) => row.latency));
    this.load.draw(over((row) => row.load));
    const meters = Object.keys(state.watts).slice(0, 4);
    this.power.say(meters.length ? "" : "This machine tells no power.");
    if (meters.length) {
      if (meters.join("\n") !== this.power.names.join("\n")) this.power.name(meters);
      this.power.draw(over((row) => meters.map((name) => row.watts[name])));
    }
    this.share(exits, state.blocks, seconds);
  }

  share(exits, blocks, seconds) {
    const before = this.rows.find((row) => row.seconds >= seconds - MINUTE);
    let counts = exits.map((count, i) => count - before.exits[i]);
    if (!counts.some((count) => count)) counts = exits;
    const all = counts.reduce((sum, count) => sum + count, 0);
    const parts = fit(this.bar, counts.length, () => make("span"));
    const items = fit(this.list, counts.length, () =>
      make("li", {}, make("span", { cls: "swatch", "aria-hidden": "true" }), make("span"), make("strong")),
    );
    counts.forEach((count, i) => {
      const depth = counts.length > 1 ? i / (counts.length - 1) : 1;
      for (const node of [parts[i], items[i].firstChild]) {
        node.style.setProperty("--depth", `${Math.round(25 + 75 * depth)}%`);
      }
      parts[i].style.setProperty("flex-grow", all ? count / all : 1);
      parts[i].hidden = all > 0 && count === 0;
      put(items[i].children[1], `exit ${i + 1}, after block ${blocks[i]}`);
      put(items[i].children[2], share(count, all));
    });
  }
}
