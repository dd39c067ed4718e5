"""What all families share: Llama's shape and names, from which each class says how it differs.

A class reads and checks config.json when it is made; `plan` lists the tensors, `add_metadata` writes the
hyperparameters. What llama.cpp computes otherwise than config.json asks for is refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from typing import ClassVar

import gguf
import numpy as np

from ..plan import Planned, interleaved_halves, planned
from ..rope import Rope, read_rope
from ..settings import Json, first_of, number, require, whole

log = logging.getLogger("ffnskip_cpp.convert")

# What transformers calls the functions that llama.cpp computes for gelu: the tanh approximation, for all of them.
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")

MAX_LAYERS = 512  # of llama.cpp
MAX_WIDTH = 2**18  # of a layer: more than any model has, and little enough to lay out its rows in memory

# What names begin with where it is not what the family's own models are saved with: models without their head
# (LlamaModel and the like), and the text models of those that see or hear.
OTHER_PREFIXES = ("", "model.", "transformer.", "language_model.", "model.language_model.", "language_model.model.")


class Family:
    """A decoder with sequential attention and FFN, RMSNorm before each, rotary positions, a gated FFN with SiLU.

    Args:
        config: The content of config.json.
    Raises:
        ValueError: A setting is missing, has the wrong type, or has no counterpart in llama.cpp.
    """

    arch: ClassVar[str]  # general.architecture

    # config.json
    defaults: ClassVar[Json] = {}  # settings that its files leave out
    hidden_size_keys: ClassVar[tuple[str, ...]] = ("hidden_size",)
    head_count_keys: ClassVar[tuple[str, ...]] = ("num_attention_heads",)
    layer_count_keys: ClassVar[tuple[str, ...]] = ("num_hidden_layers",)
    context_keys: ClassVar[tuple[str, ...]] = ("max_position_embeddings",)
    norm_eps_keys: ClassVar[tuple[str, ...]] = ("rms_norm_eps",)
    activation_keys: ClassVar[tuple[str, ...]] = ("hidden_act",)
    activations: ClassVar[tuple[str, ...]] = ("silu",)
    rope_kinds: ClassVar[tuple[str, ...]] = ("default", "linear", "yarn")
    rotated_share: ClassVar[float | None] = None  # of each head, where config.json is silent; None: always whole heads
    head_dim_is_free: ClassVar[bool] = True  # False: heads must make up hidden_size
    uses_window: ClassVar[bool] = False  # config.json means its sliding_window; llama.cpp attends to everything

    # tensors
    ties_by_default: ClassVar[bool] = False
    needs_output: ClassVar[bool] = False  # llama.cpp wants output.weight even where it equals the embedding
    layer_norm: ClassVar[bool] = False  # LayerNorm instead of RMSNorm
    norm_bias: ClassVar[bool] = False
    norm_shift: ClassVar[float] = 0.0  # what transformers adds to a norm's weight
    pairs_neighbours: ClassVar[bool] = False  # llama.cpp rotates neighbours, transformers halves: reorder q and k
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)  # of all names but the output's, in each usual spelling
    names: ClassVar[dict[str, str]] = {
        "token_embd": "embed_tokens",
        "output_norm": "norm",
        "layer": "layers",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    output_name: ClassVar[str] = "lm_head"  # whose weight is the output matrix

    def __init__(self, config: Json) -> None:
        self.config = config = {**self.defaults, **{key: value for key, value in config.items() if value is not None}}
        self.refuse_unsupported()
        self.n_embd = whole(config, *self.hidden_size_keys, most=MAX_WIDTH)
        self.n_head = whole(config, *self.head_count_keys, most=MAX_WIDTH)
        self.n_head_kv = self.read_head_count_kv()
        self.head_dim = self.read_head_dim()
        self.n_vocab = whole(config, "vocab_size")
        self.n_ctx = whole(config, *self.context_keys)
        self.n_ff = self.read_ffn_length()
        self.n_layer = whole(config, *self.layer_count_keys, most=MAX_LAYERS)
        self.eps = number(config, *self.norm_eps_keys, default=1e-6)
        self.n_expert = 0
        self.prefix = self.prefixes[0]
        self.tied = bool(config.get("tie_word_embeddings", self.ties_by_default))
        self.rope: Rope | None = self.read_rope()

    # --- config.json

    def refuse_unsupported(self) -> None:
        config = self.config
        if config.get("quantization_config"):
            method = config["quantization_config"].get("quant_method", "unknown")
            raise ValueError(f"config.json: weights are already quantised ({method}); convert the original ones")
        key, activation = first_of(config, self.activation_keys)
        if activation is not None and activation not in self.activations:
            raise ValueError(
                f"config.json: {key} {activation!r}; llama.cpp's {self.arch} computes {self.activations[0]!r}"
            )
        window = config.get("sliding_window")
        if window and config.get("use_sliding_window", self.uses_window) and window < whole(config, *self.context_keys):
            log.warning(
                "sliding_window %s: llama.cpp attends to the whole context; equal up to %s tokens", window, window
            )

    def read_head_count_kv(self) -> int:
        return self.checked_head_count_kv(whole(self.config, "num_key_value_heads", default=self.n_head))

    def checked_head_count_kv(self, count: int) -> int:
        if self.n_head % count:
            raise ValueError(
                f"config.json: {self.n_head} attention heads are not a multiple of {count} key-value heads"
            )
        return count

    def read_head_dim(self) -> int:
        even_share = self.n_embd // self.n_head if self.n_embd % self.n_head == 0 else None
        head_dim = whole(self.config, "head_dim", default=even_share, most=MAX_WIDTH // self.n_head)
        if head_dim % 2:
            raise ValueError(f"config.json: head_dim {head_dim} is odd; rotary embeddings need an even one")
        if not self.head_dim_is_free and head_dim * self.n_head != self.n_embd:
            raise ValueError(
                f"config.json: head_dim {head_dim} x {self.n_head} heads must be hidden_size {self.n_embd} "
                f"for llama.cpp's {self.arch}"
            )
        return head_dim

    def read_ffn_length(self) -> int:
        return whole(self.config, "intermediate_size")

    def read_rope(self) -> Rope | None:
        return self.rope_of(self.config)

    def rope_of(self, config: Json) -> Rope:
        return read_rope(config, self.arch, self.rope_kinds, self.head_dim, self.n_ctx, self.rotated_share)

    def require(self, key: str, expected: object, why: str) -> None:
        require(self.config, key, expected, f"{why} in llama.cpp's {self.arch}")

    # --- metadata

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        writer.add_block_count(self.n_layer)
        writer.add_context_length(self.n_ctx)
        writer.add_embedding_length(self.n_embd)
        writer.add_feed_forward_length(self.n_ff)
        writer.add_head_count(self.n_head)
        writer.add_head_count_kv(self.n_head_kv)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        if self.layer_norm:
            writer.add_layer_norm_eps(self.eps)
        else:
            writer.add_layer_norm_rms_eps(self.eps)
        writer.add_vocab_size(self.n_vocab)
        if self.rope is not None:
            self.rope.add_metadata(writer)

    def computed_tensors(self) -> dict[str, np.ndarray]:
        """Tensors of the GGUF that are no tensors of the checkpoint."""
        return {} if self.rope is None else self.rope.tensors()

    # --- tensors

    def plan(self, available: Container[str] = ()) -> list[Planned]:
        """All tensors of the model, in file order. `available`: the checkpoint's names, where spellings differ."""
        self.locate(available)
        plan = [*self.embeddings(), *self.norm("output_norm", self.source("output_norm"))]
        plan += self.output()
        for il in range(self.n_layer):
            plan += self.layer(f"blk.{il}.", f"{self.source('layer')}.{il}.")
        return plan

    def locate(self, available: Container[str]) -> None:
        """Find out which of several spellings the checkpoint uses; the first where none fits."""
        for prefix in (*self.prefixes, *OTHER_PREFIXES):
            if f"{prefix}{self.names['output_norm']}.weight" in available:
                self.prefix = prefix
                return

    def source(self, name: str) -> str:
        return self.prefix + self.names[name]

    def passed_over(self, name: str) -> bool:
        """Whether a tensor of the checkpoint that is not in the plan may be left out."""
        if name == f"{self.output_source()}.weight":
            return self.tied
        return name.endswith("rotary_emb.inv_freq")  # old checkpoints store what follows from config.json

    def embeddings(self) -> list[Planned]:
        return [planned("token_embd.weight", f"{self.source('token_embd')}.weight", (self.n_vocab, self.n_embd))]

    def output(self) -> list[Planned]:
        if self.tied and not self.needs_output:
            return []
        source = self.source("token_embd") if self.tied else self.output_source()
        return [planned("output.weight", f"{source}.weight", (self.n_vocab, self.n_embd))]

    def output_source(self) -> str:
        """Beside the model, within the whole that its text model is part of."""
        return f"language_model.{self.output_name}" if self.prefix == "language_model.model." else self.output_name

    def layer(self, to: str, of: str) -> list[Planned]:
        return [*self.norms(to, of), *self.attention(to, of), *self.ffn(to, of)]

    def norms(self, to: str, of: str) -> list[Planned]:
        return [entry for name in ("attn_norm", "ffn_norm") for entry in self.norm(to + name, of + self.names[name])]

    def attention(self, to: str, of: str) -> list[Planned]:
        n_q, n_kv, of = self.n_head * self.head_dim, self.n_head_kv * self.head_dim, f"{of}self_attn."
        q_order, k_order, bias = self.rotated(self.n_head), self.rotated(self.n_head_kv), self.qkv_bias
        return [
            *self.linear(to + "attn_q", of + "q_proj", n_q, self.n_embd, q_order, bias),
            *self.linear(to + "attn_k", of + "k_proj", n_kv, self.n_embd, k_order, bias),
            *self.linear(to + "attn_v", of + "v_proj", n_kv, self.n_embd, bias=bias),
            *self.linear(to + "attn_output", of + "o_proj", self.n_embd, n_q, bias=self.output_bias),
        ]

    def ffn(self, to: str, of: str) -> list[Planned]:
        return [
            *self.linear(to + "ffn_gate", of + "mlp.gate_proj", self.n_ff, self.n_embd, bias=self.ffn_bias),
            *self.linear(to + "ffn_up", of + "mlp.up_proj", self.n_ff, self.n_embd, bias=self.ffn_bias),
            *self.linear(to + "ffn_down", of + "mlp.down_proj", self.n_embd, self.n_ff, bias=self.ffn_bias),
        ]

    @property
    def qkv_bias(self) -> bool:
        return False

    @property
    def output_bias(self) -> bool:
        return False

    @property
    def ffn_bias(self) -> bool:
        return False

    def rotated(self, n_head: int) -> np.ndarray | None:
        """The order of rows of a projection to `n_head` heads that are rotated."""
        return interleaved_halves(n_head, self.head_dim) if self.pairs_neighbours else None

    def norm(self, to: str, of: str, n: int | None = None) -> list[Planned]:
        shape = (self.n_embd if n is None else n,)
        weight = planned(f"{to}.weight", f"{of}.weight", shape, shift=self.norm_shift)
        return [weight, planned(f"{to}.bias", f"{of}.bias", shape)] if self.norm_bias else [weight]

    @staticmethod
    def linear(
        to: str,
        of: str,
        n_out: int,
        n_in: int,
        order: np.ndarray | None = None,
        bias: bool = False,
        *,
        transposed: bool = False,
    ) -> list[Planned]:
        """A matrix (n_out, n_in) and perhaps its bias, both with rows in `order`."""
        stored = (n_in, n_out) if transposed else (n_out, n_in)
        weight = planned(f"{to}.weight", f"{of}.weight", (n_out, n_in), stored, order, transposed=transposed)
        return [weight, planned(f"{to}.bias", f"{of}.bias", (n_out,), order=order)] if bias else [weight]


class GPTFamily(Family):
    """GPT-2 and its kin: LayerNorm with a bias, GELU, and heads that make up the width."""

    activations = GELU
    head_dim_is_free = False
    layer_norm = True
    norm_bias = True
