// The logit lens: what each layer would say comes next (nostalgebraist 2020), as a table.
// For: /inspect/lens. Read next: chances.js.

import { ask } from "./api.js";
import { bars, shade, legend } from "./chances.js";
import { h, labelled, roving, short, visible } from "./dom.js";
import { number, percent, t } from "./words.js";

const TOP = 8;

export function lens(page) {
  const box = h("textarea", { rows: 2, value: t("lens_example") });
  const button = h("button", { class: "primary", type: "submit" }, t("show"));
  const form = h(
    "form", { class: "card ask", onsubmit: (event) => { event.preventDefault(); page.busy(button, load); } },
    labelled(t("lens_text"), box), h("div", { class: "actions" }, button),
  );
  const table = h("div", { class: "scroll" });
  const panel = h("aside", { class: "panel", "aria-live": "polite" });
  const shown = h("section", { class: "card chances lens-card", hidden: true }, h("div", {}, table, legend()), panel);
  let found = null;

  async function load() {
    found = await ask("/inspect/lens", { model: page.model, content: box.value, top: TOP });
    shown.hidden = false;
    draw();
  }

  function draw() {
    const rows = [...found.layers].reverse().map((layer) => h(
      "tr", {}, h("th", { scope: "row" }, layer.layer ? `${t("layer")} ${layer.layer}` : t("input")),
      layer.cells.map((cell, i) => h("td", {}, h(
        "button",
        { class: `tok ${shade(cell.top[0].logprob)}`, tabindex: -1, onfocus: () => look(layer, i), onclick: () => look(layer, i) },
        short(cell.top[0].piece),
      ))),
    ));
    const body = h("tbody", {}, rows);
    table.replaceChildren(h(
      "table", { class: "lens-table" }, h("caption", {}, t("lens_table")),
      h("thead", {}, h("tr", {}, h("td", {}), found.tokens.map(({ piece }) => h("th", { scope: "col" }, short(piece))))),
      body,
      h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, t("comes_next")), found.tokens.map((_, i) => h("td", {}, found.tokens[i + 1] ? short(found.tokens[i + 1].piece) : "?")))),
    ));
    roving(body, () => found.tokens.length);
    table.scrollLeft = table.scrollWidth; // the last position is what the model would go on with
    const last = rows[0].querySelectorAll("button");
    last[last.length - 1].tabIndex = 0;
    look(found.layers.at(-1), found.tokens.length - 1);
  }

  function look(layer, at) {
    const cell = layer.cells[at], bits = number(cell.entropy / Math.LN2, 2);
    const name = layer.layer ? `${t("layer")} ${layer.layer}` : t("input");
    const top = cell.top.map(({ piece, logprob }) => ({ text: visible(piece), logprob }));
    const next = found.tokens[at + 1];
    panel.replaceChildren(
      h("h3", {}, `${name} · `, h("code", {}, visible(found.tokens[at].piece))),
      h("p", { class: "figures" }, t("entropy", { bits })),
      bars(top, next && visible(next.piece)),
    );
    if (!cell.next) return;
    const share = percent(Math.exp(cell.next.logprob)), rank = number(cell.next.rank + 1);
    panel.append(h("p", { class: "hint" }, t("really_next", { token: visible(next.piece), share, rank })));
  }

  return {
    element: h("div", { class: "stack" }, form, shown),
    shown: () => found || page.busy(button, load),
    evidence: () => found && { models: [found.model], tokens: found.tokens, layers: found.layers },
  };
}
