// Attention as an image: rows read, columns are looked at, the darker the more.
// For: `thumbnail` of a head, `heatmap` with its tokens beside it.
// Read next: attention.js.

import { clipped, h, svg } from "./dom.js";
import { percent } from "./words.js";

const CELL = 22, MARGIN = 76, THUMBNAIL = 56, TURN = -50;

// Small shares would be invisible on a straight scale.
const depth = (share) => share ** 0.6;

export function thumbnail(rows) {
  const cell = THUMBNAIL / rows.length;
  const cells = rows.flatMap((row, i) => row.map((share, j) => {
    const box = svg("rect", { x: j * cell, y: i * cell, width: cell, height: cell, class: "cell" });
    box.style.setProperty("--depth", depth(share));
    return box;
  }));
  return svg("svg", { viewBox: `0 0 ${THUMBNAIL} ${THUMBNAIL}`, "aria-hidden": "true" }, cells);
}

// An image with its own tooltip for each cell; `onRow(i)` where a row is clicked.
export function heatmap(names, rows, { label, onRow }) {
  const size = MARGIN + names.length * CELL;
  const mark = svg("rect", { x: MARGIN, width: names.length * CELL, height: CELL, class: "mark" });
  const cells = rows.map((row, i) => svg("g", { onclick: () => onRow(i) }, row.map((share, j) => {
    const box = svg(
      "rect", { x: MARGIN + j * CELL, y: MARGIN + i * CELL, width: CELL - 1, height: CELL - 1, class: "cell" },
      svg("title", {}, `${names[i]} → ${names[j]}: ${percent(share)}`),
    );
    box.style.setProperty("--depth", depth(share));
    return box;
  })));
  const labels = names.flatMap((name, i) => {
    const at = MARGIN + (i + 0.5) * CELL;
    return [
      svg("text", { x: MARGIN - 6, y: at, class: "side" }, clipped(name)),
      svg("text", { x: 0, y: 0, transform: `translate(${at} ${MARGIN - 6}) rotate(${TURN})`, class: "top" }, clipped(name)),
    ];
  });
  const wide = size + MARGIN / 2; // the last name leans out
  const image = svg("svg", { viewBox: `0 0 ${wide} ${size}`, width: wide, class: "map", role: "img", "aria-label": label }, cells, labels, mark);
  return {
    element: h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, image),
    mark: (i) => mark.setAttribute("y", MARGIN + i * CELL - 0.5),
  };
}
