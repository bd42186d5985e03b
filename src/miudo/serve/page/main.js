// The frame of the page: which model, which view, which language; errors and the key in one place.
// For: `miudo serve` at `/`. Each view is a module that knows the public API and nothing else.
// Read next: complete.js, then the other views.

import { ApiError, ask, whenLocked } from "./api.js";
import { attention } from "./attention.js";
import { chat } from "./chat.js";
import { compare } from "./compare.js";
import { complete } from "./complete.js";
import { h } from "./dom.js";
import { download, evidence } from "./evidence.js";
import { front } from "./front.js";
import { lens } from "./lens.js";
import { machine } from "./machine.js";
import { tokens } from "./tokens.js";
import { language, otherLanguage, t } from "./words.js";

const GROUPS = [
  ["group_use", { chat, complete }],
  ["group_inside", { attention, lens, tokens }],
  ["group_compare", { compare, front, machine }],
];
const VIEWS = Object.assign({}, ...GROUPS.map(([, views]) => views));

const picker = h("select", { id: "model" });
const notice = h("div", { class: "notice", role: "status", "aria-live": "polite" });
const main = h("main", { id: "main", tabindex: "-1" });
const made = new Map();

// What views share: the model that is chosen, those there are, and a way to say what went wrong.
const page = {
  models: [],
  lastTimings: null,
  get model() {
    return picker.value;
  },
  say(text) {
    notice.classList.remove("wrong");
    notice.textContent = text;
  },
  // Runs `work` for a button: the button rests meanwhile, and an error is told.
  async busy(button, work) {
    button.disabled = true;
    page.say("");
    try {
      await work();
    } catch (error) {
      page.tell(error);
    } finally {
      button.disabled = false;
    }
  },
  tell(error) {
    if (error.name === "AbortError") return;
    notice.classList.add("wrong");
    if (error instanceof ApiError) notice.textContent = error.message;
    else if (error instanceof TypeError && !navigator.onLine) notice.textContent = t("unreachable");
    else if (error instanceof TypeError && /fetch|network/i.test(error.message)) notice.textContent = t("unreachable");
    else notice.textContent = String(error);
  },
};

function here() {
  const name = location.hash.slice(1);
  return name in VIEWS ? name : "chat";
}

function go() {
  const name = here();
  page.say("");
  for (const link of document.querySelectorAll("nav a")) {
    link.removeAttribute("aria-current");
    if (link.hash !== `#${name}`) continue;
    link.setAttribute("aria-current", "page");
    // Not scrollIntoView, which would also move where the Tab key begins.
    const row = link.closest("nav");
    row.scrollLeft = link.offsetLeft - row.offsetLeft - (row.clientWidth - link.clientWidth) / 2;
  }
  if (!made.has(name)) made.set(name, VIEWS[name](page));
  const view = made.get(name);
  document.title = `${t(name)} · miudo`;
  main.replaceChildren(
    h("div", { class: `view ${name}` }, h("h1", {}, t(name)), h("p", { class: "intro" }, t(`${name}_intro`)), view.element),
  );
  view.shown?.();
}

async function save() {
  const view = made.get(here());
  const found = view.evidence?.();
  if (!found) {
    page.say(t("nothing_to_save"));
    return;
  }
  const { models = [page.model], ...rest } = found;
  const name = `miudo-${here()}-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.json`;
  download(name, await evidence(here(), models, rest));
  page.say(t("saved", { name }));
}

function keyForm() {
  const input = h("input", { type: "password", autocomplete: "off", required: true });
  input.id = "key";
  const wrong = h("p", { class: "wrong", role: "alert" });
  const dialog = h(
    "dialog", { "aria-labelledby": "key-title" },
    h("form", { method: "dialog" },
      h("h2", { id: "key-title" }, t("key_title")),
      h("div", { class: "field" }, h("label", { for: "key" }, t("key_label")), input, h("small", {}, t("key_hint"))),
      wrong,
      h("div", { class: "row-end" },
        h("button", { type: "button", class: "quiet", onclick: () => dialog.close("") }, t("cancel")),
        h("button", { type: "submit", class: "primary", value: "open" }, t("key_open")))),
  );
  // Several may ask at once: one form answers all.
  let waiting = null;
  whenLocked((again) => {
    waiting ??= new Promise((answer) => {
      wrong.textContent = again ? t("key_wrong") : "";
      input.value = "";
      dialog.returnValue = "";
      dialog.showModal();
      dialog.addEventListener("close", () => {
        waiting = null;
        answer(dialog.returnValue === "open" ? input.value : null);
      }, { once: true });
    });
    return waiting;
  });
  return dialog;
}

function frame() {
  document.documentElement.lang = language;
  const saving = h("button", { class: "quiet", id: "save", onclick: () => page.busy(saving, save) }, t("save"));
  const switching = h("a", { class: "quiet", id: "language", lang: otherLanguage, href: `?lang=${otherLanguage}` }, t("other_language"));
  switching.addEventListener("click", () => {
    switching.href = `?lang=${otherLanguage}${location.hash}`;
  });
  const groups = GROUPS.map(([title, views]) =>
    h("div", { class: "group" }, h("p", {}, t(title)),
      h("ul", {}, Object.keys(views).map((name) => h("li", {}, h("a", { href: `#${name}` }, t(name)))))));
  document.body.append(
    h("a", { class: "skip", href: "#main", onclick: (event) => { event.preventDefault(); main.focus(); } }, t("skip")),
    h("header", {},
      h("a", { class: "brand", href: "#chat" }, h("img", { src: "/page/icon.svg", alt: "", width: 26, height: 26 }), "miudo"),
      h("div", { class: "choose" }, h("label", { for: "model" }, t("model")), picker),
      h("div", { class: "tools" }, saving, switching)),
    h("nav", { "aria-label": t("views") }, groups),
    h("div", { class: "content" }, notice, main),
    keyForm(),
  );
}

async function begin() {
  frame();
  try {
    page.models = (await ask("/v1/models")).data;
    picker.append(...page.models.map((m) => h("option", { value: m.id }, m.id)));
  } catch (error) {
    page.tell(error);
  }
  addEventListener("hashchange", go);
  go();
}

begin();
