// The operating point, the sinks, and what happened.

import { clock, fit, make, put, set, whole } from "./dom.js";

const EVENTS = 100; // shown
const SPOKEN_EVERY = 10000; // ms
const at = (id) => document.getElementById(id);

export class Point {
  constructor() {
    this.form = at("point");
    this.select = at("points");
    this.button = at("apply");
    this.select.addEventListener("change", () => this.turn());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.change(this.select.value || null);
    });
  }

  update({ point, points, policy, own_policy: own }) {
    const known = JSON.stringify([point, points, own]);
    if (known !== this.known) {
      this.known = known;
      const chosen = this.dirty ? this.select.value : (point ?? "");
      const first = own === null ? [] : [make("option", { text: `as begun: ${own}`, value: "" })];
      const options = points.map((name) => make("option", { text: name, value: name }));
      this.select.replaceChildren(...first, ...options);
      this.select.value = chosen;
      this.point = point;
      this.turn();
    }
    this.form.hidden = !points.length;
    let text = `Policy: ${policy}.`;
    if (!points.length) text += " This bundle has no operating points; lgvit-edge tune makes some.";
    put(at("policy"), text);
  }

  turn() {
    this.dirty = this.select.value !== (this.point ?? "");
    this.button.disabled = !this.dirty || this.busy === true;
  }

  async change(point) {
    this.busy = true;
    this.turn();
    const name = point ?? "the policy it began with";
    this.tell(`Changing to ${name} …`);
    try {
      const answer = await fetch("api/point", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ point }),
      });
      const { error } = await answer.json();
      this.tell(answer.ok ? `Changed to ${name}.` : `Not changed: ${error}`, !answer.ok);
      if (answer.ok) this.point = point;
    } catch {
      this.tell("Not changed: the application does not answer.", true);
    }
    this.busy = false;
    this.turn();
  }

  tell(text, bad = false) {
    put(at("changed"), text);
    at("changed").classList.toggle("bad", bad);
  }
}

export function showSinks(sinks) {
  const names = Object.keys(sinks).sort();
  at("sinks").hidden = !names.length;
  at("no-sinks").hidden = names.length > 0;
  const rows = fit(at("sinks").tBodies[0], names.length, () => {
    const cells = ["", "", "", ""].map(() => make("td"));
    return make("tr", {}, make("th", { scope: "row" }, make("bdi")), ...cells);
  });
  rows.forEach((row, i) => {
    const { taken, waiting, lost, refused } = sinks[names[i]];
    put(row.firstChild.firstChild, names[i]);
    [taken, waiting, lost, refused].forEach((count, j) => put(row.children[j + 1], whole(count)));
    row.children[3].classList.toggle("bad", lost > 0);
    row.children[4].classList.toggle("bad", refused > 0);
  });
  const faults = names.filter((name) => sinks[name].error);
  fit(at("faults"), faults.length, () => make("li", { cls: "bad" }, make("bdi"))).forEach(
    (item, i) => put(item.firstChild, `${faults[i]} fails: ${sinks[faults[i]].error}`),
  );
}

export class Events {
  constructor() {
    this.list = at("events");
    this.unspoken = [];
    this.last = 0;
    setInterval(() => this.speak(), SPOKEN_EVERY);
  }

  // The next events are all there are.
  renew() {
    this.fresh = true;
  }

  add(events) {
    if (this.fresh) this.list.replaceChildren();
    const shown = events.slice(-EVENTS).map((event) => this.item(event));
    this.list.prepend(...shown.reverse());
    while (this.list.children.length > EVENTS) this.list.lastElementChild.remove();
    at("no-events").hidden = this.list.children.length > 0;
    if (!this.fresh) this.unspoken.push(...events);
    this.fresh = false;
  }

  item({ time, camera, text, level }) {
    const item = make("li", { "data-level": level });
    item.append(make("time", { text: clock(time), datetime: new Date(1000 * time).toISOString() }), " ");
    if (level !== "info") item.append(make("span", { cls: "level", text: level }), " ");
    if (camera) item.append(make("bdi", { cls: "who", text: camera }), " ");
    item.append(make("bdi", { text }));
    return item;
  }

  // A screen reader hears of new events now and then, and of many at once only the last.
  speak() {
    const event = this.unspoken.at(-1);
    if (!event) return;
    const many = this.unspoken.length > 1 ? `${this.unspoken.length} new events, the last: ` : "";
    put(at("announcer"), `${many}${event.camera} ${event.text}`);
    this.unspoken = [];
  }
}

export function showAbout(state, lasting) {
  const parts = [state.backend, state.device, state.precision].filter(Boolean);
  put(at("about"), `lgvit-edge · ${parts.join(" · ")} · runs for ${lasting}`);
}

export function showLink(state, text) {
  set(at("link"), "data-state", state);
  put(at("link"), text);
}

export function showBanner(text) {
  at("banner").hidden = !text;
  document.body.classList.toggle("stale", text !== "");
  put(at("banner"), text);
}
