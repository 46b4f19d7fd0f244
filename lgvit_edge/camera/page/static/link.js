// The two connections to the application: figures and pictures. A hidden page has none.

const SILENCE = 6000; // ms without news after which the figures' connection counts as lost
const STILL = 15000; // the same of pictures
const PAUSES = [1000, 2000, 3000, 5000]; // ms before the next attempt; the last repeats

export class Link {
  // `on` has the functions open, state, events, and lost(reason).
  constructor(on) {
    this.on = on;
    this.attempts = 0;
    document.addEventListener("visibilitychange", () => this.turn());
    window.addEventListener("pagehide", () => this.close());
    window.addEventListener("pageshow", () => this.turn());
    window.addEventListener("online", () => this.turn());
    setInterval(() => this.check(), 1000);
    this.turn();
  }

  turn() {
    if (document.hidden) this.close();
    else if (!this.source) this.open();
  }

  close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  open() {
    this.close();
    const source = (this.source = new EventSource("api/events"));
    this.heard = performance.now();
    source.onopen = () => {
      this.heard = performance.now();
      this.attempts = 0;
      this.on.open();
    };
    source.addEventListener("events", (event) => this.on.events(JSON.parse(event.data)));
    source.onmessage = (event) => {
      this.heard = performance.now();
      this.on.state(JSON.parse(event.data));
    };
    source.onerror = () => this.lose();
  }

  check() {
    if (this.source && performance.now() - this.heard > SILENCE) this.lose();
  }

  lose(reason = "") {
    this.close();
    this.on.lost(reason);
    const pause = PAUSES[Math.min(this.attempts++, PAUSES.length - 1)];
    this.timer = setTimeout(() => this.retry(), pause);
  }

  // An EventSource does not say why it failed; a request does.
  async retry() {
    if (document.hidden) return;
    try {
      const limit = AbortSignal.timeout(SILENCE);
      const answer = await fetch("api/state?events_after=999999999", { signal: limit });
      if (answer.ok) return this.open();
      const told = { 401: "token", 503: "full" };
      this.lose(told[answer.status] ?? "");
    } catch {
      this.lose();
    }
  }
}

export class Pictures {
  // `show(about, bitmap)` is given each picture, `full(whether)` whether there is no room.
  constructor(show, full) {
    this.show = show;
    this.full = full;
    this.cameras = [];
    document.addEventListener("visibilitychange", () => this.watch(this.cameras));
    window.addEventListener("pagehide", () => this.stop?.abort());
  }

  // Watch the cameras with these places from now on.
  watch(cameras) {
    this.cameras = cameras;
    this.stop?.abort();
    clearTimeout(this.timer);
    if (cameras.length && !document.hidden) this.run((this.stop = new AbortController()));
  }

  async run(stop) {
    const query = this.cameras.map((place) => `camera=${place}`).join("&");
    let still;
    const alive = () => {
      clearTimeout(still);
      still = setTimeout(() => stop.abort(), STILL);
    };
    try {
      alive();
      const answer = await fetch(`api/pictures?${query}`, { signal: stop.signal });
      this.full(answer.status === 503);
      if (answer.ok) await this.read(answer.body.getReader(), alive);
    } catch {
      // Lost, or asked to stop; the figures' connection tells the user.
    }
    clearTimeout(still);
    if (stop === this.stop && !document.hidden) {
      this.timer = setTimeout(() => this.watch(this.cameras), PAUSES[1]);
    }
  }

  async read(reader, alive) {
    let have = new Uint8Array(0);
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      const joined = new Uint8Array(have.length + value.length);
      joined.set(have);
      joined.set(value, have.length);
      have = joined;
      for (let size; (size = message(have)) <= have.length; have = have.subarray(size)) {
        await this.take(have.subarray(0, size));
      }
    }
  }

  async take(bytes) {
    const text = lengths(bytes)[0];
    if (!text) return; // it says that it lives
    const about = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + text)));
    const image = new Blob([bytes.subarray(8 + text)], { type: "image/jpeg" });
    const bitmap = await createImageBitmap(image);
    this.show(about, bitmap);
    bitmap.close();
  }
}

function lengths(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return [view.getUint32(0), view.getUint32(4)];
}

function message(bytes) {
  if (bytes.length < 8) return Infinity;
  const [text, image] = lengths(bytes);
  return 8 + text + image;
}
