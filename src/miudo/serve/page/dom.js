// Elements out of plain values. Text is always a text node: nothing that a model wrote is markup.
// Read next: main.js.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

let fields = 0;

// A control under its label; `hint` says more below it.
export function labelled(text, control, hint) {
  control.id ||= `field-${(fields += 1)}`;
  const note = hint ? h("small", { id: `${control.id}-hint` }, hint) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, text), control, note);
}

// One stop of the Tab key for a group of buttons, arrows within it. `columns()` is how many stand
// in a row, where up and down mean something.
export function roving(group, columns = () => 0) {
  const all = () => [...group.querySelectorAll("button")];
  group.addEventListener("keydown", (event) => {
    const buttons = all(), at = buttons.indexOf(document.activeElement), wide = columns();
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide || 1, ArrowUp: -(wide || 1) };
    let to = at + steps[event.key];
    if (event.key === "Home") to = 0;
    if (event.key === "End") to = buttons.length - 1;
    if (at < 0 || !buttons[to]) return;
    event.preventDefault();
    buttons[to].focus();
  });
  group.addEventListener("focusin", (event) => {
    for (const button of all()) button.tabIndex = button === event.target ? 0 : -1;
  });
}

// A token within running text.
export function readable(piece) {
  return typeof piece === "string" && piece !== "" ? piece.replaceAll("\n", "⏎\n") : visible(piece);
}

export const clipped = (text) => (text.length > 9 ? `${text.slice(0, 8)}…` : text);
export const short = (piece) => clipped(visible(piece));

// What a token looks like where spaces and line ends must be seen.
export function visible(piece) {
  if (Array.isArray(piece)) return piece.map((b) => b.toString(16).padStart(2, "0")).join(" ");
  if (piece === "") return "∅";
  return piece.replaceAll(" ", "·").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}
