// The page: a conversation with the server it came from.

import { ApiError, chat, keepKey, serverSkips } from "./api.js";
import { Settings } from "./settings.js";
import { percent } from "./skips.js";
import { Tip } from "./tip.js";
import { Turn } from "./turn.js";

const element = (id) => document.getElementById(id);
const settings = new Settings();
const tip = new Tip();
const turns = [];
let skips = null; // what GET /v1/skip said
let running = null; // of the answers being made: the AbortController

// ---- the server ----

async function connect() {
  hideProblem();
  try {
    skips = await serverSkips();
  } catch (error) {
    showProblem(error, connect);
    return;
  }
  element("model").textContent = `${skips.model} · ${skips.n_layer} layers`;
  element("new-chat").disabled = false;
  settings.show(skips);
}

function showProblem(error, again) {
  if (!(error instanceof ApiError)) throw error;
  const wait = error.retryAfter === null ? "" : ` Try again in ${error.retryAfter} s.`;
  element("problem-text").textContent = error.message.replace(/([^.!?])$/, "$1.") + wait;
  element("key-form").hidden = error.status !== 401;
  element("retry").hidden = error.status === 401;
  element("retry").onclick = again;
  element("key-form").onsubmit = (event) => {
    event.preventDefault();
    keepKey(element("key").value);
    element("key").value = "";
    again();
  };
  element("problem").hidden = false;
  if (error.status === 401) element("key").focus();
}

function hideProblem() {
  element("problem").hidden = true;
}

// ---- a turn ----

async function send(question) {
  if (running || !question.trim()) return;
  if (!settings.valid) {
    togglePanel(true);
    settings.complain();
    return;
  }
  if (!skips) await connect();
  if (!skips) return;
  hideProblem();
  const skip = settings.skip();
  const compares = settings.compares && !isDense(skip);
  const wanted = compares ? [["Dense", { policy: "dense", trace: true }], ["Skipping", skip]] : [["", skip]];
  const messages = [...conversation(), { role: "user", content: question }];
  // Of two that are timed, the second must not find what the first has read.
  const request = { model: skips.model, messages, cache_prompt: !compares, ...settings.sampling() };
  const turn = begin(question);
  try {
    for (const [name, skip] of wanted) {
      if (!running.signal.aborted) await answer(turn, turn.begin(name, isDense(skip)), { ...request, skip });
    }
    turn.compare();
    if (settings.compares && !compares) turn.judge("Nothing to compare: the server leaves nothing out. Choose a policy.");
    say(`Done: ${turn.last.tokens.length} tokens.`);
  } catch (error) {
    say("");
    showProblem(error, () => {
      remove(turn);
      send(question);
    });
  } finally {
    setRunning(null);
    showStatistics(turn);
  }
}

function isDense({ policy }) {
  return (policy || skips.policy) === "dense";
}

function begin(question) {
  const turn = new Turn(question, skips.n_layer, look);
  turns.push(turn);
  element("welcome").hidden = true;
  element("turns").append(turn.element);
  element("prompt").value = "";
  fitPrompt();
  setRunning(new AbortController());
  say("The answer is being written.");
  element("chat").scrollTop = element("chat").scrollHeight;
  return turn;
}

function remove(turn) {
  turns.splice(turns.indexOf(turn), 1);
  turn.element.remove();
}

async function answer(turn, shown, request) {
  try {
    for await (const chunk of chat(request, running.signal)) {
      const follows = isAtEnd();
      for (const choice of chunk.choices) shown.push(choice);
      turn.update();
      if (follows) element("chat").scrollTop = element("chat").scrollHeight;
    }
    shown.end(running.signal.aborted ? "Stopped." : shown.reason === "length" ? whyCut(shown, request) : "");
  } catch (error) {
    shown.end(shown.tokens.length ? "Cut off." : "No answer.");
    throw error;
  }
  turn.update();
}

function whyCut(shown, request) {
  return shown.tokens.length < request.max_tokens
    ? "Cut off: the context is full."
    : `Cut off after ${request.max_tokens} tokens, the most that were asked for.`;
}

/** What the model is told of the turns before. */
function conversation() {
  return turns.filter((turn) => turn.last.text).flatMap((turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.last.text },
  ]);
}

function setRunning(controller) {
  const held = document.activeElement === element("stop") || document.activeElement === element("send");
  running = controller;
  element("send").hidden = running !== null;
  element("stop").hidden = running === null;
  element("new-chat").disabled = running !== null;
  if (held) element(running ? "stop" : "send").focus();
}

function newChat() {
  turns.splice(0);
  element("turns").replaceChildren();
  element("welcome").hidden = false;
  hideProblem();
  showStatistics(null);
  element("prompt").focus();
}

// ---- looking ----

function look(turn, index) {
  for (const other of turns) other.setCursor(other === turn ? index : -1);
}

/** Its answer, its index in it, and its turn. */
function tokenAt(target) {
  if (!target.classList.contains("token") || !target.dataset.index) return null;
  for (const turn of turns) {
    const answer = turn.answers.find((answer) => answer.element.contains(target));
    if (answer) return { turn, answer, index: Number(target.dataset.index) };
  }
  return null;
}

function onPointer(event) {
  const found = tokenAt(event.target);
  if (!found) {
    tip.hide();
    return;
  }
  const { turn, answer, index } = found;
  tip.show(event.target, index, answer.tokens[index], skips.n_layer);
  if (answer === turn.last) look(turn, index);
}

function say(words) {
  element("status").textContent = words;
}

function isAtEnd() {
  const { scrollTop, scrollHeight, clientHeight } = element("chat");
  return scrollHeight - scrollTop - clientHeight < 80;
}

// ---- statistics ----

const ROWS = [
  ["Tokens", (s) => s.tokens],
  ["Tokens per second", (s) => (s.perSecond === null ? null : s.perSecond.toFixed(1))],
  ["First token after", (s) => (s.secondsFirst === null ? null : `${s.secondsFirst.toFixed(2)} s`)],
  ["Prompt’s tokens", (s) => s.prompt],
  ["of these, cached", (s) => s.cached],
  ["Left out", (s) => (s.leftOut === null ? null : percent(s.leftOut))],
  ["Tokens in full", (s) => s.inFull],
];

/** `turn`: the last one, or null. */
function showStatistics(turn) {
  const shown = turn === null ? [] : turn.answers.filter((answer) => answer.tokens.length);
  const figures = shown.map((answer) => answer.statistics());
  element("no-statistics").hidden = shown.length > 0;
  element("statistics").hidden = shown.length === 0;
  const rows = ROWS.map(([name, of]) => [name, ...figures.map((figure) => of(figure) ?? "–")]);
  const names = shown.length > 1 ? [["", ...shown.map((answer) => answer.name)]] : [];
  const head = names.map((cells) => tableRow(cells, "col"));
  element("statistics").replaceChildren(...head, ...rows.map((cells) => tableRow(cells, "row")));
}

function tableRow([name, ...cells], scope) {
  const row = document.createElement("tr");
  const make = (tag, textContent) => Object.assign(document.createElement(tag), { textContent });
  const first = make(name ? "th" : "td", name);
  if (name) first.scope = "row";
  const others = cells.map((cell) => make(scope === "col" ? "th" : "td", cell));
  if (scope === "col") for (const other of others) other.scope = "col";
  row.append(first, ...others);
  return row;
}

// ---- what the user does ----

function fitPrompt() {
  const { style } = element("prompt");
  style.height = "auto";
  style.height = `${element("prompt").scrollHeight + 2}px`;
}

function togglePanel(open) {
  element("panel").classList.toggle("open", open);
  element("panel-button").setAttribute("aria-expanded", open);
}

function onEscape() {
  tip.hide();
  if (running) running.abort();
  else if (element("panel").classList.contains("open")) {
    togglePanel(false);
    element("panel-button").focus();
  }
}

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send(element("prompt").value);
});
element("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  element("composer").requestSubmit();
});
element("prompt").addEventListener("input", fitPrompt);
element("stop").addEventListener("click", () => running.abort());
element("new-chat").addEventListener("click", newChat);
element("panel-button").addEventListener("click", () => togglePanel(!element("panel").classList.contains("open")));
element("examples").addEventListener("click", (event) => {
  if (event.target.matches("button")) send(event.target.textContent);
});
element("turns").addEventListener("pointerover", onPointer);
element("turns").addEventListener("pointerleave", () => tip.hide());
element("chat").addEventListener("scroll", () => tip.hide());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") onEscape();
});

connect();
