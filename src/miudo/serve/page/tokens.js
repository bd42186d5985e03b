// Text as the tokenizer cuts it, by /tokenize.
// Read next: main.js.

import { ask } from "./api.js";
import { h, labelled, visible } from "./dom.js";
import { number, t } from "./words.js";

const PAUSE_MS = 200; // after the last key, before the server is asked
const COLOURS = 5;

export function tokens(page) {
  const box = h("textarea", { rows: 4, value: t("tokens_example") });
  const counts = h("p", { class: "figures", "aria-live": "polite" });
  const list = h("ol", { class: "pieces" });
  let last = null, timer = 0, asked = 0;

  async function cut() {
    const content = box.value, model = page.model, turn = (asked += 1);
    try {
      const found = content ? (await ask("/tokenize", { model, content, with_pieces: true })).tokens : [];
      if (turn !== asked) return; // another text was typed meanwhile
      last = { models: [model], content, tokens: found };
      draw();
    } catch (error) {
      page.tell(error);
    }
  }

  function draw() {
    const bytes = new TextEncoder().encode(last.content).length, n = last.tokens.length;
    counts.textContent = t("token_counts", {
      tokens: number(n), characters: number([...last.content].length), bytes: number(bytes),
      ratio: number(n ? bytes / n : 0, 2),
    });
    list.replaceChildren(...last.tokens.map(({ id, piece }, i) =>
      h("li", { class: `piece c${i % COLOURS}` }, h("code", {}, visible(piece)), h("small", {}, String(id)))));
  }

  box.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(cut, PAUSE_MS);
  });
  return {
    element: h("div", { class: "stack" }, h("div", { class: "card" }, labelled(t("tokens_text"), box), counts), list),
    shown: cut,
    evidence: () => last,
  };
}
