// Next-word prediction made visible: every token with its probability, and the paths not taken.
// For: /v1/completions, streamed. An alternative that is chosen begins a branch.
// Read next: chances.js.

import { ask, stream } from "./api.js";
import { Chances, ofCompletion } from "./chances.js";
import { h, labelled, visible } from "./dom.js";
import { Settings } from "./settings.js";
import { t } from "./words.js";

const TOP = 10;

export function complete(page) {
  const settings = new Settings({ max_tokens: 40, temperature: 0.6 });
  const branches = []; // { name, items, settings, timings, text }
  let current = -1, stopping = null;

  const box = h("textarea", { rows: 3, value: t("prompt_example") });
  const button = h("button", { class: "primary", type: "submit" }, t("go_on"));
  const stop = h("button", { type: "button", hidden: true, onclick: () => stopping?.abort() }, t("stop"));
  const form = h(
    "form", { class: "card ask", onsubmit: (event) => { event.preventDefault(); begin(); } },
    labelled(t("prompt"), box), h("div", { class: "actions" }, button, stop), settings.element,
  );
  const chances = new Chances({ label: t("complete"), onBranch: branch });
  const tabs = h("div", { class: "tabs", role: "group", "aria-label": t("branches") });
  const result = h("section", { class: "card", hidden: true }, tabs, chances.element);

  function begin() {
    branches.length = 0;
    run(t("first_branch"), box.value);
  }

  function branch(index, text) {
    const before = chances.items.slice(0, index).map((item) => item.text).join("");
    if (before.includes("\ufffd") || /^token_id:\d+$/.test(text)) {
      page.say(t("broken_branch"));
      return;
    }
    run(visible(text), before + text);
  }

  async function run(name, text) {
    if (stopping || !text) return;
    const made = { name, text, items: [], settings: settings.read(), timings: null };
    stopping = new AbortController();
    await page.busy(button, async () => {
      stop.hidden = false;
      try {
        made.items.push(...(await prompted(text)));
        branches.push(made);
        open(branches.length - 1);
        await receive(made);
      } finally {
        stop.hidden = true;
        stopping = null;
      }
    });
  }

  // What the text itself cost the model, token by token.
  async function prompted(prompt) {
    const asked = { model: page.model, prompt, echo: true, max_tokens: 0, logprobs: TOP };
    const reply = await ask("/v1/completions", asked, stopping.signal);
    return ofCompletion(reply.choices[0].logprobs, true);
  }

  async function receive(made) {
    const asked = {
      model: page.model, prompt: made.text, ...made.settings,
      logprobs: TOP, stream_options: { include_usage: true },
    };
    for await (const event of stream("/v1/completions", asked, stopping.signal)) {
      made.timings = event.timings ?? made.timings;
      page.lastTimings = event.timings ?? page.lastTimings;
      const found = event.choices[0]?.logprobs;
      if (!found) continue;
      const items = ofCompletion(found);
      made.items.push(...items);
      if (branches[current] === made) chances.add(items);
    }
  }

  function open(at) {
    current = at;
    result.hidden = false;
    chances.clear();
    chances.add(branches[at].items);
    tabs.replaceChildren(...branches.map((made, i) => h(
      "button", { class: "tab", "aria-pressed": String(i === at), onclick: () => open(i) }, `${i + 1} ${made.name}`,
    )));
    tabs.hidden = branches.length < 2;
  }

  return {
    element: h("div", { class: "stack" }, form, result),
    evidence: () => branches.length ? {
      branches: branches.map(({ name, text, items, settings: used, timings }) => ({ name, text, settings: used, timings, tokens: items })),
    } : null,
  };
}
