// Texts with less contrast than WCAG 2.2 allows at level AA, against what is painted behind them. Colours
// are read off a canvas, which knows every way to write one. Read next: test_page.py.
() => {
  const brush = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    brush.globalAlpha = 1;
    brush.clearRect(0, 0, 1, 1);
    for (const [colour, alpha] of colours) {
      brush.globalAlpha = alpha;
      brush.fillStyle = colour;
      brush.fillRect(0, 0, 1, 1);
    }
    return [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    const style = getComputedStyle(element);
    if (!node.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest("dialog, noscript, title")) continue;
    if (element.closest(":disabled") || element.getBoundingClientRect().right < 0) continue;
    const chain = [];
    for (let at = element; at; at = at.parentElement) chain.unshift(at);
    const alpha = chain.reduce((a, at) => a * Number(getComputedStyle(at).opacity), 1);
    const behind = chain.map((at) => [getComputedStyle(at).backgroundColor, 1]);
    const text = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const one = light(over([["#fff", 1], ...behind]));
    const other = light(over([["#fff", 1], ...behind, [text, alpha]]));
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) found.push(`${node.textContent.trim()}: ${ratio.toFixed(2)}`);
  }
  return found;
}
