/* Small helpers: elements, text and numbers. Text always goes in as text, never as markup. */

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Make an element with a class and text or children. */
export function make(tag, className = "", content = []) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...(Array.isArray(content) ? content : [String(content)]));
  return node;
}

/** Make an SVG element with attributes. */
export function draw(tag, attributes = {}, content = []) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...(Array.isArray(content) ? content : [String(content)]));
  return node;
}

/** Set text where it differs, so that nothing that reads along is disturbed without need. */
export function setText(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Set a class or a data attribute where it differs. */
export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Set how far a bar reaches, from 0 to 1. */
export function setReach(bar, ratio) {
  bar.style.setProperty("--reach", Number.isFinite(ratio) ? ratio.toFixed(4) : "0");
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const clockSeconds = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const formatCount = (n) => whole.format(n);
export const formatTenth = (n) => tenth.format(n);
export const formatCompact = (n) => (n < 100000 ? whole.format(n) : compact.format(n));
export const formatTime = (seconds) => clock.format(new Date(seconds * 1000));
export const formatTimeSeconds = (seconds) => clockSeconds.format(new Date(seconds * 1000));

/** Write what each of *counts* is of their sum, in whole percents that add up to 100 (largest remainders first). */
export function formatShares(counts) {
  const all = counts.reduce((sum, n) => sum + n, 0);
  if (!all) return counts.map(() => "–");
  const exact = counts.map((n) => (100 * n) / all);
  const percents = exact.map(Math.floor);
  const short = 100 - percents.reduce((sum, n) => sum + n, 0);
  const byRemainder = exact.map((_, i) => i).sort((a, b) => exact[b] - percents[b] - (exact[a] - percents[a]));
  for (const i of byRemainder.slice(0, short)) percents[i] += 1;
  return percents.map((percent, i) => (percent === 0 && counts[i] ? "<1%" : `${percent}%`));
}

/** "1 visitor", "2 visitors". */
export const plural = (n, one, many = `${one}s`) => `${formatCount(n)} ${n === 1 ? one : many}`;

/** Write a duration in words: "15 minutes"; for an age, "12 s". */
export function formatDuration(seconds) {
  for (const [size, unit] of [[86400, "day"], [3600, "hour"], [60, "minute"]]) {
    if (seconds >= size && seconds % size === 0) {
      return unit === "day" && seconds === 86400 ? "24 hours" : plural(seconds / size, unit);
    }
  }
  return plural(seconds, "second");
}

export function formatAge(seconds) {
  if (seconds < 90) return `${Math.floor(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${formatTenth(seconds / 3600)} h`;
}
