// What is served, what runs it, and what the last answer in this tab took.
// For: /v1/models and /inspect/model. Read next: main.js.

import { identity } from "./api.js";
import { h } from "./dom.js";
import { number, t } from "./words.js";

export function machine(page) {
  const shown = h("div", { class: "stack" });

  async function load() {
    const named = await Promise.all(page.models.map((m) => identity(m.id)));
    const timings = page.lastTimings && t("answer_figures", {
      tokens: page.lastTimings.predicted_n,
      speed: number(page.lastTimings.predicted_per_second),
      first: number(page.lastTimings.prompt_ms),
    });
    shown.replaceChildren(
      ...named.map((m, i) => card(m, page.models[i])),
      h("section", { class: "card" }, h("h2", {}, t("last_answer")), h("p", {}, timings ?? t("no_answer")), h("p", { class: "hint" }, energy(page.lastTimings))),
    );
  }

  return {
    element: shown,
    shown: () => load().catch(page.tell),
    evidence: () => page.models.length ? { models: page.models.map((m) => m.id), timings: page.lastTimings } : null,
  };
}

function energy(timings) {
  const found = timings?.energy;
  if (!found) return timings ? t("energy_none") : "";
  const each = number((found.joules * 1e3) / Math.max(1, timings.predicted_n), 2);
  return t(found.estimate ? "energy_estimate" : "energy", { each, method: found.method });
}

function card(m, entry) {
  const heads = [...new Set(m.layers.map((l) => `${l.heads} / ${l.kv_heads}`))].join(", ");
  const facts = [
    [t("parameters"), number(m.parameters)],
    [t("layers"), number(m.layers.length)],
    [t("width"), number(m.d_model)],
    [t("heads"), heads],
    [t("vocabulary"), number(m.vocab_size)],
    [t("context"), number(m.context_length)],
    [t("weights"), `${number(m.engine.weight_bytes / 1e6, 2)} MB`],
    [t("instructions"), m.engine.isa],
    [t("threads"), number(m.engine.threads)],
    [t("licence"), entry.licence ?? "–"],
    [t("sha256"), h("code", { class: "hash" }, m.sha256)],
  ];
  return h("section", { class: "card" }, h("h2", {}, m.model), h("dl", { class: "facts" }, facts.flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])));
}
