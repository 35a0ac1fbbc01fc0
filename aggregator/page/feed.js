/* Where the figures come from: server-sent events; where those fail, polling; and the truth about which it is.

   Phases: loading (nothing yet), live (events), polling (asked for, every two seconds), trouble (the service answers, but
   cannot read its counts), locked (it wants a token), lost (nothing answers). Events are read by fetch, since EventSource
   cannot send the token. The age of the data is counted on this machine's own steady clock, from
   the moment it came in, so that a wrong wall clock here or there says nothing false. */

const STREAM = "/api/v1/stream";
const SILENCE_MS = 6000; // an open connection that says nothing for this long is not trusted
const POLL_MS = 2000;
const RETRY_STREAM_MS = 10000;
const REQUEST_MS = 5000;
const HIDDEN_MS = 30000; // a page that nobody sees lets go of its connection

const TOKEN = "demographics-token"; // kept for as long as the tab is open

/** Ask with the token, where one was given. */
function ask(address, signal) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(address, { cache: "no-store", headers, signal });
}

/** Keep a token, or forget it. */
export function keepToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}

export const hasToken = () => Boolean(sessionStorage.getItem(TOKEN));

/** Fetch what a link leads to; a link itself cannot send the token. Gives its contents and the name that they were given. */
export async function fetchFile(address) {
  const response = await ask(address, AbortSignal.timeout(REQUEST_MS));
  if (!response.ok) throw new Error(`the service answered ${response.status}`);
  const named = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") || "");
  return { contents: await response.blob(), name: named?.[1] };
}

/** Read JSON; throws an Error that says what the service said, or that it said nothing (`answered` tells which). */
export async function fetchJson(address) {
  const response = await ask(address, AbortSignal.timeout(REQUEST_MS));
  if (response.ok) return response.json();
  let detail = `the service answered ${response.status}`;
  try {
    detail = (await response.json()).detail || detail;
  } catch {
    // no problem document: the status says enough
  }
  throw Object.assign(new Error(detail), { answered: true, status: response.status });
}

export class Feed {
  /** @param {{document: (d: object) => void, phase: (name: string, detail: string) => void}} listener */
  constructor(listener) {
    this.listener = listener;
    this.phase = "loading";
    this.receivedAt = null; // performance.now() of the last document
    this.source = null;
    this.pollTimer = 0;
    this.retryTimer = 0;
    this.hiddenTimer = 0;
    this.heardAt = performance.now();
  }

  start() {
    this.openStream();
    setInterval(() => this.watch(), 1000);
    document.addEventListener("visibilitychange", () => this.visibility());
    addEventListener("online", () => this.openStream());
    addEventListener("pagehide", () => this.stop());
    addEventListener("pageshow", (event) => event.persisted && this.openStream());
  }

  /** Seconds since the last document; null before the first. */
  get age() {
    return this.receivedAt === null ? null : (performance.now() - this.receivedAt) / 1000;
  }

  openStream() {
    clearTimeout(this.retryTimer);
    this.source?.abort();
    this.heardAt = performance.now();
    const source = new AbortController();
    this.source = source;
    this.read(source).catch(() => {
      if (source === this.source) this.streamFailed();
    });
  }

  /** Read events until the stream ends, which is a failure: it has no end. */
  async read(source) {
    const response = await ask(STREAM, source.signal);
    if (response.status === 401) {
      this.stop();
      this.setPhase("locked", "");
      return;
    }
    if (!response.ok) throw new Error(`the service answered ${response.status}`);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the stream has ended");
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) this.take(event);
    }
  }

  take(event) {
    const data = event.slice(event.indexOf("data: ") + 6);
    this.stopPolling();
    this.heardAt = performance.now();
    if (event.startsWith("event: trouble")) this.setPhase("trouble", JSON.parse(data));
    else this.deliver(JSON.parse(data), "live");
  }

  streamFailed() {
    this.source?.abort();
    this.source = null;
    clearTimeout(this.retryTimer);
    this.retryTimer = setTimeout(() => this.openStream(), RETRY_STREAM_MS);
    if (!this.pollTimer) this.poll();
  }

  watch() {
    if (this.source && performance.now() - this.heardAt > SILENCE_MS) this.streamFailed();
  }

  async poll() {
    clearTimeout(this.pollTimer);
    const mine = setTimeout(() => this.poll(), POLL_MS + REQUEST_MS);
    this.pollTimer = mine;
    let outcome;
    try {
      const parts = ["windows", "cameras", "pipeline"].map((part) => fetchJson(`/api/v1/${part}`));
      const [windows, status, pipeline] = await Promise.all(parts);
      outcome = () => this.deliver({ ...windows, status, pipeline }, "polling");
    } catch (error) {
      if (error.status === 401) {
        this.stop();
        this.setPhase("locked", "");
        return;
      }
      outcome = () => this.setPhase(error.answered ? "trouble" : "lost", error.answered ? error.message : "");
    }
    if (this.pollTimer !== mine) return; // the stream came back meanwhile
    outcome();
    clearTimeout(mine);
    this.pollTimer = setTimeout(() => this.poll(), POLL_MS);
    // Somebody answers again: do not wait out the pause before the stream is tried.
    if (this.phase === "polling" && this.wasLost) {
      this.wasLost = false;
      this.openStream();
    }
    this.wasLost ||= this.phase === "lost";
  }

  stopPolling() {
    clearTimeout(this.pollTimer);
    this.pollTimer = 0;
    this.wasLost = false;
  }

  stop() {
    this.source?.abort();
    this.source = null;
    this.stopPolling();
    clearTimeout(this.retryTimer);
  }

  visibility() {
    clearTimeout(this.hiddenTimer);
    if (document.hidden) {
      this.hiddenTimer = setTimeout(() => this.stop(), HIDDEN_MS);
    } else if (!this.source) {
      this.openStream();
    }
  }

  deliver(state, phase) {
    this.receivedAt = performance.now();
    this.listener.document(state);
    this.setPhase(phase, "");
  }

  setPhase(phase, detail) {
    this.phase = phase;
    this.listener.phase(phase, detail);
  }
}
