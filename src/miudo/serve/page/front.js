// The Pareto front of a compression: a report.json of `miudo shrink`, read in this page alone.
// For: every measured file by size and one other figure, with the front as a line.
// Read next: docs/shrink.md, which says what the figures are.

import { h, labelled, svg } from "./dom.js";
import { number, t } from "./words.js";

const WIDE = 640, HIGH = 360, LEFT = 64, BELOW = 44, ABOVE = 16, RIGHT = 16;
const AXES = {
  perplexity: { name: "perplexity", digits: 2 },
  kl: { name: "kl_axis", digits: 4 },
  new_tokens_per_s: { name: "speed_axis", digits: 0, more: true },
};

export function front(page) {
  const file = h("input", { type: "file", accept: "application/json,.json" });
  const axis = h("select", { onchange: () => draw() }, Object.entries(AXES).map(([key, { name }]) => h("option", { value: key }, t(name))));
  const shown = h("div", { class: "stack" }, h("p", { class: "hint" }, t("front_empty")));
  let report = null;

  file.addEventListener("change", async () => {
    try {
      report = checked(JSON.parse(await file.files[0].text()));
      draw();
    } catch (error) {
      page.tell(new Error(t("report_bad", { reason: error.message })));
    }
  });

  function draw() {
    if (!report) return;
    shown.replaceChildren(
      h("section", { class: "card" }, h("div", { class: "scroll" }, plot(report.rows, axis.value)), keys()),
      h("section", { class: "card scroll" }, table(report.rows)),
    );
  }

  return {
    element: h("div", { class: "stack" }, h("div", { class: "card choosers" }, labelled(t("report"), file), labelled(t("upright"), axis)), shown),
    evidence: () => report && { models: [], report },
  };
}

function checked(report) {
  if (report?.schema !== 1 || !Array.isArray(report.rows)) throw new Error("schema, rows");
  for (const row of report.rows) {
    if (typeof row.name !== "string" || !(row.size_bytes > 0) || !(row.perplexity > 0)) throw new Error(JSON.stringify(row.name));
  }
  return report;
}

const kindOf = (row) => (row.kind === "teacher" || row.kind === "candidate" ? row.kind : "control");

// Round numbers within [low, high], about `wanted` of them.
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(at);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step))) };
}

function scale(values, from, to) {
  const low = Math.min(...values), high = Math.max(...values), margin = (high - low || high || 1) * 0.08;
  const [a, b] = [Math.max(0, low - margin), high + margin];
  return { a, b, at: (value) => from + ((value - a) / (b - a)) * (to - from) };
}

// Of the candidates those that none of their size or smaller is better than, by size. The report's own
// front counts speed too.
function frontier(rows, key) {
  const sign = AXES[key].more ? -1 : 1, found = [];
  const candidates = rows.filter((row) => row.kind === "candidate");
  candidates.sort((a, b) => a.size_bytes - b.size_bytes || sign * (a[key] - b[key]));
  for (const row of candidates) {
    if (!found.length || sign * row[key] < sign * found.at(-1)[key]) found.push(row);
  }
  return found;
}

function plot(all, key) {
  const rows = all.filter((row) => Number.isFinite(row[key]));
  const x = scale(rows.map((r) => r.size_bytes / 1e6), LEFT, WIDE - RIGHT), y = scale(rows.map((r) => r[key]), HIGH - BELOW, ABOVE);
  const place = (row) => [x.at(row.size_bytes / 1e6), y.at(row[key])];
  const across = ticks(x.a, x.b, 6), up = ticks(y.a, y.b, 5);
  const joined = frontier(rows, key).map((row) => place(row).join(","));
  const marks = rows.map((row) => {
    const [cx, cy] = place(row);
    const title = svg("title", {}, `${row.name}: ${number(row.size_bytes / 1e6, 2)} MB, ${number(row[key], AXES[key].digits)}`);
    const ring = row.chosen ? svg("circle", { cx, cy, r: 10, class: "ring" }) : null;
    return svg("g", {}, ring, svg("circle", { cx, cy, r: 5, class: `dot ${kindOf(row)}` }, title));
  });
  return svg(
    "svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, class: "plot", role: "img", "aria-label": t("front_label", { n: rows.length }) },
    up.found.map((v) => [svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y.at(v), y2: y.at(v) }), svg("text", { x: LEFT - 8, y: y.at(v) + 4, class: "end" }, number(v, up.digits))]).flat(),
    across.found.map((v) => svg("text", { x: x.at(v), y: HIGH - BELOW + 18, class: "middle" }, number(v, across.digits))),
    svg("text", { x: (LEFT + WIDE) / 2, y: HIGH - 6, class: "middle soft" }, t("size_axis")),
    svg("text", { x: 0, y: 0, transform: `translate(14 ${(HIGH - BELOW) / 2}) rotate(-90)`, class: "middle soft" }, t(AXES[key].name)),
    svg("polyline", { points: joined.join(" "), class: "joined" }), marks,
  );
}

function keys() {
  const dot = (kind) => svg("svg", { viewBox: "0 0 22 22", width: 18, height: 18, "aria-hidden": "true" },
    kind === "chosen" ? svg("circle", { cx: 11, cy: 11, r: 9, class: "ring" }) : null,
    kind === "line" ? svg("polyline", { points: "1,17 21,5", class: "joined" }) : svg("circle", { cx: 11, cy: 11, r: 5, class: `dot ${kind === "chosen" ? "candidate" : kind}` }));
  return h("p", { class: "legend" }, ["teacher", "candidate", "control", "chosen", "line"].map((kind) => h("span", { class: "key" }, dot(kind), t(kind))));
}

function table(rows) {
  const heads = [t("name"), t("size"), t("perplexity"), "KL", t("speed")];
  const cell = (value, digits) => h("td", { class: "number" }, Number.isFinite(value) ? number(value, digits) : "–");
  const lines = [...rows].sort((a, b) => a.size_bytes - b.size_bytes).map((row) => h(
    "tr", { class: row.chosen ? "chosen" : "" },
    h("td", {}, row.name, row.chosen ? ` (${t("chosen")})` : row.on_front ? ` (${t("on_front")})` : ""),
    cell(row.size_bytes / 1e6, 2), cell(row.perplexity, 2), cell(row.kl, 4), cell(row.new_tokens_per_s, 0),
  ));
  return h("table", { class: "plain" }, h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, lines));
}
