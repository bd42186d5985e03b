// Tokens with their probability as colour, and the alternatives of the one that is looked at.
// For: completion, chat and comparison. Hovering shows, focus or a click holds.
// Read next: complete.js.

import { h, readable, roving, visible } from "./dom.js";
import { percent, t } from "./words.js";

const STEPS = [0.9, 0.5, 0.2, 0.05, 0.01, 0.001]; // p above each: class p0, p1, ...

export function shade(logprob) {
  if (logprob === null || logprob === undefined) return "";
  const p = Math.exp(logprob);
  const at = STEPS.findIndex((step) => p >= step);
  return `p${at < 0 ? STEPS.length : at}`;
}

export function legend() {
  const names = STEPS.map((step, i) => (i ? `${percent(step)}–${percent(STEPS[i - 1])}` : `> ${percent(step)}`));
  names.push(`< ${percent(STEPS.at(-1))}`);
  return h(
    "p", { class: "legend" }, h("span", {}, t("legend")),
    names.map((name, i) => h("span", { class: `tok p${i}` }, name)),
  );
}

// A row of what could have stood there: a bar, its text, its share.
export function bars(top, chosen, onPick) {
  return h(
    "ol", { class: "bars" },
    top.map(({ text, logprob }) => {
      const share = Math.exp(logprob), bar = h("span", { class: "bar" });
      bar.style.setProperty("--share", share);
      const inside = [bar, h("code", {}, visible(text)), h("span", { class: "number" }, percent(share))];
      const own = text === chosen;
      if (!onPick || own || text.includes("\ufffd") || text === "") {
        return h("li", { class: own ? "own" : "" }, h("div", { class: "row" }, inside));
      }
      const label = t("branch_with", { token: text, share: percent(share) });
      return h("li", {}, h("button", { class: "row", "aria-label": label, onclick: () => onPick(text) }, inside));
    }),
  );
}

export class Chances {
  // `onBranch(index, text)` where an alternative may be taken.
  constructor({ label, onBranch } = {}) {
    this.items = [];
    this.held = -1;
    this.onBranch = onBranch;
    this.strip = h("div", { class: "strip", role: "group", "aria-label": label });
    this.panel = h("aside", { class: "panel", "aria-label": t("alternatives") });
    this.element = h("div", { class: "chances" }, h("div", {}, this.strip, legend()), this.panel);
    roving(this.strip);
    this.strip.addEventListener("mouseleave", () => this.show(this.held));
    this.clear();
  }

  clear() {
    this.items = [];
    this.held = -1;
    this.strip.replaceChildren();
    this.show(-1);
  }

  add(items) {
    for (const item of items) {
      const index = this.items.push(item) - 1;
      const known = item.logprob !== null && item.logprob !== undefined;
      const share = known ? percent(Math.exp(item.logprob)) : t("first_token");
      const button = h(
        "button",
        {
          class: `tok ${shade(item.logprob)} ${item.given ? "given" : ""}`,
          tabindex: index ? -1 : 0,
          "aria-label": `${item.text || t("special")}, ${share}`,
          onmouseenter: () => this.show(index),
          onfocus: () => this.hold(index),
          onclick: () => this.hold(index),
          onkeydown: (event) => this.enter(event),
        },
        readable(item.text),
      );
      this.strip.append(button);
    }
  }

  hold(index) {
    this.held = index;
    [...this.strip.children].forEach((b, i) => b.classList.toggle("held", i === index));
    this.show(index);
  }

  // From a token into its alternatives, without crossing all others.
  enter(event) {
    if (event.key !== "Enter") return;
    event.preventDefault();
    this.panel.querySelector("button")?.focus();
  }

  show(index) {
    const item = this.items[index];
    if (!item) {
      this.panel.replaceChildren(h("p", { class: "hint" }, t("look_at_token")));
      return;
    }
    const known = item.logprob !== null && item.logprob !== undefined;
    const bits = known ? (-item.logprob / Math.LN2).toFixed(2) : null;
    this.panel.replaceChildren(
      h("h3", {}, h("code", {}, visible(item.text))),
      h("p", { class: "figures" }, known ? `${percent(Math.exp(item.logprob))} · ${t("bits", { bits })}` : t("first_token")),
      item.text === "" ? h("p", { class: "hint" }, t("special")) : "",
      bars(item.top ?? [], item.text, this.onBranch ? (text) => this.onBranch(index, text) : null),
    );
    if (this.onBranch && item.top?.length) this.panel.append(h("p", { class: "hint" }, t("click_to_branch")));
  }
}

// The items of `logprobs` as /v1/completions gives them.
export function ofCompletion(logprobs, given = false) {
  return logprobs.tokens.map((text, i) => ({
    text,
    given,
    logprob: logprobs.token_logprobs[i],
    top: Object.entries(logprobs.top_logprobs[i] ?? {})
      .map(([other, logprob]) => ({ text: other, logprob }))
      .sort((a, b) => b.logprob - a.logprob),
  }));
}

// The same of /v1/chat/completions.
export function ofChat(logprobs) {
  return logprobs.content.map((c) => ({
    text: c.token,
    logprob: c.logprob,
    top: c.top_logprobs.map((o) => ({ text: o.token, logprob: o.logprob })),
  }));
}
