/* The trend: one bar per bucket, drawn as SVG at the size it is shown; read bar by bar with pointer or arrow keys. */

import { byId, draw, formatCount, formatTime, make, plural, setAttribute, setText } from "./dom.js";

const LEFT = 34;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 24;

/** Give an axis: its top, and ticks in whole numbers. */
export function wholeTicks(most) {
  let step = 1;
  for (let power = 1; most / step > 4; power *= 10) {
    step = [power, 2 * power, 5 * power].find((size) => most / size <= 4) ?? 10 * power;
  }
  const top = Math.max(2, Math.ceil(most / step) * step);
  return { top, ticks: Array.from({ length: Math.floor(top / step) + 1 }, (_, i) => i * step) };
}

/** Give the pace, in seconds, of labels under the bars: at least *leastPx* apart. */
export function timeStep(spanSeconds, widthPx, leastPx = 64) {
  const paces = [10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 14400, 21600, 43200, 86400, 172800];
  return paces.find((pace) => (widthPx * pace) / spanSeconds >= leastPx) ?? paces.at(-1);
}

export class Trend {
  constructor() {
    this.plot = byId("trend-plot");
    this.series = null;
    this.chosen = null; // start of the bucket under the pointer or the keys
    this.bright = 0; // seconds: the newest bars, those of the chosen window, are drawn strong
    new ResizeObserver(() => this.redraw()).observe(this.plot);
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.choose(null));
    this.plot.addEventListener("blur", () => this.choose(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
  }

  show(series, brightSeconds) {
    this.series = series;
    this.bright = brightSeconds;
    this.redraw();
    this.table();
  }

  redraw() {
    const buckets = this.series?.buckets ?? [];
    const width = this.plot.clientWidth;
    const height = this.plot.clientHeight;
    if (!buckets.length || width < 80 || height < 60) return;
    const bucketSeconds = this.series.bucket_s;
    const { top, ticks } = wholeTicks(Math.max(...buckets.map((bucket) => bucket.visitors)));
    const inner = width - LEFT - RIGHT;
    const slot = inner / buckets.length;
    const floor = height - BOTTOM;
    const y = (value) => floor - (value / top) * (floor - TOP);
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false" });

    for (const tick of ticks) {
      svg.append(
        draw("line", { class: tick ? "grid" : "axis", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
        draw("text", { class: "tick", x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, formatCount(tick)),
      );
    }

    const last = buckets.at(-1).start;
    const brightFrom = last + bucketSeconds - this.bright;
    buckets.forEach((bucket, index) => {
      const x = LEFT + index * slot;
      const kind = [
        "bar",
        bucket.start >= brightFrom ? "" : "pale",
        bucket.start === last ? "open" : "",
        bucket.start === this.chosen ? "chosen" : "",
      ];
      const barTop = y(bucket.visitors);
      const gap = Math.min(3, slot * 0.22);
      if (bucket.visitors) {
        svg.append(
          draw("path", { class: kind.filter(Boolean).join(" "), d: roundedBar(x + gap / 2, barTop, slot - gap, floor - barTop) }),
        );
      }
      if (bucket.start === this.chosen) {
        svg.append(draw("line", { class: "cursor", x1: x + slot / 2, x2: x + slot / 2, y1: TOP - 4, y2: floor }));
      }
    });

    const pace = timeStep(buckets.length * bucketSeconds, inner);
    const offset = new Date(last * 1000).getTimezoneOffset() * 60;
    buckets.forEach((bucket, index) => {
      if ((bucket.start - offset) % pace !== 0) return;
      const x = LEFT + index * slot;
      if (x < LEFT + 12 || x > width - RIGHT - 18) return;
      svg.append(
        draw("line", { class: "axis", x1: x, x2: x, y1: floor, y2: floor + 4 }),
        draw("text", { class: "tick", x, y: height - 5, "text-anchor": "middle" }, formatTime(bucket.start)),
      );
    });
    this.plot.replaceChildren(svg);
    this.say();
  }

  /** Tell the bar under pointer or keys, or the whole in a sentence. */
  say() {
    const { buckets } = this.series;
    const index = buckets.findIndex((bucket) => bucket.start === this.chosen);
    const sum = buckets.reduce((all, bucket) => all + bucket.visitors, 0);
    const busiest = buckets.reduce((most, bucket) => (bucket.visitors > most.visitors ? bucket : most));
    let text = sum ? `Busiest at ${this.time(busiest.start)}: ${plural(busiest.visitors, "visitor")}` : "Nobody yet";
    if (index >= 0) {
      const chosen = buckets[index];
      const open = index === buckets.length - 1 ? ", so far" : "";
      text = `${this.time(chosen.start)}: ${plural(chosen.visitors, "visitor")}${open}`;
    }
    setText(byId("trend-readout"), text);
    setAttribute(this.plot, "aria-valuemax", buckets.length - 1);
    setAttribute(this.plot, "aria-valuenow", index >= 0 ? index : buckets.length - 1);
    setAttribute(this.plot, "aria-valuetext", text);
  }

  time(start) {
    const seconds = this.series.bucket_s;
    const shown = seconds < 60 ? new Date(start * 1000).toLocaleTimeString("en-GB") : formatTime(start);
    return seconds > 60 ? `${shown}–${formatTime(start + seconds)}` : shown;
  }

  table() {
    const body = byId("trend-table");
    const rows = [...this.series.buckets].reverse();
    while (body.rows.length > rows.length) body.deleteRow(-1);
    while (body.rows.length < rows.length) {
      const head = make("th");
      head.scope = "row";
      body.append(make("tr", "", [head, make("td", "num"), make("td", "num")]));
    }
    rows.forEach((bucket, index) => {
      const { cells } = body.rows[index];
      setText(cells[0], this.time(bucket.start));
      setText(cells[1], formatCount(bucket.visitors));
      setText(cells[2], formatCount(bucket.unknown));
    });
  }

  choose(start) {
    if (this.chosen === start) return;
    this.chosen = start;
    this.redraw();
  }

  point(event) {
    const buckets = this.series?.buckets ?? [];
    if (!buckets.length) return;
    const x = event.clientX - this.plot.getBoundingClientRect().left - LEFT;
    const index = Math.floor((x / (this.plot.clientWidth - LEFT - RIGHT)) * buckets.length);
    this.choose(buckets[index]?.start ?? null);
  }

  key(event) {
    const buckets = this.series?.buckets ?? [];
    if (!buckets.length) return;
    const found = buckets.findIndex((bucket) => bucket.start === this.chosen);
    const end = buckets.length - 1;
    const now = found < 0 ? end + 1 : found;
    const steps = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, Home: 0, End: end };
    const pages = { PageDown: now - 10, PageUp: now + 10 };
    const wanted = steps[event.key] ?? pages[event.key];
    if (event.key === "Escape") this.choose(null);
    if (wanted === undefined) return;
    event.preventDefault();
    this.choose(buckets[Math.min(end, Math.max(0, wanted))].start);
  }
}

function roundedBar(x, y, width, height) {
  const r = Math.min(3, width / 2, height);
  return `M${x},${y + height}v${r - height}q0,${-r} ${r},${-r}h${width - 2 * r}q${r},0 ${r},${r}v${height - r}z`;
}
