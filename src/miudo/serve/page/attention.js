// Attention by layer and head over one or two sentences: which earlier tokens a head looks at.
// For: /inspect/attention. A strip of tokens answers "where does it look from here", a map shows
// all rows, small maps of every head help to choose one.
// Read next: heatmap.js.

import { ask } from "./api.js";
import { h, labelled, readable, roving, visible } from "./dom.js";
import { heatmap, thumbnail } from "./heatmap.js";
import { percent, t } from "./words.js";

const MEAN = -1;
const SHOWN = 0.005; // of a row, in the list below a sentence

export function attention(page) {
  const boxes = ["paris_city", "paris_person"].map((key) => h("textarea", { rows: 2, value: t(key) }));
  const button = h("button", { class: "primary", type: "submit" }, t("show"));
  const form = h(
    "form", { class: "card ask", onsubmit: (event) => { event.preventDefault(); page.busy(button, load); } },
    h("div", { class: "two" }, boxes.map((box, i) => labelled(t("sentence", { n: i + 1 }), box))),
    h("div", { class: "actions" }, button),
  );
  const layerBox = h("select", { onchange: () => { state.layer = Number(layerBox.value); draw(); } });
  const headBox = h("select", { onchange: () => { state.head = Number(headBox.value); draw(); } });
  const overview = h("div", { class: "overview", role: "group", "aria-label": t("maps") });
  const panels = h("div", { class: "two panels" });
  const shown = h(
    "div", { class: "stack", hidden: true },
    h("section", { class: "card which" },
      overview,
      h("div", { class: "stack" },
        labelled(t("layer"), layerBox), labelled(t("head"), headBox), h("p", { class: "hint" }, t("all_heads"))),
    ),
    panels,
  );
  const state = { layer: 0, head: MEAN, found: [] };
  roving(overview, () => state.found[0].layers[0].heads.length);

  async function load() {
    const model = page.model, texts = boxes.map((box) => box.value).filter(Boolean);
    state.found = await Promise.all(texts.map((content) => ask("/inspect/attention", { model, content })));
    state.from = state.found.map((one) => lastWord(one.tokens));
    const layers = state.found[0].layers;
    Object.assign(state, telling(state.found, state.from));
    layerBox.replaceChildren(...layers.map((l) => h("option", { value: l.layer }, String(l.layer + 1) + (l.window ? ` (${t("window", { n: l.window })})` : ""))));
    shown.hidden = false;
    fillOverview();
    draw();
  }

  function fillOverview() {
    const layers = state.found[0].layers;
    overview.style.setProperty("--heads", layers[0].heads.length);
    overview.replaceChildren(...layers.flatMap((l, layer) => l.heads.map((rows, head) => h(
      "button",
      {
        class: "small-map", tabindex: layer + head ? -1 : 0, "data-at": `${layer}/${head}`,
        "aria-label": `${t("layer")} ${layer + 1}, ${t("head")} ${head + 1}`,
        onclick: () => { Object.assign(state, { layer, head }); draw(); },
      },
      thumbnail(rows),
    ))));
  }

  function draw() {
    const heads = state.found[0].layers[state.layer].heads.length;
    headBox.replaceChildren(
      h("option", { value: MEAN }, t("mean_head")),
      ...Array.from({ length: heads }, (_, i) => h("option", { value: i }, String(i + 1))),
    );
    layerBox.value = state.layer;
    headBox.value = state.head = Math.min(state.head, heads - 1);
    for (const small of overview.children) {
      const [layer, head] = small.dataset.at.split("/").map(Number);
      small.setAttribute("aria-pressed", String(layer === state.layer && (head === state.head || state.head === MEAN)));
    }
    panels.replaceChildren(...state.found.map((one, i) => panel(one, i)));
  }

  function panel(one, which) {
    const rows = rowsOf(one.layers[state.layer].heads, state.head);
    const strip = h("div", { class: "strip", role: "group", "aria-label": t("sentence", { n: which + 1 }) });
    const words = h("ol", { class: "bars" });
    const heading = h("p", { class: "reads", "aria-live": "polite" });
    const map = heatmap(one.tokens.map((token) => visible(token.piece)), rows, { label: t("map"), onRow: from });
    const buttons = one.tokens.map((token, i) => h(
      "button", { class: "tok heat", tabindex: i ? -1 : 0, onfocus: () => from(i), onclick: () => from(i) },
      readable(token.piece),
    ));
    strip.append(...buttons);
    roving(strip);

    function from(i) {
      state.from[which] = i;
      buttons.forEach((b, j) => {
        b.style.setProperty("--heat-share", j <= i ? rows[i][j] : 0);
        b.classList.toggle("held", i === j);
        b.classList.toggle("later", j > i);
        b.setAttribute("aria-label", j > i ? visible(one.tokens[j].piece) : t("takes", { share: percent(rows[i][j]), token: visible(one.tokens[j].piece) }));
      });
      heading.textContent = t("reads_from", { token: `“${visible(one.tokens[i].piece)}”` });
      map.mark(i);
      const most = rows[i].map((share, j) => [share, j]).filter(([share]) => share >= SHOWN).sort((a, b) => b[0] - a[0]).slice(0, 5);
      words.replaceChildren(...most.map(([share, j]) => {
        const bar = h("span", { class: "bar" });
        bar.style.setProperty("--share", share);
        return h("li", {}, h("div", { class: "row" }, bar, h("code", {}, visible(one.tokens[j].piece)), h("span", { class: "number" }, percent(share))));
      }));
    }

    from(state.from[which]);
    return h("section", { class: "card" }, strip, heading, words, map.element);
  }

  return {
    element: h("div", { class: "stack" }, form, shown),
    shown: () => state.found.length || page.busy(button, load),
    evidence: () => state.found.length ? { models: [state.found[0].model], layer: state.layer, head: state.head, sentences: state.found } : null,
  };
}

// The rows of a head, or the mean of all heads of a layer.
function rowsOf(heads, head) {
  if (head !== MEAN) return heads[head];
  return heads[0].map((row, i) => row.map((_, j) => heads.reduce((sum, rows) => sum + rows[i][j], 0) / heads.length));
}

// The head that tells two sentences apart best: in each it looks hard at a word that the other has not.
// With one sentence, or where no head does, the mean of the first layer.
function telling(found, from) {
  let best = { layer: 0, head: MEAN }, most = 0;
  if (found.length < 2) return best;
  const own = found.map((one, i) => words(one, found[1 - i]));
  found[0].layers.forEach(({ heads }, layer) => heads.forEach((_, head) => {
    const shares = found.map((one, i) => {
      const row = one.layers[layer].heads[head][from[i]];
      return Math.max(0, ...own[i].filter((at) => at < from[i]).map((at) => row[at]));
    });
    if (Math.min(...shares) > most) [best, most] = [{ layer, head }, Math.min(...shares)];
  }));
  return best;
}

// Where `one` has longer words that `other` has not.
function words(one, other) {
  const there = new Set(other.tokens.map((token) => String(token.piece)));
  return one.tokens.map((token, at) => [String(token.piece), at])
    .filter(([piece]) => /\p{L}{4}/u.test(piece) && !there.has(piece)).map(([, at]) => at);
}

// The last token that is a word: what a sentence is about, as a rule, rather than its full stop.
function lastWord(tokens) {
  const at = tokens.findLastIndex((token) => typeof token.piece === "string" && /\p{L}/u.test(token.piece));
  return at < 0 ? tokens.length - 1 : at;
}
