"""Tiny random GGUF models for tests: one writer per way in which llama.cpp adds the FFN to the residual.

    from support.tiny_models import write_llama
    path = write_llama(tmp_path / "dense.gguf", n_layer=16, seed=0)
    same_but_no_ffn = write_llama(tmp_path / "zero.gguf", n_layer=16, seed=0, zero_ffn_layers=(3, 4))

Every tensor is drawn from (seed, tensor name) alone, so two files that differ in one option agree in every tensor
the option does not touch. All writers take the options of `TinyModel` as keywords and return the path.

| writer             | architecture | how the FFN joins the residual h                                  |
| ------------------ | ------------ | ----------------------------------------------------------------- |
| write_llama        | llama        | ADD(f, h)                                                         |
| write_moe          | qwen3moe     | ADD(experts, h)                                                   |
| write_exp_probs    | dots1        | ADD(experts + shared expert, h), router bias `exp_probs_b`, first layer dense |
| write_phi3         | phi3         | ADD(h, f): in place over h                                        |
| write_falcon       | falcon       | parallel: ADD(ADD(f, attention), layer input)                     |
| write_gptneox      | gptneox      | parallel: ADD(ADD(f, layer input), attention); or sequential      |
| write_post_norm    | gemma2       | ADD(norm(f), h)                                                   |
| write_biased       | starcoder2   | ADD(f, h), FFN with biases and without a gate                     |
| write_bert         | nomic-bert   | encoder: norm(f + h), nothing may be skipped                      |
| write_mamba        | mamba        | recurrent: no FFN at all                                          |

GGUF lists dimensions fastest first; shapes here are NumPy's, so a weight that maps n_in to n_out is (n_out, n_in).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Union

import gguf
import numpy as np

F32 = gguf.GGMLQuantizationType.F32
F16 = gguf.GGMLQuantizationType.F16
Q8_0 = gguf.GGMLQuantizationType.Q8_0

PathLike = Union[str, "os.PathLike[str]"]

BOS = 257
EOS = 258
N_VOCAB = 259  # 256 bytes, the merge "th", BOS, EOS

EMBEDDING_RMS = 1.0
ATTENTION_RMS = 0.35  # what one attention block adds to the residual, roughly
LOGIT_RMS = 3.0

# The FFN's up projection shares one direction among all its rows. How strongly a token lies along that direction
# scales its whole FFN output, so that similarity differs from token to token and not only from layer to layer.
SHARED_DIRECTION = 1.5
UNGATED_SHARED_DIRECTION = 0.5  # without a gate it would also open or shut all hidden units together

# rms of an FFN's hidden activations, for inputs of rms 1: silu(gate) * up, and gelu(up).
GATED_RMS = 0.6 * float(np.sqrt(1 + SHARED_DIRECTION**2))
UNGATED_RMS = 0.65 * float(np.sqrt(1 + UNGATED_SHARED_DIRECTION**2))


# --- text ------------------------------------------------------------------------------------------------------------


def byte_alphabet() -> list[str]:
    """The printable character that byte-level BPE (GPT-2) writes for each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable}
    names.update({byte: chr(256 + i) for i, byte in enumerate(hidden)})
    return [names[byte] for byte in range(256)]


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Token b is byte b: any UTF-8 text tokenises, a multi-byte character takes several tokens."""
    tokens = [*byte_alphabet(), "th", "<s>", "</s>"]
    types = [gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 2
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["t h"])  # llama.cpp refuses a BPE vocabulary without any
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(False)


# --- the shared base -------------------------------------------------------------------------------------------------


def default_ffn_scale(n_layer: int) -> list[float]:
    """Size of FFN(h) relative to h, per layer: similarity is low at both ends and peaks in the middle, as in Figure 2
    of the paper, so that a threshold near 0.9 trips in different layers for different tokens."""
    depth = np.linspace(0.0, 1.0, n_layer)
    similarity = 0.78 + 0.17 * np.sin(np.pi * depth)
    return [float(size) for size in np.sqrt(1.0 / similarity**2 - 1.0)]


class TinyModel:
    """A GGUF file being written: metadata and the tensors that architectures have in common.

    Args:
        n_layer, n_embd, n_ff, n_head, n_head_kv, n_ctx: The model's shape.
        seed: Fixes every tensor.
        zero_ffn_layers: Layers whose FFN adds exactly zero.
        ffn_scale: Size of FFN(h) relative to h, for all layers or one per layer; similarity is near
            1 / sqrt(1 + ffn_scale**2) on average. None: `default_ffn_scale`.
        qtype: Type of the weight matrices; vectors and MoE routers stay F32.
        embedding_rms: Size of the embeddings. The larger, the less each block changes the residual.
    """

    def __init__(
        self,
        path: PathLike,
        arch: str,
        *,
        n_layer: int,
        n_embd: int = 64,
        n_ff: int = 128,
        n_head: int = 4,
        n_head_kv: int = 2,
        n_ctx: int = 1024,
        seed: int = 0,
        zero_ffn_layers: Iterable[int] = (),
        ffn_scale: float | Sequence[float] | None = None,
        qtype: gguf.GGMLQuantizationType = F32,
        embedding_rms: float = EMBEDDING_RMS,
    ) -> None:
        self.path = Path(path)
        self.n_layer, self.n_embd, self.n_ff = n_layer, n_embd, n_ff
        self.n_head, self.n_head_kv, self.n_ctx = n_head, n_head_kv, n_ctx
        self.head_dim = n_embd // n_head
        self.seed = seed
        self.qtype = qtype
        self.embedding_rms = embedding_rms
        self.zero_ffn_layers = frozenset(zero_ffn_layers)
        if not self.zero_ffn_layers <= set(range(n_layer)):
            raise ValueError(f"zero_ffn_layers {sorted(self.zero_ffn_layers)} must lie in [0, {n_layer})")
        self.ffn_rms = self._ffn_rms(default_ffn_scale(n_layer) if ffn_scale is None else ffn_scale)
        self.writer = gguf.GGUFWriter(str(self.path), arch)
        self._add_metadata()

    def _ffn_rms(self, ffn_scale: float | Sequence[float]) -> list[float]:
        """Size that the FFN of each layer must have, given how the residual grows on the way there."""
        relative = np.broadcast_to(np.asarray(ffn_scale, dtype=float), (self.n_layer,))
        sizes, power = [], EMBEDDING_RMS**2
        for scale in relative:
            power += ATTENTION_RMS**2
            sizes.append(float(scale * np.sqrt(power)))
            power += sizes[-1] ** 2
        return sizes

    def _add_metadata(self) -> None:
        writer = self.writer
        writer.add_name("tiny")  # not the architecture: llama.cpp gives the tokens of a model named "phi3" a meaning
        writer.add_context_length(self.n_ctx)
        writer.add_embedding_length(self.n_embd)
        writer.add_block_count(self.n_layer)
        writer.add_feed_forward_length(self.n_ff)
        writer.add_head_count(self.n_head)
        writer.add_head_count_kv(self.n_head_kv)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_layer_norm_eps(1e-5)
        _add_tokenizer(writer)

    def random(self, name: str, shape: Sequence[int], rms: float) -> np.ndarray:
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        return (rng.standard_normal(shape) * rms).astype(np.float32)

    def add(self, name: str, data: np.ndarray, *, keep_f32: bool = False) -> None:
        """Vectors stay F32, as in files that llama.cpp itself writes."""
        if keep_f32 or data.ndim == 1 or self.qtype == F32:
            self.writer.add_tensor(name, data.astype(np.float32))
        else:
            self.writer.add_tensor(name, gguf.quants.quantize(data, self.qtype), raw_dtype=self.qtype)

    def matrix(self, name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        """Maps inputs of rms 1 to outputs of rms `gain`."""
        self.add(f"{name}.weight", self.random(f"{name}.weight", (n_out, n_in), gain / np.sqrt(n_in)))

    def bias(self, name: str, n: int, *, rms: float = 0.1, mean: float = 0.0) -> None:
        self.add(f"{name}.bias", mean + self.random(f"{name}.bias", (n,), rms))

    def norm(self, name: str, n: int | None = None, *, bias: bool = False, gain: float = 1.0) -> None:
        weight = f"{name}.weight"
        n = self.n_embd if n is None else n
        self.add(weight, gain * (1.0 + self.random(weight, (n,), 0.1)))
        if bias:
            self.bias(name, n)

    def embeddings(self, *, tied: bool = False, norm_bias: bool = False, rms: float | None = None) -> None:
        rms = rms or self.embedding_rms
        self.add("token_embd.weight", self.random("token_embd.weight", (N_VOCAB, self.n_embd), rms))
        self.norm("output_norm", bias=norm_bias)
        if not tied:
            self.matrix("output", N_VOCAB, self.n_embd, LOGIT_RMS)

    def attention(self, il: int, *, fused: bool = False, bias: bool = False, head_norm: bool = False) -> None:
        """Projections of layer `il`. `fused`: one matrix for q, k and v; `head_norm`: q and k have their own norms."""
        n_embd, n_kv = self.n_embd, self.head_dim * self.n_head_kv
        # A gain above 1 on q makes attention pick out tokens instead of averaging all of them.
        separate = {"attn_q": (n_embd, 1.7), "attn_k": (n_kv, 1.0), "attn_v": (n_kv, 1.0)}
        parts = {"attn_qkv": (n_embd + 2 * n_kv, 1.3)} if fused else separate
        for part, (n_out, gain) in {**parts, "attn_output": (n_embd, 2 * ATTENTION_RMS)}.items():
            self.matrix(f"blk.{il}.{part}", n_out, n_embd, gain)
            if bias:
                self.bias(f"blk.{il}.{part}", n_out)
        if head_norm:
            self.norm(f"blk.{il}.attn_q_norm", self.head_dim, gain=1.7)
            self.norm(f"blk.{il}.attn_k_norm", self.head_dim)

    def projection_in(self, name: str, shape: Sequence[int], shared: float = 0.0) -> np.ndarray:
        """A gate or up projection, (..., n_out, n_embd), whose rows share a direction of size `shared`."""
        *lead, _, n_embd = shape
        data = self.random(name, shape, 1.0) + shared * self.random(f"{name}/shared", (*lead, 1, n_embd), 1.0)
        return (data / np.sqrt(n_embd)).astype(np.float32)

    def gate_and_up(self, il: int, suffix: str, shape: Sequence[int]) -> None:
        gate, up = f"blk.{il}.ffn_gate{suffix}.weight", f"blk.{il}.ffn_up{suffix}.weight"
        self.add(gate, self.projection_in(gate, shape))
        self.add(up, self.projection_in(up, shape, SHARED_DIRECTION))

    def ffn_down(self, il: int, suffix: str, lead: Sequence[int], n_in: int, hidden_rms: float) -> None:
        """Down projection (*lead, n_embd, n_in) from hidden activations of `hidden_rms` to the layer's FFN size."""
        name = f"blk.{il}.ffn_down{suffix}.weight"
        rms = self.ffn_rms[il] / (hidden_rms * np.sqrt(n_in))
        self.add(name, self.zeroed(il, self.random(name, (*lead, self.n_embd, n_in), rms)))

    def zeroed(self, il: int, data: np.ndarray) -> np.ndarray:
        return np.zeros_like(data) if il in self.zero_ffn_layers else data

    def gated_ffn(self, il: int, *, suffix: str = "", n_ff: int | None = None, share: float = 1.0) -> None:
        """`share`: size of what this one adds, relative to the layer's FFN size."""
        n_ff = self.n_ff if n_ff is None else n_ff
        self.gate_and_up(il, suffix, (n_ff, self.n_embd))
        self.ffn_down(il, suffix, (), n_ff, GATED_RMS / share)

    def ungated_ffn(self, il: int, *, bias: bool) -> None:
        up = f"blk.{il}.ffn_up.weight"
        self.add(up, self.projection_in(up, (self.n_ff, self.n_embd), UNGATED_SHARED_DIRECTION))
        self.ffn_down(il, "", (), self.n_ff, UNGATED_RMS)
        if bias:
            self.bias(f"blk.{il}.ffn_up", self.n_ff)
            # ffn_down.bias would survive a zero ffn_down.weight.
            name = f"blk.{il}.ffn_down.bias"
            self.add(name, self.zeroed(il, self.random(name, (self.n_embd,), 0.1)))

    def experts(self, il: int, *, n_expert: int, n_expert_used: int, share: float = 1.0) -> None:
        n_ff = self.n_ff // n_expert_used
        router = f"blk.{il}.ffn_gate_inp.weight"
        self.add(router, self.projection_in(router, (n_expert, self.n_embd)), keep_f32=True)
        self.gate_and_up(il, "_exps", (n_expert, n_ff, self.n_embd))
        # The weighted mean of independent outputs is smaller than one of them by the root of their number.
        self.ffn_down(il, "_exps", (n_expert,), n_ff, GATED_RMS / np.sqrt(n_expert_used) / share)

    def save(self) -> Path:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


# --- models with FFN blocks to skip ----------------------------------------------------------------------------------


def write_llama(path: PathLike, *, n_layer: int = 16, tied: bool = False, **options) -> Path:
    """RMSNorm, grouped-query attention, SwiGLU: the paper's architecture. `tied`: no separate output matrix."""
    model = TinyModel(path, "llama", n_layer=n_layer, **options)
    model.writer.add_rope_dimension_count(model.head_dim)
    model.embeddings(tied=tied)
    for il in range(n_layer):
        model.norm(f"blk.{il}.attn_norm")
        model.attention(il)
        model.norm(f"blk.{il}.ffn_norm")
        model.gated_ffn(il)
    return model.save()


def write_moe(path: PathLike, *, n_layer: int = 8, n_expert: int = 4, n_expert_used: int = 2, **options) -> Path:
    """qwen3moe: every FFN is a mixture of experts."""
    model = TinyModel(path, "qwen3moe", n_layer=n_layer, **options)
    model.writer.add_expert_count(n_expert)
    model.writer.add_expert_used_count(n_expert_used)
    model.writer.add_expert_feed_forward_length(model.n_ff // n_expert_used)
    model.embeddings()
    for il in range(n_layer):
        model.norm(f"blk.{il}.attn_norm")
        model.attention(il, head_norm=True)
        model.norm(f"blk.{il}.ffn_norm")
        model.experts(il, n_expert=n_expert, n_expert_used=n_expert_used)
    return model.save()


def write_exp_probs(path: PathLike, *, n_layer: int = 8, n_expert: int = 4, n_expert_used: int = 2, **options) -> Path:
    """dots1: layer 0 is dense; the others add a bias named `exp_probs_b` to the router and have a shared expert."""
    options.setdefault("n_head_kv", options.get("n_head", 4))  # the architecture has no grouped-query attention
    model = TinyModel(path, "dots1", n_layer=n_layer, **options)
    writer = model.writer
    writer.add_leading_dense_block_count(1)
    writer.add_expert_count(n_expert)
    writer.add_expert_used_count(n_expert_used)
    writer.add_expert_shared_count(1)
    writer.add_expert_feed_forward_length(model.n_ff // n_expert_used)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(True)
    model.embeddings()
    for il in range(n_layer):
        model.norm(f"blk.{il}.attn_norm")
        model.attention(il, head_norm=True)
        model.norm(f"blk.{il}.ffn_norm")
        if il == 0:
            model.gated_ffn(il)
            continue
        half = np.sqrt(0.5)  # experts and shared expert are independent: their powers add
        # Larger than the differences of the probabilities: which experts run then hangs on the bias, not on rounding.
        model.bias(f"blk.{il}.exp_probs_b", n_expert, rms=0.5)
        model.experts(il, n_expert=n_expert, n_expert_used=n_expert_used, share=half)
        model.gated_ffn(il, suffix="_shexp", n_ff=model.n_ff // n_expert_used, share=half)
    return model.save()


def write_phi3(path: PathLike, *, n_layer: int = 8, **options) -> Path:
    """phi3: q, k, v in one matrix, gate and up in one matrix, ADD(residual, f)."""
    model = TinyModel(path, "phi3", n_layer=n_layer, **options)
    model.writer.add_rope_dimension_count(model.head_dim)
    model.embeddings()
    for il in range(n_layer):
        model.norm(f"blk.{il}.attn_norm")
        model.attention(il, fused=True)
        model.norm(f"blk.{il}.ffn_norm")
        up, half = f"blk.{il}.ffn_up.weight", (model.n_ff, model.n_embd)
        gate_rows = model.projection_in(f"{up}/gate", half)
        model.add(up, np.concatenate([gate_rows, model.projection_in(up, half, SHARED_DIRECTION)]))
        model.ffn_down(il, "", (), model.n_ff, GATED_RMS)
    return model.save()


def write_falcon(path: PathLike, *, n_layer: int = 8, **options) -> Path:
    """falcon (7B shape): attention and FFN read the same norm; one key/value head."""
    options.setdefault("n_head_kv", 1)
    model = TinyModel(path, "falcon", n_layer=n_layer, **options)
    model.embeddings(norm_bias=True)
    for il in range(n_layer):
        model.norm(f"blk.{il}.attn_norm", bias=True)
        model.attention(il, fused=True)
        model.ungated_ffn(il, bias=False)
    return model.save()


def write_gptneox(path: PathLike, *, n_layer: int = 8, parallel: bool = True, **options) -> Path:
    """gptneox with biases everywhere; `parallel` is the architecture's own switch (use_parallel_residual)."""
    options.setdefault("n_head_kv", options.get("n_head", 4))
    model = TinyModel(path, "gptneox", n_layer=n_layer, **options)
    model.writer.add_parallel_residual(parallel)
    model.writer.add_rope_dimension_count(model.head_dim)
    model.embeddings(norm_bias=True)
    for il in range(n_layer):
        model.norm(f"blk.{il}.attn_norm", bias=True)
        model.attention(il, fused=True, bias=True)
        model.norm(f"blk.{il}.ffn_norm", bias=True)
        model.ungated_ffn(il, bias=True)
    return model.save()


def write_post_norm(path: PathLike, *, n_layer: int = 8, sliding_window: int = 256, **options) -> Path:
    """gemma2: norms before and after each block; every other layer attends to `sliding_window` tokens only."""
    model = TinyModel(path, "gemma2", n_layer=n_layer, **options)
    model.writer.add_key_length(model.head_dim)
    model.writer.add_value_length(model.head_dim)
    model.writer.add_sliding_window(sliding_window)
    model.writer.add_attn_logit_softcapping(50.0)
    model.writer.add_final_logit_softcapping(30.0)
    # llama.cpp multiplies embeddings by sqrt(n_embd) and always ties the output to them.
    model.embeddings(tied=True, rms=model.embedding_rms / np.sqrt(model.n_embd))
    for il in range(n_layer):
        model.norm(f"blk.{il}.attn_norm")
        model.attention(il)
        model.norm(f"blk.{il}.post_attention_norm", gain=ATTENTION_RMS)
        model.norm(f"blk.{il}.ffn_norm")
        model.gated_ffn(il)
        name = f"blk.{il}.post_ffw_norm.weight"
        model.add(name, model.zeroed(il, model.ffn_rms[il] * (1.0 + model.random(name, (model.n_embd,), 0.5))))
    return model.save()


def write_biased(path: PathLike, *, n_layer: int = 8, **options) -> Path:
    """starcoder2: LayerNorm and a bias on every projection, FFN without a gate."""
    model = TinyModel(path, "starcoder2", n_layer=n_layer, **options)
    model.writer.add_rope_dimension_count(model.head_dim)
    model.embeddings(norm_bias=True)
    for il in range(n_layer):
        model.norm(f"blk.{il}.attn_norm", bias=True)
        model.attention(il, bias=True)
        model.norm(f"blk.{il}.ffn_norm", bias=True)
        model.ungated_ffn(il, bias=True)
    return model.save()


# --- models with nothing to skip -------------------------------------------------------------------------------------


def write_bert(path: PathLike, *, n_layer: int = 4, **options) -> Path:
    """nomic-bert, an embedding model: no cache, no causal mask, a norm after each residual add."""
    options.setdefault("n_head_kv", options.get("n_head", 4))
    model = TinyModel(path, "nomic-bert", n_layer=n_layer, **options)
    model.writer.add_causal_attention(False)
    model.writer.add_pooling_type(gguf.PoolingType.MEAN)
    model.writer.add_token_type_count(1)
    for name, rows in (("token_embd", N_VOCAB), ("token_types", 1)):
        model.add(f"{name}.weight", model.random(f"{name}.weight", (rows, model.n_embd), EMBEDDING_RMS))
    model.norm("token_embd_norm", bias=True)
    for il in range(n_layer):
        model.attention(il, fused=True)
        model.norm(f"blk.{il}.attn_output_norm", bias=True)
        model.gated_ffn(il)
        model.norm(f"blk.{il}.layer_output_norm", bias=True)
    return model.save()


def write_mamba(path: PathLike, *, n_layer: int = 4, **options) -> Path:
    """mamba: state space layers only, no attention and no FFN."""
    model = TinyModel(path, "mamba", n_layer=n_layer, **{"n_ff": 0, "n_head": 1, "n_head_kv": 0, **options})
    d_conv, d_inner, d_state, dt_rank = 4, 2 * model.n_embd, 16, 4
    model.writer.add_ssm_conv_kernel(d_conv)
    model.writer.add_ssm_inner_size(d_inner)
    model.writer.add_ssm_state_size(d_state)
    model.writer.add_ssm_time_step_rank(dt_rank)
    model.embeddings()
    for il in range(n_layer):
        layer = f"blk.{il}"
        model.norm(f"{layer}.attn_norm")
        model.matrix(f"{layer}.ssm_in", 2 * d_inner, model.n_embd)
        model.add(f"{layer}.ssm_conv1d.weight", model.random(f"{layer}.ssm_conv1d.weight", (d_inner, d_conv), 0.5),
                  keep_f32=True)  # fmt: skip
        model.bias(f"{layer}.ssm_conv1d", d_inner)
        model.matrix(f"{layer}.ssm_x", dt_rank + 2 * d_state, d_inner)
        dt = f"{layer}.ssm_dt"
        model.add(f"{dt}.weight", model.random(f"{dt}.weight", (d_inner, dt_rank), 0.1), keep_f32=True)
        model.bias(dt, d_inner, mean=-3.0)  # softplus(-3) = 0.05: the state remembers about 20 tokens
        decay = -np.tile(np.arange(1, d_state + 1, dtype=np.float32), (d_inner, 1))
        model.add(f"{layer}.ssm_a", decay, keep_f32=True)
        model.add(f"{layer}.ssm_d", np.ones(d_inner, dtype=np.float32))
        model.matrix(f"{layer}.ssm_out", model.n_embd, d_inner)
    return model.save()


# --- adapters for the llama kind -------------------------------------------------------------------------------------


def write_lora(
    path: PathLike,
    *,
    n_layer: int = 16,
    n_embd: int = 64,
    n_ff: int = 128,
    rank: int = 4,
    scale: float = 0.3,
    seed: int = 0,
) -> Path:
    """A LoRA adapter on attn_q, attn_output, ffn_up and ffn_down of every layer; `scale` is its size beside W x."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))  # alpha = rank: B A is added as it is
    shapes = {"attn_q": (n_embd, n_embd), "attn_output": (n_embd, n_embd),
              "ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff)}  # fmt: skip
    rng = np.random.default_rng(seed)
    for il in range(n_layer):
        for name, (n_out, n_in) in shapes.items():
            down = rng.standard_normal((rank, n_in)) / np.sqrt(n_in)
            up = rng.standard_normal((n_out, rank)) * scale / np.sqrt(rank)
            writer.add_tensor(f"blk.{il}.{name}.weight.lora_a", down.astype(np.float32))
            writer.add_tensor(f"blk.{il}.{name}.weight.lora_b", up.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def control_vector(*, n_layer: int = 16, n_embd: int = 64, scale: float = 0.2, seed: int = 0) -> np.ndarray:
    """Data for llama_set_adapter_cvec: float32, (n_embd * (n_layer - 1),), directions of layers 1 and on."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(n_embd * (n_layer - 1)) * scale).astype(np.float32)


# Kind to writer; every kind here generates text and has an FFN to skip in every layer.
SKIPPABLE = {
    "llama": write_llama,
    "moe": write_moe,
    "exp_probs": write_exp_probs,
    "phi3": write_phi3,
    "falcon": write_falcon,
    "gptneox": write_gptneox,
    "post_norm": write_post_norm,
    "biased": write_biased,
}

# Of these, whose attention and FFN are added to the residual together.
PARALLEL = ["falcon", "gptneox"]

# Every kind of model the tests ask for by name.
WRITERS = {
    **SKIPPABLE,
    "gptneox_sequential": lambda path, **options: write_gptneox(path, parallel=False, **options),
    "llama_q8_0": lambda path, **options: write_llama(path, qtype=Q8_0, **options),
    "bert": write_bert,
    "mamba": write_mamba,
}
