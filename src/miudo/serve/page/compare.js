// Two models on the same text: what each token cost them, and how far their guesses are apart.
// For: /v1/completions with echo. Difference by token needs that both cut text alike.
// Read next: divergence.js.

import { ask, identity } from "./api.js";
import { Chances, ofCompletion } from "./chances.js";
import { divergence } from "./divergence.js";
import { h, labelled, visible } from "./dom.js";
import { number, percent, t } from "./words.js";

const TOP = 20; // as many as the API gives

export function compare(page) {
  const box = h("textarea", { rows: 3, value: t("compare_example") });
  const button = h("button", { class: "primary", type: "submit" }, t("show"));
  const pickers = [0, 1].map((i) => {
    const options = page.models.map((m) => h("option", { value: m.id }, m.id));
    return h("select", { value: "" }, options.map((o, j) => { o.selected = j === i; return o; }));
  });
  const form = h(
    "form", { class: "card ask", onsubmit: (event) => { event.preventDefault(); page.busy(button, load); } },
    h("div", { class: "two" }, labelled(t("first_model"), pickers[0]), labelled(t("second_model"), pickers[1])),
    labelled(t("compare_text"), box), h("div", { class: "actions" }, button),
  );
  const result = h("div", { class: "stack" });
  let found = null;

  async function load() {
    const names = pickers.map((picker) => picker.value);
    if (names[0] === names[1]) {
      page.say(t("same_model"));
      return;
    }
    const [identities, replies] = await Promise.all([
      Promise.all(names.map(identity)),
      Promise.all(names.map((model) => ask("/v1/completions", { model, prompt: box.value, echo: true, max_tokens: 0, logprobs: TOP }))),
    ]);
    const sides = replies.map((reply, i) => ({ model: names[i], items: ofCompletion(reply.choices[0].logprobs, true) }));
    const alike = identities[0].tokenizer_sha256 === identities[1].tokenizer_sha256;
    found = { text: box.value, sides, kl: alike ? sides[0].items.map((item, i) => divergence(item, sides[1].items[i])) : null };
    draw();
  }

  function figures(side, all) {
    const costs = side.items.map((item) => item.logprob).filter((x) => x !== null);
    const sum = -costs.reduce((a, b) => a + b, 0), bytes = new TextEncoder().encode(found.text).length;
    const rows = [[t("bits_per_byte"), number(sum / Math.LN2 / bytes, 3)], [t("perplexity"), number(Math.exp(sum / costs.length), 2)]];
    return h("section", { class: "card" }, h("h2", {}, side.model), all && h("dl", { class: "facts" }, rows.flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])), strip(side));
  }

  function strip(side) {
    const chances = new Chances({ label: side.model });
    chances.add(side.items);
    return chances.element;
  }

  function draw() {
    result.replaceChildren(h("div", { class: "two" }, found.sides.map((side) => figures(side, true))));
    if (!found.kl) {
      result.append(h("p", { class: "card" }, t("other_tokenizer")));
      return;
    }
    const known = found.kl.filter((kl) => kl !== null), most = Math.max(...known, 1e-9);
    const mean = known.reduce((a, b) => a + b, 0) / known.length;
    const rows = found.kl.map((kl, i) => {
      const costs = found.sides.map((side) => side.items[i]);
      if (kl === null) return null;
      const bar = h("span", { class: "bar" });
      bar.style.setProperty("--share", kl / most);
      return h(
        "tr", {}, h("td", {}, h("code", {}, visible(costs[0].text))),
        costs.map((item) => h("td", { class: "number" }, percent(Math.exp(item.logprob)))),
        h("td", { class: "with-bar" }, bar, h("span", { class: "number" }, number(kl, 3))),
      );
    });
    const heads = [t("token"), ...found.sides.map((side) => side.model), t("kl")];
    result.append(h(
      "section", { class: "card" },
      h("dl", { class: "facts" }, h("dt", {}, t("mean_kl")), h("dd", {}, number(mean, 4))),
      h("p", { class: "hint" }, t("kl_note")),
      h("div", { class: "scroll" }, h("table", { class: "plain" }, h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, rows))),
    ));
  }

  const alone = page.models.length < 2;
  return {
    element: h("div", { class: "stack" }, alone ? h("p", { class: "card" }, t("one_model")) : form, result),
    evidence: () => found && { models: found.sides.map((side) => side.model), text: found.text, sides: found.sides, kl_at_least: found.kl },
  };
}
