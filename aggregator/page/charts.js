/* The population pyramid and the shares. Both are tables whose cells hold a bar and its number: what is drawn is what is read. */

import { formatCount, formatShares, make, plural, setReach, setText } from "./dom.js";

const NAMES = { male: "Male", female: "Female", unknown: "Unknown", white: "White", black: "Black", asian: "Asian",
                indian: "Indian", other: "Other" };

const sum = (counts) => Object.values(counts).reduce((all, n) => all + n, 0);

/** Say what this deployment computes, from what there is: attributes that are switched off are nowhere counted. */
export function computed(tallies) {
  const any = (pick) => tallies.some((tally) => sum(pick(tally)) > 0);
  return {
    anything: tallies.some((tally) => tally.visitors > tally.unknown + tally.suppressed),
    age: any((tally) => tally.age_band),
    gender: any((tally) => tally.gender),
    ethnicity: any((tally) => tally.ethnicity),
  };
}

/** Rebuild *host* with *build* only when *key* has changed; give what was built. */
function built(host, key, build) {
  if (host.dataset.key !== key) {
    host.dataset.key = key;
    host.parts = build(host);
  }
  return host.parts;
}

function heading(text, className = "", scope = "col") {
  const cell = make("th", className, text);
  cell.scope = scope;
  return cell;
}

function caption(text) {
  return make("caption", "sr", text);
}

function lane(className) {
  const bar = make("span", `reach ${className}`);
  const number = make("span", "n", "0");
  const cell = make("td", `lane ${className}`, [make("div", "", [bar, number])]);
  return { cell, bar, number };
}

// --- the pyramid ---------------------------------------------------------------------------------------------------------

export function showPyramid(host, tally, has) {
  const bands = Object.keys(tally.age_band).reverse(); // the oldest on top, as population pyramids are drawn
  const sides = has.gender || !has.anything ? Object.keys(tally.gender) : ["all"];
  const parts = built(host, `pyramid ${sides} ${bands}`, () => buildPyramid(host, bands, sides));
  const count = (band, side) => (side === "all" ? tally.age_band[band] : tally.pyramid[band][side]);
  const known = bands.reduce((all, band) => all + sides.reduce((row, side) => row + count(band, side), 0), 0);
  const longest = Math.max(1, ...bands.flatMap((band) => sides.map((side) => count(band, side))));
  parts.empty.hidden = known > 0;
  const why = tally.suppressed ? "Too few to be told apart: not broken down." : "Too little was seen of anybody to say.";
  setText(parts.empty, tally.visitors ? why : "Nobody was seen in this time.");
  const sums = sides.map((side) => bands.reduce((n, band) => n + count(band, side), 0));
  const shares = formatShares(sums);
  for (const [index, side] of sides.entries()) {
    if (side !== "all") setText(parts.shares[side], known ? shares[index] : "");
    for (const band of bands) {
      const { bar, number, cell } = parts.lanes[`${band} ${side}`];
      setReach(bar, count(band, side) / longest);
      setText(number, formatCount(count(band, side)));
      cell.classList.toggle("zero", count(band, side) === 0);
    }
  }
}

function buildPyramid(host, bands, sides) {
  const table = make("table", sides.length === 1 ? "pyramid single" : "pyramid");
  const lanes = {};
  const shares = {};
  const [left, right] = sides.length === 1 ? [null, sides[0]] : sides;
  const head = (side) => {
    shares[side] = make("span", "share");
    return heading([make("span", "name", NAMES[side] ?? "Visitors"), shares[side]], side);
  };
  const row = make("tr", "", left ? [head(left), heading("Age", "band"), head(right)] : [heading("Age", "band"), head(right)]);
  const body = make("tbody");
  for (const band of bands) {
    const cells = { [right]: lane(right), ...(left ? { [left]: lane(left) } : {}) };
    for (const side of sides) lanes[`${band} ${side}`] = cells[side];
    const label = heading(band.replace("-", "–"), "band", "row");
    body.append(make("tr", "", left ? [cells[left].cell, label, cells[right].cell] : [label, cells[right].cell]));
  }
  table.append(caption("Visitors by age band and gender"), make("thead", "", [row]), body);
  const empty = make("p", "hint");
  host.replaceChildren(table, empty);
  return { lanes, shares, empty };
}

// --- the shares ----------------------------------------------------------------------------------------------------------

export function showShares(host, tally, has) {
  const genders = has.gender || !has.anything ? Object.keys(tally.gender) : [];
  const ethnicities = has.ethnicity ? Object.keys(tally.ethnicity) : [];
  const parts = built(host, `shares ${genders} ${ethnicities}`, () => buildShares(host, genders, ethnicities));
  const { visitors, suppressed } = tally;
  const unknown = tally.unknown + suppressed; // not told: too little was seen of them, or they are too few to be told apart

  const pieces = [...genders.map((name) => [name, tally.gender[name]]), ["unknown", unknown]];
  if (!genders.length) pieces.unshift(["known", visitors - unknown]);
  const pieceShares = formatShares(pieces.map(([, n]) => n));
  for (const [index, [name, n]] of pieces.entries()) {
    const piece = parts.pieces[name];
    setReach(piece.segment, visitors ? n / visitors : 0);
    setText(piece.share, pieceShares[index]);
    setText(piece.number, formatCount(n));
  }
  parts.stack.classList.toggle("none", !visitors);
  setText(
    parts.note,
    suppressed
      ? `${plural(suppressed, "visitor")} not broken down: too few before one camera.`
      : unknown
        ? `${plural(unknown, "visitor")} could not be told: counted, not guessed.`
        : "Whoever cannot be told is counted, not guessed.",
  );

  const longest = Math.max(1, ...Object.values(tally.ethnicity));
  const shares = formatShares(ethnicities.map((name) => tally.ethnicity[name]));
  for (const [index, name] of ethnicities.entries()) {
    const { bar, number, share, cell } = parts.rows[name];
    setReach(bar, tally.ethnicity[name] / longest);
    setText(number, formatCount(tally.ethnicity[name]));
    setText(share, shares[index]);
    cell.classList.toggle("zero", tally.ethnicity[name] === 0);
  }
}

function buildShares(host, genders, ethnicities) {
  const pieces = {};
  const rows = {};
  const names = genders.length ? [...genders, "unknown"] : ["known", "unknown"];
  const stack = make("div", "stack");
  stack.setAttribute("aria-hidden", "true");
  const labels = make("tr");
  const values = make("tr");
  for (const name of names) {
    const segment = make("span", `piece ${name}`);
    const share = make("span", "share", "–");
    const number = make("span", "n", "0");
    stack.append(segment);
    labels.append(heading([make("span", `key ${name}`), NAMES[name] ?? "Known"]));
    values.append(make("td", "", [share, " ", number]));
    pieces[name] = { segment, share, number };
  }
  const gender = make("table", "legend", [
    caption(genders.length ? "Share and number by gender" : "Share and number unknown"),
    make("thead", "", [labels]),
    make("tbody", "", [values]),
  ]);
  const note = make("p", "note");
  const blocks = [make("div", "block", [make("h3", "", genders.length ? "Gender" : "Known"), stack, gender, note])];

  if (ethnicities.length) {
    const list = make("tbody");
    for (const name of ethnicities) {
      const made = lane("one");
      const share = make("td", "share", "–");
      list.append(make("tr", "", [heading(NAMES[name] ?? name, "", "row"), made.cell, share]));
      rows[name] = { ...made, share };
    }
    const columns = make("thead", "sr", [make("tr", "", [heading("Group"), heading("Visitors"), heading("Share")])]);
    const table = make("table", "bars", [caption("Visitors by ethnicity"), columns, list]);
    const said = make("p", "note", "A model's estimate; shares of those it could tell.");
    blocks.push(make("div", "block", [make("h3", "", "Ethnicity"), table, said]));
  }
  host.replaceChildren(...blocks);
  return { pieces, rows, stack, note };
}
