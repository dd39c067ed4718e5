// A turn of the conversation as it is shown: what was asked, one or two answers token by token, and the map beneath.

import { HeatMap } from "./heatmap.js";
import { firstDifference, levelOf, ranInFull, shareOf, statistics, visible } from "./skips.js";

const template = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

export class Answer {
  tokens = [];
  totals = null;
  reason = null;
  asked = performance.now();
  #isDense;
  element = template("answer");
  #text = this.element.querySelector(".text");
  #nLayer;

  /** `name`: what it is called where there are two; "" where it is alone. */
  constructor(name, isDense, nLayer) {
    this.name = name;
    this.#isDense = isDense;
    this.#nLayer = nLayer;
    this.element.querySelector(".name").textContent = name;
    this.element.querySelector("h3").hidden = name === "";
    this.element.classList.toggle("dense", isDense);
    this.element.setAttribute("aria-busy", "true");
  }

  get text() {
    return this.tokens.map((token) => token.text).join("");
  }

  /** A chunk of the stream. Every chunk with text or a trace is a token; the last one has the totals. */
  push(choice) {
    const { totals, ...traced } = choice.skip || {};
    if (totals) this.totals = totals;
    if (choice.finish_reason) this.reason = choice.finish_reason;
    const text = (choice.delta && choice.delta.content) || "";
    // Of a dense answer no token had to run in full: none would have left anything out.
    const skip = traced.layers ? { ...traced, may_skip: traced.may_skip || this.#isDense } : null;
    if (text || skip) this.#add({ text, at: performance.now(), skip });
  }

  #add(token) {
    const span = document.createElement("span");
    const blank = token.text.trim() ? token.text.length - token.text.trimStart().length : 0;
    span.className = "token";
    span.textContent = token.text.slice(blank);
    span.dataset.index = this.tokens.length;
    if (ranInFull(token.skip)) span.classList.add("full");
    else if (token.skip) span.classList.add(`level-${levelOf(shareOf(token.skip, this.#nLayer))}`);
    this.tokens.push(token);
    this.#text.append(token.text.slice(0, blank), span); // blanks between words are not coloured
  }

  statistics() {
    return statistics(this.tokens, this.totals, this.asked, this.#nLayer);
  }

  /** `words`: why it ends here, where that is not the model's choice. */
  end(words) {
    this.element.removeAttribute("aria-busy");
    this.element.querySelector(".end").textContent = words;
  }

  /** Tokens per second; null where it is not known. */
  showSpeed(speed) {
    this.element.querySelector(".speed").textContent = speed === null ? "" : `${speed.toFixed(1)} tokens/s`;
  }

  mark(index, name) {
    const before = this.#text.querySelector(`.${name}`);
    if (before) before.classList.remove(name);
    if (index >= 0 && index < this.tokens.length) this.#text.children[index].classList.add(name);
  }
}

export class Turn {
  element = template("turn");
  answers = [];
  difference = -1;
  #nLayer;
  #map;

  /** `onCursor(turn, index)`: the token looked at; -1 for none. */
  constructor(question, nLayer, onCursor) {
    this.question = question;
    this.#nLayer = nLayer;
    this.element.querySelector(".asked").textContent = question;
    this.#map = new HeatMap(this.element.querySelector(".map"), nLayer, (index) => onCursor(this, index));
  }

  /** The last of them is what the conversation goes on with, and whose map is shown. */
  begin(name, isDense) {
    const answer = new Answer(name, isDense, this.#nLayer);
    this.answers.push(answer);
    this.element.querySelector(".answers").append(answer.element);
    return answer;
  }

  get last() {
    return this.answers[this.answers.length - 1];
  }

  /** After tokens came, and at the end. */
  update() {
    const [one, other] = this.answers;
    if (other) {
      this.difference = firstDifference(one.tokens, other.tokens, other.reason !== null);
      for (const answer of this.answers) answer.mark(this.difference, "difference");
    }
    this.#map.show(this.last.tokens, this.difference);
    for (const answer of this.answers) answer.showSpeed(answer.statistics().perSecond);
  }

  /** Where there are two answers, and both are done: how they compare. */
  compare() {
    if (this.answers.length < 2) return;
    const [one, other] = this.answers.map((answer) => answer.tokens[this.difference]);
    const [dense, skipping] = this.answers.map((answer) => answer.statistics().perSecond);
    const said = (token) => (token ? visible(token.text) : "nothing more");
    const speed = dense && skipping ? `Skipping has ${(skipping / dense).toFixed(2)} times the speed. ` : "";
    const text = this.difference < 0
      ? "The texts are the same."
      : `The texts part at token ${this.difference + 1}: ${said(one)} and ${said(other)}.`;
    this.judge(speed + text);
  }

  judge(words) {
    this.element.querySelector(".verdict").textContent = words;
  }

  setCursor(index) {
    this.last.mark(index, "current");
    this.#map.setCursor(index);
  }
}
