"""FFN-SkipLLM (arXiv:2404.03865, Algorithm 1) on a LLaMA model in plain NumPy: the oracle of the overlay's tests.

    from support.reference import ReferenceLlama
    model = ReferenceLlama("model.gguf")
    result = model.generate_greedy(prompt, 64, sim_threshold=0.9, cold_s=2, cold_e=14, max_skip=4, warm_up_index=8)
    result.tokens, result.trace.trip_layer, result.trace.skipped

Written from the paper and the GGUF file alone; nothing of the overlay or of llama.cpp is called. Where the pseudocode
and the text disagree the text holds: a computed FFN updates the state, a skipped one passes h on.

Two options follow llama.cpp's CPU arithmetic, so that a decision near the threshold falls on the same side:
`round_activations` (a product with quantised or 16-bit weights first rounds the activations as the type's product does)
and `kv_f16` (keys, values and what they are multiplied with are F16). Both off is exact arithmetic in `dtype`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gguf
import numpy as np

QType = gguf.GGMLQuantizationType
BLOCK = 32  # values that share a scale; in the K types,
K_BLOCK = 256
NOT_TRIPPED = -1


# --- Algorithm 1 -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SkipSettings:
    """The paper's parameters; `max_skip` is its k. Layers [cold_s, cold_e) form the adaptive region.

    Beyond the paper: a threshold for each layer, infinite where it is not checked; `layers` that are always skipped and
    not counted; checks in every `check_stride`-th of the other layers of the region only, and of every
    `check_interval`-th token that may skip: those between skip what it did."""

    sim_threshold: float | Sequence[float]
    cold_s: int
    cold_e: int
    max_skip: int
    layers: Sequence[int] = ()
    check_stride: int = 1
    check_interval: int = 1

    def is_checked(self, il: int) -> bool:
        unchecked = not np.isscalar(self.sim_threshold) and self.sim_threshold[il] == np.inf
        return il in self.free_layers(self.cold_s)[:: self.check_stride] and not unchecked

    def threshold(self, il: int) -> float:
        return self.sim_threshold if np.isscalar(self.sim_threshold) else self.sim_threshold[il]

    def skipped_after(self, trip: int) -> list[int]:
        return self.free_layers(trip + 1)[: self.max_skip]

    def free_layers(self, first: int) -> list[int]:
        return [il for il in range(first, self.cold_e) if il not in self.layers]


@dataclass(frozen=True)
class Trace:
    """What was measured and decided, one row per evaluated token."""

    similarity: np.ndarray  # (n_tokens, n_layer) float64, NaN where nothing was checked
    skipped: np.ndarray  # (n_tokens, n_layer) bool
    trip_layer: np.ndarray  # (n_tokens,) int64, NOT_TRIPPED where the threshold was not reached

    @classmethod
    def empty(cls, n_tokens: int, n_layer: int) -> Trace:
        return cls(
            similarity=np.full((n_tokens, n_layer), np.nan),
            skipped=np.zeros((n_tokens, n_layer), dtype=bool),
            trip_layer=np.full(n_tokens, NOT_TRIPPED, dtype=np.int64),
        )

    @classmethod
    def joined(cls, traces: Sequence[Trace]) -> Trace:
        return cls(
            similarity=np.concatenate([trace.similarity for trace in traces]),
            skipped=np.concatenate([trace.skipped for trace in traces]),
            trip_layer=np.concatenate([trace.trip_layer for trace in traces]),
        )

    def closest_call(self, sim_threshold: float | Sequence[float]) -> float:
        """Distance of the nearest check to the threshold: decisions are only comparable if it exceeds rounding."""
        distance = np.abs(self.similarity - sim_threshold)
        return float(np.nanmin(distance)) if np.isfinite(distance).any() else np.inf


@dataclass(frozen=True)
class LayerBudget:
    """SkipDecode (Del Corro et al. 2023): the layers that a generated token runs fall linearly with its position, from
    all to `min_layers`, and never rise again; any other token runs as many as the last one before it."""

    n_layer: int
    cold_s: int
    min_layers: int
    budget_decay: int

    def left_out(self, generated: Sequence[bool]) -> list[range]:
        """The layers that each token leaves out whole, by what they are, from position 0 on."""
        budget, left_out = self.n_layer, []
        for position, is_generated in enumerate(generated):
            if is_generated:
                fallen = (self.n_layer - self.min_layers) * min(1.0, position / self.budget_decay)
                budget = min(budget, self.n_layer - int(np.floor(fallen + 0.5)))
            left_out.append(range(self.cold_s, self.cold_s + self.n_layer - budget))
        return left_out


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarity across the embedding dimension, (..., n_embd) twice to (...), in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def feed_forward_or_skip(
    il: int,
    h: np.ndarray,
    feed_forward: Callable[[np.ndarray], np.ndarray],
    settings: SkipSettings | None,
    may_skip: np.ndarray,
    trace: Trace,
    follows: bool = False,
) -> np.ndarray:
    """One layer's second half for rows h, (n_tokens, n_embd); `trace` holds the state of every row.

    Example, k = 2, a row that trips in layer 5:   layer  3  4  5     6     7     8  ...
                                                   FFN    x  x  trip  skip  skip  x  (unchecked from here on)

    `follows`: the rows do what another token did; the trace has the layer in which that one tripped.
    """
    state = h.copy()
    trip = trace.trip_layer
    if settings is not None:
        after_trip = [t != NOT_TRIPPED and il in settings.skipped_after(t) for t in trip]
        trace.skipped[:, il] = may_skip if il in settings.layers else after_trip
    run = ~trace.skipped[:, il]
    if run.any():
        state[run] = h[run] + feed_forward(h[run])
    if settings is not None and settings.is_checked(il) and not follows:
        checked = may_skip & (trip == NOT_TRIPPED)
        trace.similarity[checked, il] = cosine(h[checked], state[checked])
        trip[checked & (trace.similarity[:, il] >= settings.threshold(il))] = il
    return state


# --- arithmetic ------------------------------------------------------------------------------------------------------


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps)) * weight


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rope(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Rotates the neighbours (2i, 2i + 1): x (n_tokens, n_head, head_dim), angles (n_tokens, n_rot / 2)."""
    n_rot = 2 * angles.shape[-1]
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    even, odd = x[..., 0:n_rot:2], x[..., 1:n_rot:2]
    out = x.copy()
    out[..., 0:n_rot:2] = even * cos - odd * sin
    out[..., 1:n_rot:2] = even * sin + odd * cos
    return out


def as_is(x: np.ndarray) -> np.ndarray:
    return x


def to_f16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(x.dtype)


def to_bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32)
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)  # to the nearest, ties to even
    return upper.view(np.float32).astype(x.dtype)


def eight_bits(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes in [-127, 127] of each block, (n_blocks, block), and the largest |x| / 127, (n_blocks, 1), in float32."""
    blocks = x.reshape(-1, block).astype(np.float32)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(blocks * inverse), largest / np.float32(127)


def to_q8_0(x: np.ndarray) -> np.ndarray:
    """Blocks of 32 signed bytes with a scale that is stored as F16 once they are rounded."""
    codes, scale = eight_bits(x, BLOCK)
    return (codes * to_f16(scale)).astype(x.dtype).reshape(x.shape)


def q8_1_sums(x: np.ndarray) -> np.ndarray:
    """Of Q8_1, which is Q8_0 with the sum of each block's values, from the scale in full: (n_tokens, n_blocks), F16."""
    codes, scale = eight_bits(x, BLOCK)
    return to_f16(scale * codes.sum(axis=1, keepdims=True)).astype(x.dtype).reshape(len(x), -1)


def to_q8_k(x: np.ndarray) -> np.ndarray:
    """Blocks of 256 signed bytes with a float32 scale."""
    codes, scale = eight_bits(x, K_BLOCK)
    return (codes * scale).astype(x.dtype).reshape(x.shape)


# What llama.cpp's CPU backend does to activations before a product with weights of this type.
ACTIVATION_ROUNDING = {
    QType.F32: as_is,
    QType.F16: to_f16,
    QType.BF16: to_bf16,
    **dict.fromkeys((QType.Q8_0, QType.Q4_0, QType.Q5_0, QType.Q4_1, QType.Q5_1), to_q8_0),
    **dict.fromkeys((QType.Q4_K, QType.Q5_K, QType.Q6_K), to_q8_k),
}

# Types whose blocks have a minimum, the second F16 number of each, that is multiplied by Q8_1's sum.
BLOCK_BYTES_WITH_MINIMUM = {QType.Q4_1: 20, QType.Q5_1: 24}


class Matrix:
    """A weight (n_out, n_in): maps (n_tokens, n_in) to (n_tokens, n_out), by llama.cpp's arithmetic or exactly."""

    def __init__(self, tensor: gguf.ReaderTensor, dtype: np.dtype, round_activations: bool) -> None:
        self.type = tensor.tensor_type
        self.weight = gguf.quants.dequantize(tensor.data, self.type).astype(dtype)
        self.rounding = ACTIVATION_ROUNDING[self.type] if round_activations else as_is
        self.minimum = None
        if round_activations and self.type in BLOCK_BYTES_WITH_MINIMUM:
            blocks = tensor.data.reshape(len(self.weight), -1, BLOCK_BYTES_WITH_MINIMUM[self.type])
            self.minimum = np.ascontiguousarray(blocks[..., 2:4]).view(np.float16)[..., 0].astype(dtype)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        rounded = self.rounding(x)
        y = rounded @ self.weight.T
        if self.minimum is not None:
            y += (q8_1_sums(x) - rounded.reshape(len(x), -1, BLOCK).sum(axis=-1)) @ self.minimum.T
        return y


# --- the model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    attn_norm: np.ndarray
    attn_q: Matrix
    attn_k: Matrix
    attn_v: Matrix
    attn_output: Matrix
    ffn_norm: np.ndarray
    ffn_gate: Matrix
    ffn_up: Matrix
    ffn_down: Matrix


@dataclass(frozen=True)
class Generation:
    """Token i is chosen from logits[i]; trace row i belongs to token i being fed back, so the last token has none."""

    tokens: list[int]  # n
    logits: np.ndarray  # (n, n_vocab)
    trace: Trace  # n - 1 rows


class ReferenceLlama:
    """A dense LLaMA from a GGUF file, with a key/value cache for one sequence.

    Args:
        path: The GGUF file, architecture `llama`, without experts, biases or rope scaling.
        settings: Algorithm 1's parameters for tokens that may skip; None runs every FFN.
        dtype: float32 or float64.
        round_activations, kv_f16: See the module's text.
        n_ctx: Cache size; None takes the model's context length.
    """

    ARCHITECTURES: tuple[str, ...] = ("llama",)
    LAYER = Layer

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        settings: SkipSettings | None = None,
        dtype: type = np.float64,
        round_activations: bool = True,
        kv_f16: bool = True,
        n_ctx: int | None = None,
    ) -> None:
        self.settings = settings
        self.follows: int | None = None
        self.left_out: Sequence[int] = ()
        self.dtype = np.dtype(dtype)
        self._round_activations = round_activations
        self._kv_rounding = to_f16 if kv_f16 else as_is
        reader = gguf.GGUFReader(os.fspath(path))
        self._read_shape(reader)
        self._read_tensors({tensor.name: tensor for tensor in reader.tensors})
        self._make_cache(n_ctx or self.n_ctx_train)

    def _read_shape(self, reader: gguf.GGUFReader) -> None:
        def value(key, default=None):
            field = reader.get_field(key)
            if field is None and default is None:
                raise ValueError(f"missing metadata: {key}")
            return default if field is None else field.contents()

        arch = value("general.architecture")
        if arch not in self.ARCHITECTURES:
            raise ValueError(f"architecture {' or '.join(self.ARCHITECTURES)} is required, got {arch}")
        if value(f"{arch}.rope.scaling.type", "none") != "none":
            raise ValueError("rope scaling is not implemented")
        self.n_layer = value(f"{arch}.block_count")
        self.n_embd = value(f"{arch}.embedding_length")
        self.n_ctx_train = value(f"{arch}.context_length")
        self.n_head = value(f"{arch}.attention.head_count")
        self.n_head_kv = value(f"{arch}.attention.head_count_kv", self.n_head)
        self.head_dim = value(f"{arch}.attention.key_length", self.n_embd // self.n_head)
        self.eps = value(f"{arch}.attention.layer_norm_rms_epsilon")
        n_rot = value(f"{arch}.rope.dimension_count", self.head_dim)
        base = value(f"{arch}.rope.freq_base", 10000.0)
        self._rope_frequency = base ** (-np.arange(0, n_rot, 2) / n_rot)  # (n_rot / 2,)

    def _read_tensors(self, tensors: dict[str, gguf.ReaderTensor]) -> None:
        def array(name):
            tensor = tensors.pop(name)
            return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(self.dtype)

        def matrix(name):
            return self._matrix(tensors.pop(name))

        def layer(il):
            parts = {}
            for part in self.LAYER.__dataclass_fields__:
                name = f"blk.{il}.{part}.weight"
                if name in tensors:
                    parts[part] = array(name) if part.endswith("norm") else matrix(name)
            return self.LAYER(**parts)

        if "rope_freqs.weight" in tensors:
            self._rope_frequency = self._rope_frequency / array("rope_freqs.weight")
        self.output_norm = array("output_norm.weight")
        self.output = matrix("output.weight" if "output.weight" in tensors else "token_embd.weight")
        # A tied output has just taken the embeddings out of `tensors`.
        self.token_embd = array("token_embd.weight") if "token_embd.weight" in tensors else self.output.weight
        self.layers = [layer(il) for il in range(self.n_layer)]
        if tensors:
            raise ValueError(f"tensors this reference does not know: {sorted(tensors)}")

    def _matrix(self, tensor: gguf.ReaderTensor) -> Matrix:
        return Matrix(tensor, self.dtype, self._round_activations)

    def _make_cache(self, n_ctx: int) -> None:
        shape = (self.n_layer, self.n_head_kv, n_ctx, self.head_dim)
        self._keys = np.zeros(shape, dtype=self.dtype)
        self._values = np.zeros(shape, dtype=self.dtype)
        self.n_past = 0

    def reset(self) -> None:
        self.n_past = 0

    def _input(self, il: int, kind: str, v: np.ndarray, expert: int | None = None) -> np.ndarray:
        """What matrices of layer il, or of one of its experts, read: "qkv" those of Q, K and V, "o" that of attention's
        output, "up" those of gate and up, "down" that of down. (channels_reference.py changes it.)"""
        return v

    def _attention(self, il: int, x: np.ndarray) -> np.ndarray:
        """x, already normed: (n_tokens, n_embd). Appends to the cache of layer il; n_past is moved by the caller."""
        layer, rounding, n_tokens = self.layers[il], self._kv_rounding, len(x)
        x = self._input(il, "qkv", x)
        start, end = self.n_past, self.n_past + n_tokens
        position = np.arange(start, end)
        q = self._query(il, layer.attn_q(x).reshape(n_tokens, self.n_head, self.head_dim), position)
        k = self._key(il, layer.attn_k(x).reshape(n_tokens, self.n_head_kv, self.head_dim), position)
        v = layer.attn_v(x).reshape(n_tokens, self.n_head_kv, self.head_dim)
        self._keys[il, :, start:end] = rounding(k).transpose(1, 0, 2)
        self._values[il, :, start:end] = rounding(v).transpose(1, 0, 2)

        # n_head / n_head_kv query heads share a key head: (n_head_kv, group, n_tokens, head_dim)
        q = rounding(q).reshape(n_tokens, self.n_head_kv, -1, self.head_dim).transpose(1, 2, 0, 3)
        keys, values = self._keys[il, :, None, :end], self._values[il, :, None, :end]  # (n_head_kv, 1, end, head_dim)
        scores = self._scores(q @ keys.swapaxes(-1, -2))
        scores[..., np.arange(end) > position[:, None]] = -np.inf  # no token sees a later one
        out = rounding(softmax(scores)) @ values  # (n_head_kv, group, n_tokens, head_dim)
        return layer.attn_output(self._input(il, "o", out.transpose(2, 0, 1, 3).reshape(n_tokens, -1)))

    def _query(self, il: int, q: np.ndarray, position: np.ndarray) -> np.ndarray:
        """What is multiplied by the keys, of (n_tokens, n_head, head_dim) at these positions."""
        return rope(q, self._angles(self._rope_frequency, position))

    _key = _query

    def _angles(self, frequency: np.ndarray, position: np.ndarray) -> np.ndarray:
        return (position[:, None] * frequency).astype(self.dtype)

    def _scores(self, products: np.ndarray) -> np.ndarray:
        return products / self.dtype.type(np.sqrt(self.head_dim))

    def _feed_forward(self, il: int, h: np.ndarray) -> np.ndarray:
        layer = self.layers[il]
        x = self._input(il, "up", rms_norm(h, layer.ffn_norm, self.eps))
        return layer.ffn_down(self._input(il, "down", silu(layer.ffn_gate(x)) * layer.ffn_up(x)))

    def evaluate(self, tokens: Sequence[int], may_skip: bool | Sequence[bool] = False) -> tuple[np.ndarray, Trace]:
        """Feeds consecutive tokens; each decides for itself, or follows one that tripped in layer `follows`. Returns
        logits (n_tokens, n_vocab) and the trace."""
        if self.n_past + len(tokens) > self._keys.shape[2]:
            raise ValueError(f"{self.n_past} + {len(tokens)} tokens exceed the cache of {self._keys.shape[2]}")
        may_skip = np.broadcast_to(np.asarray(may_skip, dtype=bool), (len(tokens),))
        trace = Trace.empty(len(tokens), self.n_layer)
        follows = self.follows is not None
        if follows:
            trace.trip_layer[may_skip] = self.follows
        state = self._embeddings(tokens)
        for il, layer in enumerate(self.layers):
            if il in self.left_out:
                self._leave_out(il, len(tokens))
                trace.skipped[:, il] = True
                continue
            h = state + self._attention(il, rms_norm(state, layer.attn_norm, self.eps))
            state = feed_forward_or_skip(
                il, h, lambda rows, il=il: self._feed_forward(il, rows), self.settings, may_skip, trace, follows
            )
        self.n_past += len(tokens)
        return self._logits(rms_norm(state, self.output_norm, self.eps)), trace

    def _leave_out(self, il: int, n_tokens: int) -> None:
        """Of `left_out` layers there are no keys and values: whoever attends to them gets NaN."""
        self._keys[il, :, self.n_past : self.n_past + n_tokens] = np.nan
        self._values[il, :, self.n_past : self.n_past + n_tokens] = np.nan

    def _embeddings(self, tokens: Sequence[int]) -> np.ndarray:
        return self.token_embd[np.asarray(tokens)]

    def _logits(self, x: np.ndarray) -> np.ndarray:
        return self.output(x)

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        """Prompt tokens always run the full model. Returns the logits after the last one, (n_vocab,)."""
        logits, _ = self.evaluate(tokens)
        return logits[-1]

    def decode(self, token: int, may_skip: bool = False) -> tuple[np.ndarray, Trace]:
        """Feeds one token. Returns its logits (n_vocab,) and a trace of one row."""
        logits, trace = self.evaluate([token], may_skip)
        return logits[0], trace

    def generate_greedy(
        self,
        prompt: Sequence[int],
        n: int,
        *,
        sim_threshold: float | Sequence[float],
        cold_s: int,
        cold_e: int,
        max_skip: int,
        warm_up_index: int,
        layers: Sequence[int] = (),
        check_stride: int = 1,
        check_interval: int = 1,
    ) -> Generation:
        """Starts over with `prompt` and generates n tokens; token i, when fed back, may skip iff i >= warm_up_index."""
        self.settings = SkipSettings(sim_threshold, cold_s, cold_e, max_skip, layers, check_stride, check_interval)
        self.reset()
        logits, traces = [self.prefill(prompt)], [Trace.empty(0, self.n_layer)]
        tokens = [int(logits[-1].argmax())]
        for i in range(n - 1):
            decides = i <= warm_up_index or (i - warm_up_index) % check_interval == 0
            self.follows = None if decides else int(traces[-1].trip_layer[0])
            row, trace = self.decode(tokens[i], may_skip=i >= warm_up_index)
            logits.append(row)
            traces.append(trace)
            tokens.append(int(row.argmax()))
        return Generation(tokens, np.stack(logits), Trace.joined(traces))
