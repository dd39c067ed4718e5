// What tokens left out, in numbers and words. Knows neither the document nor the network.
//
// A token: {text, at, skip}. `at`: when it came, in milliseconds. `skip`: {layers, attention, kept, may_skip} as the
// server traced it; null where it did not.

export const N_LEVELS = 6;
const SHARE_PER_LEVEL = 1 / 12;

/** Share of the model that a token did without, 0 to 1: of the weights' bytes where channels are left out, of the
 * layers' FFN blocks otherwise, or of their attention where more of that is. */
export function shareOf(skip, nLayer) {
  if (!skip) return 0;
  const blocks = Math.max(skip.layers.length, skip.attention.length) / nLayer;
  return skip.kept === null ? blocks : Math.max(blocks, 1 - skip.kept);
}

/** The colour of a share: 0 for none, N_LEVELS for half or more. */
export function levelOf(share) {
  return Math.min(N_LEVELS, Math.ceil(share / SHARE_PER_LEVEL - 1e-9));
}

/** Whether it ran whole because it had to: in the warm-up, or predicted by the prompt. */
export function ranInFull(skip) {
  return skip !== null && !skip.may_skip && shareOf(skip, 1) === 0;
}

/** [3, 5, 6, 7] is "3, 5–7". */
export function ranges(layers) {
  const sorted = [...layers].sort((a, b) => a - b);
  const parts = [];
  for (let first = 0, last; first < sorted.length; first = last + 1) {
    last = first;
    while (sorted[last + 1] === sorted[last] + 1) ++last;
    const between = last - first > 1 ? "–" : ", ";
    parts.push(first === last ? `${sorted[first]}` : `${sorted[first]}${between}${sorted[last]}`);
  }
  return parts.join(", ");
}

export function percent(share) {
  const value = 100 * share;
  return `${value > 0 && value < 9.95 ? value.toFixed(1) : value.toFixed(0)} %`;
}

/** A token's text in quotes, on one line: without the blanks around it, or signs for them where there is no more. */
export function visible(text) {
  const shown = text.trim() || text.replace(/ /g, "␣");
  return `“${shown.replace(/\n/g, "↵").replace(/\t/g, "⇥")}”`;
}

/** What a token left out, a sentence each. */
export function describe(skip, nLayer) {
  if (skip === null) return ["not traced"];
  if (ranInFull(skip)) return ["ran in full, as it had to"];
  const lines = [];
  if (skip.layers.length) lines.push(blocks("FFN", skip.layers, nLayer));
  if (skip.attention.length) lines.push(blocks("attention", skip.attention, nLayer));
  if (skip.kept !== null) lines.push(`${percent(skip.kept)} of the weights’ bytes read`);
  return lines.length ? lines : ["left nothing out"];
}

function blocks(kind, layers, nLayer) {
  const plural = layers.length === 1 ? "layer" : "layers";
  return `${layers.length} of ${nLayer} ${kind} blocks left out: ${plural} ${ranges(layers)}`;
}

/** Index of the first token that differs; -1 where none does yet, or at all. `done`: no more will come. */
export function firstDifference(one, other, done) {
  const n = Math.min(one.length, other.length);
  for (let i = 0; i < n; ++i) {
    if (one[i].text !== other[i].text) return i;
  }
  return done && one.length !== other.length ? n : -1;
}

/** How often each layer was left out by tokens that may skip, 0 to 1: {ffn: [nLayer], attention: [nLayer]}. */
export function perLayer(tokens, nLayer) {
  const counts = { ffn: new Array(nLayer).fill(0), attention: new Array(nLayer).fill(0) };
  const skips = tokens.map((token) => token.skip).filter((skip) => skip !== null && !ranInFull(skip));
  for (const skip of skips) {
    for (const layer of skip.layers) counts.ffn[layer] += 1 / skips.length;
    for (const layer of skip.attention) counts.attention[layer] += 1 / skips.length;
  }
  return counts;
}

/** Of an answer's tokens, and of the server's totals where there are: what the table of statistics says. The rate
 * leaves the first token out, which waits for the prompt. null: not known. */
export function statistics(tokens, totals, asked, nLayer) {
  const n = totals ? totals.n_generated : tokens.length;
  const shares = tokens.map((token) => shareOf(token.skip, nLayer));
  const seconds = totals
    ? totals.seconds - totals.seconds_first
    : tokens.length ? (tokens[tokens.length - 1].at - tokens[0].at) / 1000 : 0;
  return {
    tokens: n,
    perSecond: n > 1 && seconds > 0 ? (n - 1) / seconds : null,
    secondsFirst: totals ? totals.seconds_first : tokens.length ? (tokens[0].at - asked) / 1000 : null,
    prompt: totals ? totals.n_prompt : null,
    cached: totals ? totals.n_cached : null,
    leftOut: totals ? totals.skip_ratio : mean(shares),
    inFull: tokens.filter((token) => ranInFull(token.skip)).length,
  };
}

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}
