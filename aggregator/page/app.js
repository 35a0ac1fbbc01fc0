/* The live page: takes what the feed brings and shows it. No markup is ever made from data. */

import { computed, showPyramid, showShares } from "./charts.js";
import {
  byId, formatAge, formatCompact, formatCount, formatDuration, formatTenth, formatTimeSeconds, make, plural, setAttribute,
  setReach, setText,
} from "./dom.js";
import { Feed, fetchFile, fetchJson, hasToken, keepToken } from "./feed.js";
import { Trend } from "./trend.js";

const EVER = "ever";
const TREND_MS = 5000;
const LEAST_TREND_S = 3600;
const STALE_S = 5;
const NOTICE_S = 3; // a hiccup shorter than this is not worth a banner

const STATES = {
  running: ["Running", "good"],
  connecting: ["Connecting", "wait"],
  ended: ["Ended", "rest"],
  paused: ["Paused", "rest"],
  lost: ["Lost", "bad"],
  refused: ["Login refused", "bad"],
  not_found: ["Not found", "bad"],
  unreadable: ["Unreadable", "bad"],
  unreachable: ["Unreachable", "bad"],
  stalled: ["Stalled", "bad"],
  too_fast: ["Too fast", "bad"],
  forbidden: ["Not allowed", "bad"],
  silent: ["Silent", "bad"],
};
const PIPELINE = {
  good: ["Counting", "good"],
  quiet: ["Quiet", "rest"],
  late: ["Behind the cameras", "wait"],
  trouble: ["In trouble", "bad"],
};
const ORDER = { bad: 0, wait: 1, good: 2, rest: 3 };

let state = null;
let chosen = decodeURIComponent(location.hash.slice(1));
let troubleText = "";
let troubleSince = null;
let said = "";

const trend = new Trend();
const feed = new Feed({
  document(incoming) {
    state = incoming;
    show();
  },
  phase(name, detail) {
    troubleText = detail;
    if (name === "trouble" || name === "lost") troubleSince ??= performance.now();
    else troubleSince = null;
    lock(name === "locked");
    showPhase();
  },
});

// --- the token ------------------------------------------------------------------------------------------------------------

/** Ask for the token where the service wants one. */
function lock(locked) {
  const form = byId("unlock");
  if (form.hidden === !locked) return;
  form.hidden = !locked;
  byId("main").hidden = locked;
  if (!locked) return;
  setText(byId("unlock-said"), hasToken() ? "The token that was given is not the one." : "");
  keepToken("");
  byId("token").focus();
}

byId("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(byId("token").value.trim());
  byId("token").value = "";
  byId("unlock").hidden = true;
  feed.openStream();
});

/* The links in the foot lead to figures that want the token, too: with one, they are fetched with it and saved. */
byId("data").addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-name]");
  const locked = !byId("unlock").hidden;
  if (!link || !(locked || hasToken())) return;
  event.preventDefault();
  setText(byId("data-said"), locked ? "Give the token first: these figures are asked for with it, too." : "");
  if (locked) {
    byId("token").focus();
    return;
  }
  try {
    const { contents, name } = await fetchFile(link.getAttribute("href"));
    const address = URL.createObjectURL(contents);
    const saved = make("a");
    saved.href = address;
    saved.download = name || link.dataset.name;
    saved.click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  } catch (error) {
    setText(byId("data-said"), `${link.textContent} cannot be fetched: ${error.message}.`);
  }
});

// --- which window ---------------------------------------------------------------------------------------------------------

/** List what can be chosen: every rolling window, and everything ever counted. */
function choices() {
  return [...state.windows, { ...state.total, name: EVER, seconds: Infinity }];
}

function current() {
  const all = choices();
  return all.find((one) => one.name === chosen) ?? all.find((one) => one.seconds >= 900) ?? all[0];
}

const label = (one) => (one.name === EVER ? "All time" : formatDuration(one.seconds));
const scope = (one) => (one.name === EVER ? "all time, once they have left" : `last ${formatDuration(one.seconds).replace(/^1 /, "")}`);

function choose(name) {
  chosen = name;
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  show();
  refreshTrend();
}

addEventListener("hashchange", () => {
  chosen = decodeURIComponent(location.hash.slice(1));
  if (state) choose(current().name);
});

function showTiles() {
  const host = byId("windows");
  const all = choices();
  const key = all.map((one) => one.name).join(" ");
  if (host.dataset.key !== key) {
    host.dataset.key = key;
    const tiles = all.map((one) => {
      const input = make("input", "sr");
      Object.assign(input, { type: "radio", name: "window", value: one.name, id: `window-${one.name}` });
      input.addEventListener("change", () => choose(one.name));
      const number = make("span", "big", "0");
      number.dataset.window = one.name;
      const tile = make("label", "tile", [
        input,
        make("span", "when", label(one)),
        number,
        make("span", "sr", " visitors"),
      ]);
      tile.htmlFor = input.id;
      return tile;
    });
    host.replaceChildren(host.querySelector("legend"), ...tiles);
  }
  const picked = current().name;
  for (const one of all) {
    const input = byId(`window-${one.name}`);
    input.checked = one.name === picked;
    setText(host.querySelector(`[data-window="${CSS.escape(one.name)}"]`), formatCompact(one.visitors));
  }
}

// --- the cameras ----------------------------------------------------------------------------------------------------------

/** List the cameras that report, and those that are only known by the visitors they have counted; trouble first. */
function cameraRows(window) {
  const rows = state.status.map((camera) => ({ ...camera, visitors: window.cameras[camera.id]?.visitors ?? 0 }));
  const known = new Set(rows.map((camera) => camera.id));
  for (const [id, tally] of Object.entries(window.cameras)) {
    if (!known.has(id)) rows.push({ id, site: tally.site, state: "silent", reason: "has not reported", visitors: tally.visitors });
  }
  const rank = (camera) => ORDER[STATES[camera.state]?.[1] ?? "wait"];
  return rows.sort((a, b) => rank(a) - rank(b) || a.site.localeCompare(b.site) || a.id.localeCompare(b.id));
}

function cameraRow() {
  const name = make("th", "who", [make("span", "id"), make("span", "site")]);
  name.scope = "row";
  const sign = make("span", "sign");
  sign.setAttribute("aria-hidden", "true");
  const reason = make("span", "reason");
  const condition = make("td", "state", [make("span", "line", [sign, make("span", "word")]), reason]);
  const numbers = ["Frames/s", "Frames", "Reconnects"].map((title) => {
    const cell = make("td", "num");
    cell.dataset.label = title;
    return cell;
  });
  const visitors = make("td", "num visitors", [make("span", "count"), make("span", "reach one")]);
  visitors.dataset.label = "Visitors";
  const row = make("tr", "", [name, condition, ...numbers, visitors]);
  row.setAttribute("role", "row");
  for (const cell of row.cells) cell.setAttribute("role", cell === name ? "rowheader" : "cell");
  return row;
}

function fillRow(row, camera, most) {
  const [word, kind] = STATES[camera.state] ?? [camera.state, "wait"];
  const silent = camera.state === "silent" && camera.reported_at;
  const reason = silent ? `nothing heard for ${formatAge(state.now - camera.reported_at)}` : camera.reason;
  setAttribute(row, "data-camera", camera.id);
  setAttribute(row, "data-kind", kind);
  setText(row.querySelector(".id"), camera.id);
  setText(row.querySelector(".site"), camera.site);
  setText(row.querySelector(".word"), word);
  setText(row.querySelector(".reason"), camera.state === "running" ? camera.advice || "" : reason || "");
  const [fps, frames, reconnects] = row.querySelectorAll("td.num");
  setText(fps, camera.fps === undefined ? "–" : formatTenth(camera.fps));
  setText(frames, camera.frames === undefined ? "–" : formatCompact(camera.frames));
  setText(reconnects, camera.reconnects === undefined ? "–" : formatCount(camera.reconnects));
  setText(row.querySelector(".count"), formatCount(camera.visitors));
  setReach(row.querySelector(".reach"), most ? camera.visitors / most : 0);
}

function showCameras(window) {
  const rows = cameraRows(window);
  const body = byId("cameras");
  const most = Math.max(0, ...rows.map((camera) => camera.visitors));
  byId("cameras-empty").hidden = rows.length > 0;
  byId("cameras-scroll").hidden = rows.length === 0;
  while (body.rows.length > rows.length) body.deleteRow(-1);
  while (body.rows.length < rows.length) body.append(cameraRow());
  rows.forEach((camera, index) => fillRow(body.rows[index], camera, most));
  const running = rows.filter((camera) => camera.state === "running").length;
  const health = byId("camera-health");
  health.hidden = rows.length === 0;
  const summary = rows.length === 1 ? (running ? "1 camera, running" : "1 camera, not running") : `${running} of ${rows.length} cameras running`;
  setText(health, summary);
  health.classList.toggle("bad", rows.some((camera) => STATES[camera.state]?.[1] === "bad"));
  setText(byId("cameras-scope"), `visitors: ${scope(window)}`);
}

// --- the pipeline ---------------------------------------------------------------------------------------------------------

function showPipeline(pipeline) {
  const [word, kind] = PIPELINE[pipeline.state] ?? [pipeline.state, "wait"];
  const node = byId("pipeline-state");
  setAttribute(node, "data-kind", kind);
  setText(node.querySelector(".word"), word);
  setText(byId("pipeline-problems"), pipeline.problems.join(" "));
  byId("pipeline-problems").hidden = !pipeline.problems.length;
  const { latency_s: latency, waiting } = pipeline;
  const seconds = (n) => `${formatTenth(n)} s`;
  setText(byId("pipeline-half"), latency ? seconds(latency.half) : "–");
  setText(byId("pipeline-most"), latency ? seconds(latency.most) : "–");
  setText(byId("pipeline-rate"), formatTenth(pipeline.records_per_s));
  setText(byId("pipeline-waiting"), formatCompact(Object.values(waiting).reduce((all, n) => all + n, 0)));
  setText(byId("pipeline-open"), formatCount(pipeline.open_tracks));
  setText(byId("pipeline-dead"), formatCount(pipeline.dead_letters));
  setText(byId("pipeline-scope"), "camera to count, last minute");
}

// --- the whole ------------------------------------------------------------------------------------------------------------

function show() {
  if (!state) return;
  document.body.classList.remove("loading");
  const window = current();
  const has = computed([...state.windows, state.total]);
  showTiles();
  for (const node of document.querySelectorAll("[data-scope]")) setText(node, `${plural(window.visitors, "visitor")}, ${scope(window)}`);
  byId("cards").classList.toggle("ageless", has.anything && !has.age);
  setText(byId("pyramid-title"), has.gender || !has.anything ? "Age and gender" : "Age");
  showPyramid(byId("pyramid"), window, has);
  showShares(byId("shares"), window, has);
  showCameras(window);
  showPipeline(state.pipeline);
  setText(byId("clock"), formatTimeSeconds(state.now));
  byId("clock").dateTime = new Date(state.now * 1000).toISOString();
  document.title = `${formatCount(window.visitors)} visitors, ${scope(window)}`;
}

// --- the trend ------------------------------------------------------------------------------------------------------------

/** Draw at least an hour: the chosen window where it is longer, else the shortest that holds an hour. */
function trendWindow() {
  const window = current();
  const windows = state.windows;
  if (window.name === EVER) return windows.at(-1);
  return windows.find((one) => one.seconds >= Math.max(window.seconds, LEAST_TREND_S)) ?? windows.at(-1);
}

async function refreshTrend() {
  if (!state || document.hidden) return;
  const shown = trendWindow();
  try {
    const series = await fetchJson(`/api/v1/visitors?window=${encodeURIComponent(shown.name)}`);
    if (trendWindow().name !== series.window) return; // another window was chosen meanwhile
    setText(byId("trend-title"), `Last ${formatDuration(shown.seconds).replace(/^1 /, "")}`);
    setText(byId("trend-scope"), `visitors per ${formatDuration(series.bucket_s).replace(/^1 /, "")}, by first sight`);
    trend.show(series, Math.min(current().seconds, shown.seconds));
  } catch {
    // The feed says what is wrong; the trend keeps what it has.
  }
}

// --- how fresh it is ------------------------------------------------------------------------------------------------------

/** Put into words what stands between the viewer and the truth: [phase, title, text]; nothing where all is well. */
function condition() {
  const age = feed.age;
  const since = age === null ? "Nothing has been shown yet." : `Shown: ${formatTimeSeconds(state.now)}, ${formatAge(age)} ago.`;
  const patient = troubleSince === null || (performance.now() - troubleSince) / 1000 < NOTICE_S;
  if (feed.phase === "lost" && (!patient || age === null)) return ["lost", "Connection lost.", `${since} Trying again.`];
  if (feed.phase === "trouble" && (!patient || age === null)) {
    return ["trouble", "The counts cannot be read.", `${troubleText ? `${troubleText}. ` : ""}${since} Trying again.`];
  }
  if (age !== null && age > STALE_S) return ["stale", "These figures are old.", since];
  if (!state) return null;
  const states = state.status.map((camera) => camera.state);
  if (!states.length && !state.total.visitors && !state.windows.some((window) => window.visitors)) {
    return ["info", "No camera has reported yet.", "Figures appear as soon as one runs and somebody walks past."];
  }
  if (states.length && states.every((one) => one === "ended")) return ["info", "Every source has ended.", "The counts stand as they are."];
  if (states.length && !states.includes("running")) return ["quiet", "No camera is running.", "Nobody can be counted until one is back."];
  if (!state.total.visitors && !state.windows.some((window) => window.visitors)) {
    return ["info", "No visitors yet.", "Somebody is counted as soon as a face has passed a camera."];
  }
  return null;
}

const PILLS = { loading: "Connecting", locked: "Locked", live: "Live", polling: "Live", waiting: "Reconnecting", trouble: "Trouble",
                lost: "Offline", stale: "Stale" };

function showPhase() {
  const now = condition();
  const failing = ["lost", "trouble"].includes(feed.phase);
  const phase = now && ["lost", "trouble", "stale"].includes(now[0]) ? now[0] : failing ? "waiting" : feed.phase;
  setAttribute(byId("pill"), "data-phase", phase);
  setText(byId("pill-text"), PILLS[phase] ?? "Live");
  setAttribute(byId("pill"), "title", phase === "polling" ? "Asked for every two seconds: no stream could be opened" : "");
  document.body.classList.toggle("old", ["lost", "trouble", "stale"].includes(phase) && state !== null);
  const banner = byId("banner");
  banner.hidden = now === null;
  if (now) {
    setAttribute(banner, "data-kind", now[0]);
    setText(byId("banner-sign"), now[0] === "info" ? "i" : "!");
    setText(byId("banner-title"), now[1]);
    setText(byId("banner-text"), now[2]);
  }
  // Only a change of condition is spoken, not the seconds that pass.
  const spoken = now ? now[1] : said ? "Live again." : "";
  if (spoken !== said) {
    said = spoken;
    setText(byId("announce"), spoken);
  }
}

setInterval(showPhase, 1000);
setInterval(refreshTrend, TREND_MS);
feed.start();
const firstTrend = setInterval(() => {
  if (state) {
    clearInterval(firstTrend);
    refreshTrend();
  }
}, 100);
document.addEventListener("visibilitychange", refreshTrend);
