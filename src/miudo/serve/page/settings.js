// How the next token is drawn, as a form. Empty fields are left to the server.
// Read next: chat.js.

import { h, labelled } from "./dom.js";
import { t } from "./words.js";

const FIELDS = [
  ["max_tokens", { min: 1, max: 4096, step: 1 }, 80],
  ["temperature", { min: 0, max: 2, step: 0.05 }, 0.7],
  ["top_k", { min: 0, max: 1000, step: 1 }, 0],
  ["top_p", { min: 0.01, max: 1, step: 0.01 }, 1],
  ["min_p", { min: 0, max: 1, step: 0.01 }, 0],
  ["repetition_penalty", { min: 0.5, max: 2, step: 0.01 }, 1.1],
];

export class Settings {
  constructor(defaults = {}) {
    this.inputs = new Map();
    const boxes = FIELDS.map(([name, limits, value]) => {
      const input = h("input", { type: "number", ...limits, value: defaults[name] ?? value });
      this.inputs.set(name, input);
      return labelled(t(name), input);
    });
    this.seed = h("input", { type: "number", min: 0, step: 1, placeholder: t("seed_new") });
    boxes.push(labelled(t("seed"), this.seed));
    this.element = h(
      "details", { class: "settings" },
      h("summary", {}, t("settings")), h("div", { class: "grid" }, boxes),
    );
  }

  // With a seed always: what is saved as evidence can be repeated.
  read() {
    const seed = this.seed.value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(this.seed.value);
    const values = { seed };
    for (const [name, input] of this.inputs) {
      if (input.value !== "") values[name] = Number(input.value);
    }
    return values;
  }
}
