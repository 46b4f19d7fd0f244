// Brings what the application says to the parts of the page.

import { Cameras } from "./cameras.js";
import { Events, Point, showAbout, showBanner, showLink, showSinks } from "./controls.js";
import { clock, duration } from "./dom.js";
import { Figures } from "./figures.js";
import { Link, Pictures } from "./link.js";

const REASONS = {
  token: "The application was started anew with another token: open the address that it printed.",
  full: "It has too many viewers at the moment.",
};

const figures = new Figures(document.getElementById("figures"));
const point = new Point();
const events = new Events();
const pictures = new Pictures(
  (about, bitmap) => cameras.show(about, bitmap),
  (full) => cameras.full(full),
);
const cameras = new Cameras(document.getElementById("grid"), pictures);
let lostAt = null;

new Link({
  open() {
    events.renew();
  },
  state(state) {
    if (lostAt !== null) pictures.watch(pictures.cameras);
    lostAt = null;
    showLink("live", "Connected");
    showBanner("");
    showAbout(state, duration(state.uptime_s));
    point.update(state);
    cameras.update(state);
    figures.update(state);
    showSinks(state.sinks);
  },
  events(list) {
    events.add(list);
  },
  lost(reason) {
    lostAt ??= Date.now() / 1000;
    showLink("lost", "Not connected");
    const why = REASONS[reason] ?? "Trying again …";
    showBanner(`No connection to the application since ${clock(lostAt)}: what is shown is old. ${why}`);
  },
});
