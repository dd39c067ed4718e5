// The controls. What can be set, and in which range, is the server's to say (GET /v1/skip).

import { percent, ranges } from "./skips.js";

const AS_SERVER = "";
const NAMES = {
  skip_ratio: "Share to leave out",
  warm_up_index: "Warm-up tokens",
  sim_threshold: "Similarity that trips",
  max_skip: "Blocks after the trip",
  layers: "FFN blocks of layers",
  attention_layers: "Attention of layers",
};
const SHARES = new Set(["skip_ratio"]);

const element = (id) => document.getElementById(id);

export class Settings {
  #skips = null;

  constructor() {
    element("policy").addEventListener("change", () => this.#showRanges());
    element("settings").addEventListener("input", (event) => showValue(event.target));
    element("settings").addEventListener("submit", (event) => event.preventDefault());
  }

  /** `skips`: what GET /v1/skip said. */
  show(skips) {
    this.#skips = skips;
    const names = Object.keys(skips.policies);
    const asServer = option(AS_SERVER, `as the server does: ${skips.policy}`);
    element("policy").replaceChildren(asServer, ...names.map((name) => option(name, name)));
    this.#showRanges();
  }

  get compares() {
    return element("compare").checked;
  }

  /** Whether every value is in its range. */
  get valid() {
    return element("settings").checkValidity();
  }

  /** Has the browser say which value is wrong; they must be in sight for that. */
  complain() {
    element("settings").reportValidity();
  }

  /** `skip` of a request. */
  skip() {
    const policy = element("policy").value;
    if (policy === AS_SERVER) return { trace: true };
    const inputs = [...element("ranges").querySelectorAll("input")];
    return { policy, ...Object.fromEntries(inputs.map((input) => [input.name, input.valueAsNumber])), trace: true };
  }

  /** The rest that is set. */
  sampling() {
    return {
      temperature: element("temperature").valueAsNumber,
      max_tokens: element("max-tokens").valueAsNumber,
      seed: element("seed").valueAsNumber,
    };
  }

  #showRanges() {
    const policy = element("policy").value;
    const { settings, policies } = this.#skips;
    const said = policy === AS_SERVER ? summary(settings) : [];
    element("policy-note").replaceChildren(...said.map((textContent) => make("li", { textContent })));
    const own = settings && settings.policy === policy ? settings : {};
    const fields = Object.entries(policy === AS_SERVER ? {} : policies[policy]);
    element("ranges").replaceChildren(...fields.map(([name, range]) => field(name, range, own[name])));
  }
}

function summary(settings) {
  const said = Object.entries(settings || {}).filter(([name, value]) => NAMES[name] && value !== null);
  return said.map(([name, value]) => {
    const text = Array.isArray(value) ? ranges(value) : SHARES.has(name) ? percent(value) : value;
    return `${NAMES[name]}: ${text}`;
  });
}

/** A slider where the range has two ends, a number otherwise. */
function field(name, range, own) {
  const id = `setting-${name}`;
  const label = make("label", { htmlFor: id, textContent: NAMES[name] || name });
  const value = own === undefined || own === null ? range.default : own;
  const slides = range.maximum !== undefined && !range.integer;
  const input = make("input", { id, name, type: slides ? "range" : "number", required: true });
  input.min = range.minimum;
  if (range.maximum !== undefined) input.max = range.maximum;
  input.step = range.integer ? 1 : 0.01;
  input.value = value;
  const parts = slides ? [label, make("output", { htmlFor: id }), input] : [label, input];
  const box = make("div", { className: "field" });
  box.append(...parts);
  showValue(input);
  return box;
}

function showValue(input) {
  const output = input.type === "range" && input.parentElement.querySelector("output");
  if (!output) return;
  output.value = SHARES.has(input.name) ? percent(input.valueAsNumber) : input.value;
  input.setAttribute("aria-valuetext", output.value);
}

function option(value, textContent) {
  return make("option", { value, textContent });
}

function make(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}
