// The map of an answer: layers by token, drawn on a canvas that is as wide as its place and slides over the tokens; a
// cursor that the keyboard moves; and the same as a table.

import { describe, levelOf, N_LEVELS, percent, perLayer, ranges, ranInFull, shareOf, visible } from "./skips.js";

const AXIS = 36; // CSS pixels, left of the cells
const BARS = 64; // right of them
const STRIP = 12; // above them, a token's share
const GAP = 6;
const WIDEST = 14;
const NARROWEST = 4;

export class HeatMap {
  #figure;
  #canvas;
  #scroll;
  #table;
  #nLayer;
  #tokens = [];
  #cursor = -1;
  #difference = -1;
  #onCursor;
  #waiting = false;

  /** `onCursor(index)`: the token looked at; -1 for none. */
  constructor(figure, nLayer, onCursor) {
    this.#figure = figure;
    this.#canvas = figure.querySelector("canvas");
    this.#scroll = figure.querySelector(".map-scroll");
    this.#table = figure.querySelector("tbody");
    this.#nLayer = nLayer;
    this.#onCursor = onCursor;
    this.#canvas.addEventListener("keydown", (event) => this.#onKey(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#onPointer(event));
    this.#canvas.addEventListener("pointerdown", (event) => this.#onPointer(event));
    this.#canvas.addEventListener("pointerleave", () => this.#onCursor(-1));
    this.#scroll.addEventListener("scroll", () => this.#later());
    figure.querySelector("details").addEventListener("toggle", () => this.#later());
    new ResizeObserver(() => this.#later()).observe(this.#scroll);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#later());
  }

  /** The same array as the answer's, which grows; `difference`: first token that is not the other answer's, or -1. */
  show(tokens, difference) {
    if (tokens !== this.#tokens) this.#table.replaceChildren();
    this.#tokens = tokens;
    this.#difference = difference;
    this.#figure.hidden = tokens.length === 0;
    this.#tellCursor();
    this.#later();
  }

  setCursor(index) {
    this.#cursor = index;
    this.#tellCursor();
    this.#later();
  }

  // ---- the cursor ----

  #onKey(event) {
    const last = this.#tokens.length - 1;
    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
    let to = this.#cursor;
    if (event.key in moves) to += moves[event.key];
    else if (event.key === "Home") to = 0;
    else if (event.key === "End") to = last;
    else return;
    event.preventDefault();
    to = Math.max(0, Math.min(last, to));
    this.#scrollTo(to);
    this.#onCursor(to);
  }

  #onPointer(event) {
    const { width, cell } = this.#sizes();
    const x = event.offsetX;
    const index = Math.floor((x - AXIS + this.#scroll.scrollLeft) / cell);
    const inside = x >= AXIS && x < width - BARS && index < this.#tokens.length;
    this.#onCursor(inside ? index : -1);
  }

  #scrollTo(index) {
    const { width, cell } = this.#sizes();
    const room = width - AXIS - BARS;
    const left = index * cell;
    if (left < this.#scroll.scrollLeft) this.#scroll.scrollLeft = left;
    else if (left + cell > this.#scroll.scrollLeft + room) this.#scroll.scrollLeft = left + cell - room;
  }

  #tellCursor() {
    const token = this.#tokens[this.#cursor];
    const words = token
      ? `${this.#cursor + 1} ${visible(token.text)}: ${describe(token.skip, this.#nLayer).join("; ")}`
      : "Point at a token, or move over the map with the arrow keys.";
    this.#figure.querySelector(".map-caption").textContent = words;
    this.#canvas.setAttribute("aria-valuemax", this.#tokens.length);
    this.#canvas.setAttribute("aria-valuenow", Math.max(1, this.#cursor + 1));
    this.#canvas.setAttribute("aria-valuetext", token ? words : `${this.#tokens.length} tokens`);
  }

  // ---- the picture ----

  #sizes() {
    const width = this.#scroll.clientWidth;
    const room = width - AXIS - BARS;
    const cell = Math.max(NARROWEST, Math.min(WIDEST, room / Math.max(1, this.#tokens.length)));
    const row = Math.max(3, Math.min(12, Math.floor(168 / this.#nLayer)));
    return { width, room, cell, row, top: STRIP + GAP, height: STRIP + GAP + row * this.#nLayer + 18 };
  }

  #later() {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      this.#draw();
      this.#fillTable();
    });
  }

  #draw() {
    const sizes = this.#sizes();
    if (sizes.room <= 0) return;
    const atEnd = this.#scroll.scrollLeft + sizes.width >= this.#scroll.scrollWidth - 2 * WIDEST;
    const total = AXIS + BARS + sizes.cell * this.#tokens.length;
    this.#scroll.firstElementChild.style.width = `${Math.max(sizes.width, Math.ceil(total))}px`;
    if (atEnd && this.#cursor < 0) this.#scroll.scrollLeft = total;
    const scale = window.devicePixelRatio;
    Object.assign(this.#canvas, { width: Math.round(sizes.width * scale), height: Math.round(sizes.height * scale) });
    this.#canvas.style.width = `${sizes.width}px`;
    this.#canvas.style.height = `${sizes.height}px`;
    const context = this.#canvas.getContext("2d");
    context.scale(scale, scale);
    const colours = coloursOf(this.#figure);
    context.font = `11px ${getComputedStyle(this.#figure).fontFamily}`;
    this.#drawCells(context, sizes, colours);
    this.#drawAxis(context, sizes, colours);
    this.#drawBars(context, sizes, colours);
  }

  #drawCells(context, { room, cell, row, top }, colours) {
    const left = this.#scroll.scrollLeft;
    const bottom = top + row * this.#nLayer;
    const [gap, line] = [cell > 6 ? 1 : 0, row > 3 ? 1 : 0];
    context.save();
    context.beginPath();
    context.rect(AXIS, 0, room, bottom + 18);
    context.clip();
    const end = Math.min(this.#tokens.length, Math.ceil((left + room) / cell));
    for (let i = Math.floor(left / cell); i < end; ++i) {
      const { skip } = this.#tokens[i];
      const x = AXIS + i * cell - left;
      context.fillStyle = colours.levels[levelOf(shareOf(skip, this.#nLayer))];
      context.fillRect(x, 0, cell - gap, STRIP);
      context.fillStyle = skip === null || ranInFull(skip) ? colours.full : colours.run;
      for (let layer = 0; layer < this.#nLayer; ++layer) {
        context.fillRect(x, bottom - (layer + 1) * row, cell - gap, row - line);
      }
      if (skip) drawSkip(context, skip, { x, width: cell - gap, row, line, bottom }, colours);
      if (i === this.#difference) drawLine(context, x - gap / 2, bottom + 4, colours.difference);
      if (i === this.#cursor) drawFrame(context, x, cell - gap, bottom, colours.ink);
    }
    context.restore();
  }

  #drawAxis(context, { width, cell, row, top, room }, colours) {
    const bottom = top + row * this.#nLayer;
    context.fillStyle = colours.muted;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const step = [1, 2, 4, 5, 10, 20, 50, 100].find((n) => n * row >= 22) || this.#nLayer;
    for (let layer = 0; layer < this.#nLayer; layer += step) {
      context.fillText(layer, AXIS - 6, bottom - (layer + 0.5) * row);
    }
    context.textBaseline = "alphabetic";
    context.textAlign = "center";
    const every = [1, 5, 10, 20, 50, 100].find((n) => n * cell >= 44) || 200;
    for (let n = every; n <= this.#tokens.length; n += every) {
      const x = AXIS + (n - 0.5) * cell - this.#scroll.scrollLeft;
      if (x > AXIS + 4 && x < AXIS + room - 8) context.fillText(n, x, bottom + 13);
    }
    context.textAlign = "right";
    context.fillText("layer", AXIS - 4, STRIP - 2);
    context.fillText("how often", width, STRIP - 2);
  }

  #drawBars(context, { width, row, top }, colours) {
    const bottom = top + row * this.#nLayer;
    const counts = perLayer(this.#tokens, this.#nLayer);
    const line = row > 3 ? 1 : 0;
    const [from, most] = [width - BARS + 8, BARS - 8];
    for (let layer = 0; layer < this.#nLayer; ++layer) {
      const y = bottom - (layer + 1) * row;
      context.fillStyle = colours.run;
      context.fillRect(from, y, most, row - line);
      const half = counts.attention[layer] > 0 ? (row - line) / 2 : row - line;
      context.fillStyle = colours.ffn;
      context.fillRect(from, y, most * counts.ffn[layer], half);
      context.fillStyle = colours.attention;
      context.fillRect(from, y + half, most * counts.attention[layer], row - line - half);
    }
  }

  // ---- the table ----

  #fillTable() {
    if (!this.#figure.querySelector("details").open) return;
    for (let i = this.#table.rows.length; i < this.#tokens.length; ++i) {
      this.#table.append(tableRow(i, this.#tokens[i], this.#nLayer));
    }
  }
}

/** Of a column: orange where the FFN block was left out, blue the attention, half and half both. */
function drawSkip(context, skip, { x, width, row, line, bottom }, colours) {
  const ffn = new Set(skip.layers);
  context.fillStyle = colours.ffn;
  for (const layer of ffn) context.fillRect(x, bottom - (layer + 1) * row, width, row - line);
  context.fillStyle = colours.attention;
  for (const layer of skip.attention) {
    const height = ffn.has(layer) ? (row - line) / 2 : row - line;
    context.fillRect(x, bottom - layer * row - line - height, width, height);
  }
}

function drawLine(context, x, bottom, colour) {
  context.fillStyle = colour;
  context.fillRect(x - 1, 0, 2, bottom);
}

function drawFrame(context, x, width, bottom, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 1.5;
  context.strokeRect(x - 0.75, 0.75, width + 1.5, bottom - 0.75);
}

function coloursOf(place) {
  const style = getComputedStyle(place);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const levels = Array.from({ length: N_LEVELS + 1 }, (_, level) => colour(`level-${level}`));
  levels[0] = colour("run");
  const names = ["run", "full", "ffn", "attention", "difference", "ink", "muted"];
  return { levels, ...Object.fromEntries(names.map((name) => [name, colour(name)])) };
}

function tableRow(i, { text, skip }, nLayer) {
  const row = document.createElement("tr");
  const traced = skip !== null;
  const whole = traced && ranInFull(skip) ? "in full" : "none";
  const cells = [
    visible(text),
    traced ? ranges(skip.layers) || whole : "not traced",
    traced ? ranges(skip.attention) || whole : "not traced",
    traced ? percent(shareOf(skip, nLayer)) : "",
  ];
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = i + 1;
  row.append(head, ...cells.map((cell) => Object.assign(document.createElement("td"), { textContent: cell })));
  return row;
}
