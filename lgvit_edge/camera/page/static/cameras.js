// One card per camera: its picture with its answers, and what it has done so far.

import { clock, fit, make, number, put, set, share, sureness, whole } from "./dom.js";

const STATES = {
  opening: ["○", "Opening"],
  live: ["●", "Live"],
  stalled: ["◐", "Stalled"],
  lost: ["✕", "Lost"],
  ended: ["■", "Ended"],
};
const FACTS = ["Frames/s", "Median ms", "p99 ms", "Unsure", "Dropped", "Errors"];
const TITLES = [
  "Frames answered per second, over the last 10 seconds",
  "Median time from the delivery of a frame to its answer, of the last 512 answers",
  "99 % of the last 512 answers took at most this long",
  "Share of all answers that were too unsure to be used",
  "Frames that newer ones replaced before they were answered",
  "Frames that could not be used",
];

export class Cameras {
  constructor(grid, pictures) {
    this.grid = grid;
    this.pictures = pictures;
    this.cards = new Map();
    this.visible = new Set();
    this.observer = new IntersectionObserver((entries) => this.seen(entries), {
      rootMargin: "100px",
    });
  }

  update(state) {
    if (state.names.join("\n") !== this.names) this.build(state.names);
    for (const name of state.names) this.cards.get(name).update(state.cameras[name], state);
  }

  show(about, bitmap) {
    this.cards.get(about.camera)?.show(about, bitmap);
  }

  full(full) {
    for (const card of this.cards.values()) card.full = full;
  }

  build(names) {
    this.names = names.join("\n");
    this.observer.disconnect();
    this.visible.clear();
    this.cards = new Map(names.map((name, place) => [name, new Card(name, place)]));
    this.grid.replaceChildren(...[...this.cards.values()].map((card) => card.node));
    this.grid.dataset.count = names.length < 5 ? names.length : "many";
    for (const card of this.cards.values()) this.observer.observe(card.picture);
  }

  // Only pictures that can be seen are asked for, once scrolling has ended.
  seen(entries) {
    for (const { target, isIntersecting } of entries) {
      const place = Number(target.dataset.place);
      if (isIntersecting) this.visible.add(place);
      else this.visible.delete(place);
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.pictures.watch([...this.visible].sort()), 250);
  }
}

class Card {
  constructor(name, place) {
    const id = `camera-${place}`;
    this.canvas = make("canvas", { role: "img", "aria-label": `Picture of ${name}`, width: 16, height: 9 });
    this.boxes = make("div", { cls: "boxes", "aria-hidden": "true" });
    this.frame = make("div", { cls: "frame" }, this.canvas, this.boxes);
    this.veil = make("p", { cls: "veil", text: "No picture yet" });
    this.symbol = make("span", { "aria-hidden": "true" });
    this.word = make("span");
    this.pill = make("p", { cls: "pill" }, this.symbol, this.word);
    this.size = make("button", { cls: "size", type: "button", "aria-pressed": "false", text: "Enlarge" });
    this.size.append(make("span", { cls: "unseen", text: ` ${name}` }));
    this.size.addEventListener("click", () => {
      const large = this.node.classList.toggle("large");
      this.size.setAttribute("aria-pressed", large);
      this.node.scrollIntoView({ block: "nearest" });
    });
    this.picture = make(
      "div",
      { cls: "picture", "data-place": place },
      this.frame,
      this.veil,
      this.size,
    );
    this.answers = make("ul", { cls: "answers" });
    this.source = make("bdi");
    this.more = make("span");
    this.facts = FACTS.map(() => make("dd", { text: "–" }));
    const facts = FACTS.map((fact, i) =>
      make("div", { title: TITLES[i] }, make("dt", { text: fact }), this.facts[i]),
    );
    this.node = make(
      "article",
      { cls: "card", "aria-labelledby": id },
      this.picture,
      make("div", { cls: "title" }, make("h3", { id, title: name }, make("bdi", { text: name })), this.pill),
      make("p", { cls: "source" }, this.source, this.more),
      this.answers,
      make("dl", { cls: "facts" }, ...facts),
    );
  }

  update(camera, { blocks, time }) {
    const [symbol, word] = STATES[camera.state] ?? ["?", camera.state];
    set(this.node, "data-state", camera.state);
    set(this.pill, "data-state", camera.state);
    put(this.symbol, symbol);
    put(this.word, word);
    this.say(camera, word, time);
    put(this.source, camera.source);
    put(this.more, camera.reconnects ? ` · reconnected ${whole(camera.reconnects)} ×` : "");
    const { p50, p99 } = camera.latency_ms;
    const facts = [
      number(camera.fps),
      number(p50),
      number(p99),
      share(camera.unsure, camera.answers),
      whole(camera.dropped),
      whole(camera.errors),
    ];
    this.facts.forEach((node, i) => put(node, facts[i]));
    this.facts[5].classList.toggle("bad", camera.errors > 0);
    const rows = fit(this.answers, Math.max(1, camera.last.length), () => new Row().node);
    rows.forEach((node, i) => node.row.update(camera.last[i], blocks));
  }

  // What stands over the picture: why there is none, or none that is new.
  say({ state, idle_s: idle }, word, time) {
    let text = "";
    if (this.full) text = "Too many viewers watch pictures; the figures go on";
    else if (!this.shown) text = state === "live" ? "No picture yet" : word;
    else if (state !== "live") text = word;
    if (text && idle !== null && state !== "live") {
      // Two clocks disagree by a little each time.
      if (!(Math.abs(time - idle - this.since) < 2)) this.since = time - idle;
      text += `, last frame ${clock(this.since)}`;
    }
    this.veil.hidden = !text;
    put(this.veil, text);
  }

  show(about, bitmap) {
    this.shown = true;
    const { canvas } = this;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
      this.frame.style.setProperty("--ratio", bitmap.width / bitmap.height);
    }
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    const regions = about.boxes.filter((box) => box.region !== null);
    const nodes = fit(this.boxes, regions.length, () => make("div", {}, make("bdi")));
    nodes.forEach((node, i) => {
      const { box, region, label, guess } = regions[i];
      const [left, top, width, height] = box;
      const place = { left: left / about.width, top: top / about.height };
      const size = { width: width / about.width, height: height / about.height };
      for (const [side, part] of Object.entries({ ...place, ...size })) {
        node.style.setProperty(side, `${100 * part}%`);
      }
      node.classList.toggle("unsure", label === null);
      put(node.firstChild, `${region}: ${label ?? `unsure, perhaps ${guess}`}`);
    });
  }
}

// One answer: what it is, how sure, and where it left the model.
class Row {
  constructor() {
    this.region = make("bdi", { cls: "region" });
    this.label = make("bdi", { cls: "label", text: "–" });
    this.sure = make("span", { cls: "sure" });
    this.part = make("span");
    this.how = make("p", { cls: "how", text: "no answer yet" });
    const bar = make("div", { cls: "bar", "aria-hidden": "true" }, this.part);
    this.node = make("li", {}, this.region, make("p", { cls: "what" }, this.label, this.sure), bar, this.how);
    this.node.row = this;
  }

  update(answer, blocks) {
    if (!answer) return;
    const unsure = answer.class === null;
    put(this.region, answer.region ?? "");
    put(this.label, unsure ? `unsure, perhaps ${answer.guess}` : answer.class);
    set(this.label, "title", unsure ? answer.guess : answer.class);
    this.node.classList.toggle("unsure", unsure);
    put(this.sure, sureness(answer));
    const probability = answer.measure === "probability" ? answer.confidence : 0;
    this.part.style.setProperty("width", `${100 * probability}%`);
    const stop = answer.stopped === "deadline" ? ", by its deadline" : "";
    put(
      this.how,
      `exit ${answer.exit} of ${blocks.length}, after block ${answer.block}${stop} · ` +
        `${number(answer.latency_ms)} ms${answer.late ? ", late" : ""}`,
    );
  }
}
