// A conversation by /v1/chat/completions, streamed, that can be stopped at any time.
// Read next: chances.js.

import { stream } from "./api.js";
import { Chances, ofChat } from "./chances.js";
import { h, labelled } from "./dom.js";
import { Settings } from "./settings.js";
import { number, t } from "./words.js";

const TOP = 10;

export function chat(page) {
  const turns = []; // { role, content, chances?, timings? }
  const settings = new Settings({ max_tokens: 120, temperature: 0.4 });
  let lastSettings = null, stopping = null;

  const log = h("div", { class: "log", role: "log", "aria-live": "polite" });
  const box = h("textarea", { rows: 2 });
  const system = h("textarea", { rows: 2 });
  const send = h("button", { class: "primary", type: "submit" }, t("send"));
  const stop = h("button", { type: "button", hidden: true, onclick: () => stopping?.abort() }, t("stop"));
  const clear = h("button", { type: "button", class: "quiet", onclick: () => { turns.length = 0; draw(); box.focus(); } }, t("clear"));
  const form = h(
    "form", { class: "card ask", onsubmit: (event) => { event.preventDefault(); say(); } },
    labelled(t("message"), box, t("message_hint")), h("div", { class: "actions" }, send, stop, clear),
    settings.element,
  );
  settings.element.querySelector(".grid").before(labelled(t("system"), system));
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });

  function draw() {
    log.replaceChildren(...(turns.length ? turns.map(bubble) : [h("p", { class: "hint" }, t("empty_chat"))]));
  }

  function bubble(turn) {
    const body = h("div", { class: "text" }, turn.content);
    const foot = h("div", { class: "foot" });
    turn.body = body;
    turn.foot = foot;
    if (turn.role === "assistant") finish(turn);
    const who = turn.role === "user" ? t("you") : turn.model;
    return h("article", { class: `turn ${turn.role}` }, h("p", { class: "who" }, who), body, foot);
  }

  // What stands below an answer that has ended.
  function finish(turn) {
    if (!turn.items?.length || stopping) return;
    let shown = false;
    const toggle = h("button", { class: "link", "aria-pressed": "false" }, t("show_chances"));
    toggle.addEventListener("click", () => {
      shown = !shown;
      toggle.textContent = t(shown ? "hide_chances" : "show_chances");
      toggle.setAttribute("aria-pressed", String(shown));
      if (!shown) {
        turn.body.replaceChildren(turn.content);
        return;
      }
      const chances = new Chances({ label: t("chat") });
      chances.add(turn.items);
      turn.body.replaceChildren(chances.element);
    });
    const figures = turn.timings && t("answer_figures", {
      tokens: turn.timings.predicted_n,
      speed: number(turn.timings.predicted_per_second),
      first: number(turn.timings.prompt_ms),
    });
    turn.foot.replaceChildren(h("span", {}, figures ?? t("stopped")), toggle);
  }

  async function say() {
    const content = box.value.trim();
    if (!content || stopping) return;
    box.value = "";
    turns.push({ role: "user", content });
    const messages = turns.map(({ role, content: text }) => ({ role, content: text }));
    if (system.value.trim()) messages.unshift({ role: "system", content: system.value.trim() });
    const answer = { role: "assistant", content: "", items: [], model: page.model };
    lastSettings = settings.read();
    stopping = new AbortController();
    turns.push(answer);
    draw();
    await page.busy(send, async () => {
      stop.hidden = false;
      try {
        await receive(answer, messages);
      } finally {
        stop.hidden = true;
        stopping = null;
        if (!answer.content && !answer.items.length) turns.splice(-2); // nothing came: as if not asked
        if (!turns.length) box.value = content;
        draw();
      }
    });
    box.focus();
  }

  async function receive(answer, messages) {
    const asked = {
      model: page.model, messages, ...lastSettings,
      logprobs: true, top_logprobs: TOP, stream_options: { include_usage: true },
    };
    for await (const event of stream("/v1/chat/completions", asked, stopping.signal)) {
      const choice = event.choices[0];
      answer.timings = event.timings ?? answer.timings;
      page.lastTimings = event.timings ?? page.lastTimings;
      if (!choice) continue;
      answer.content += choice.delta.content ?? "";
      if (choice.logprobs) answer.items.push(...ofChat(choice.logprobs));
      answer.body.replaceChildren(answer.content);
      scrollTo({ top: document.body.scrollHeight });
    }
  }

  draw();
  return {
    element: h("div", { class: "stack" }, log, form),
    evidence: () => turns.length ? {
      settings: lastSettings,
      system: system.value.trim() || null,
      turns: turns.map(({ role, content, items, timings, model }) => ({ role, content, model, timings, tokens: items })),
    } : null,
  };
}
