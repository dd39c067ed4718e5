// What is said of the token under the pointer.

import { describe, ranInFull, visible } from "./skips.js";

const MARGIN = 8; // CSS pixels, to the token and to the window's edge

const element = (id) => document.getElementById(id);

export class Tip {
  hide() {
    element("tip").hidden = true;
  }

  show(target, index, { text, skip }, nLayer) {
    element("tip-title").textContent = `${index + 1}  ${visible(text)}`;
    element("tip-lines").replaceChildren(...describe(skip, nLayer).map((line) => make("li", line)));
    element("tip-strip").replaceChildren(...(skip === null || ranInFull(skip) ? [] : strip(skip, nLayer)));
    element("tip").hidden = false;
    place(element("tip"), target.getClientRects()[0]);
  }
}

/** A bar for each layer, from the first on. */
function strip(skip, nLayer) {
  return Array.from({ length: nLayer }, (_, layer) => {
    const bar = make("i", "");
    if (skip.layers.includes(layer)) bar.classList.add("ffn");
    if (skip.attention.includes(layer)) bar.classList.add("attention");
    return bar;
  });
}

/** Above the token where there is room, else beneath it; always within the window. */
function place(tip, token) {
  const { width, height } = tip.getBoundingClientRect();
  const above = token.top - height - MARGIN;
  const left = Math.min(token.left, document.documentElement.clientWidth - width - MARGIN);
  tip.style.left = `${Math.max(MARGIN, left)}px`;
  tip.style.top = `${above > MARGIN ? above : token.bottom + MARGIN}px`;
}

function make(tag, textContent) {
  return Object.assign(document.createElement(tag), { textContent });
}
