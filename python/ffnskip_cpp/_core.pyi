"""The C++ core, which serves `Llama`. Raises the classes of `ffnskip_cpp.errors`."""

import enum
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from .skip_config import ResolvedConfig, SkipConfig

__version__: str

CHANNEL_TOKENS: int
"""Generated tokens of each text that run in full at least, and tell the thresholds of policy "channels"."""

class _Native(type):
    """Metaclass of the classes of a pybind11 module."""

def canonical(config: SkipConfig) -> SkipConfig:
    """With policies of older versions turned into those there are now. Raises TypeError, ValueError for a bad value."""

def add_rpc_servers(endpoints: Sequence[str]) -> None:
    """`devices.add_rpc_servers` of a list."""

class SkipStats(metaclass=_Native):
    """Counts over generated tokens since the last reset; a snapshot."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """TypeError: the core alone makes one."""

    @property
    def tokens(self) -> int:
        """Generated tokens fed back to the model, those of the warm-up included."""
    @property
    def ffn_total(self) -> int:
        """FFN blocks of those tokens."""
    @property
    def ffn_skipped(self) -> int: ...
    @property
    def skip_ratio(self) -> float:
        """ffn_skipped / ffn_total; 0 without tokens. Where channels or attention are left out, bytes_left_out /
        bytes_total."""
    @property
    def checks(self) -> int:
        """Similarities computed."""
    @property
    def tokens_never_tripped(self) -> int:
        """Policies that check: tokens that might have skipped and never reached the threshold (the paper's Table 6)."""
    @property
    def ffn_bytes_not_read(self) -> int:
        """Bytes of weights of skipped blocks that no other row of the batch needed."""
    @property
    def skipped_per_layer(self) -> npt.NDArray[np.uint64]:
        """uint64 [n_layer]: tokens that skipped the FFN block of the layer."""
    @property
    def attention_total(self) -> int:
        """Attention blocks of those tokens."""
    @property
    def attention_skipped(self) -> int: ...
    @property
    def attention_bytes_not_read(self) -> int:
        """Bytes of weights of skipped attention blocks that no other row of the batch needed; without those of keys and
        values where these were written."""
    @property
    def attention_skipped_per_layer(self) -> npt.NDArray[np.uint64]:
        """uint64 [n_layer]: tokens that skipped the attention block of the layer."""
    @property
    def bytes_total(self) -> int:
        """Bytes of weights for those tokens: with policy "channels" of the products that may leave some out, where
        attention is left out those of all blocks. 0 else."""
    @property
    def bytes_left_out(self) -> int:
        """Of these, of channels and blocks left out."""
    @property
    def channels_total(self) -> npt.NDArray[np.uint64]:
        """uint64 [n_layer, 4]: channels of the inputs of Q, K and V, of attention's output matrix, of gate and up, and
        of down, over those tokens; 0 where none may be left out."""
    @property
    def channels_kept(self) -> npt.NDArray[np.uint64]:
        """Of these, not left out."""

def reach_edges() -> npt.NDArray[np.float32]:
    """[n_bins + 1]: where the bins of `Trace.reaches` begin, and the last one ends."""

class BlockWeight(metaclass=_Native):
    """A weight of a block."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """TypeError: the core alone makes one."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str:
        """As ggml names it: "q4_0"."""
    @property
    def n_elements(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class Block(metaclass=_Native):
    """An attention or FFN block of a layer, as it was found in the model's graph."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """TypeError: the core alone makes one."""

    @property
    def layer(self) -> int: ...
    @property
    def kind(self) -> Literal["attention", "ffn"]: ...
    @property
    def skippable(self) -> bool: ...
    @property
    def why_not(self) -> str:
        """Why it can't be skipped; empty where it can."""
    @property
    def form(self) -> Literal["gated", "plain", "experts", "experts + shared", "separate", "fused", "latent"]:
        """Of an FFN one of the first four. Of attention: whether Q, K and V have matrices of their own, one in common,
        or come from a compressed form of the input."""
    @property
    def residual(self) -> Literal["sequential", "in place", "parallel"]: ...
    @property
    def bytes_per_token(self) -> int:
        """Of weights read for one token; of experts, those chosen."""
    @property
    def bytes_of_cache(self) -> int:
        """Of these, read for keys and values: even where the rest of attention is left out, unless for every row."""
    @property
    def weights(self) -> list[BlockWeight]: ...

class LayerInput(metaclass=_Native):
    """An input of matrices of a layer, whose channels policy "channels" may leave out."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """TypeError: the core alone makes one."""

    @property
    def layer(self) -> int: ...
    @property
    def kind(self) -> Literal["qkv", "o", "up", "down"]:
        """Of Q, K and V; of attention's output matrix; of gate and up; of down."""
    @property
    def why_not(self) -> str:
        """Why channels can't be left out; empty where they can."""
    @property
    def n_channels(self) -> int: ...
    @property
    def bytes(self) -> int:
        """Memory for the weights by channel; 0 where there can't be any."""
    @property
    def bytes_per_token(self) -> int:
        """Of weights that read it for one token; of experts, those chosen."""
    @property
    def weights(self) -> list[BlockWeight]:
        """That read it."""

class Profile(metaclass=_Native):
    """Settings found for one model; `Llama(skip=...)` takes its path, or its config."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """TypeError: the core alone makes one."""

    @property
    def path(self) -> str:
        """The file it was read from."""
    @property
    def model(self) -> str:
        """Fingerprint of the model it was made for."""
    @property
    def config(self) -> SkipConfig: ...

def read_profile(path: str) -> Profile: ...
def channel_file_path(model_path: str) -> str:
    """Where copies of the model's weights by channel are looked for."""

def profile_path(model_path: str) -> str: ...
def find_profile(model: int, model_path: str) -> Profile | None:
    """The profile beside or in a model, which is given by its address too."""

class RowKind(enum.IntEnum):
    """What a row of a batch is."""

    prompt = 0
    """Runs in full, not counted."""
    warm_up = 1
    """A generated token that runs in full (Algorithm 1's warm_up_index), counted."""
    skippable = 2
    """A generated token that may skip, counted."""
    __pybind11_native_enum__: object

class PreparedConfig(metaclass=_Native):
    """Settings that `Controller.prepare()` made for its model."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """TypeError: the core alone makes one."""

class Controller(metaclass=_Native):
    """Skips blocks in one llama.cpp context; ffnskip/controller.h has the contract.

    Contexts, samplers and batches are given by address.
    """

    def __init__(self) -> None: ...
    @property
    def callback(self) -> int:
        """Address for llama_context_params.cb_eval."""
    @property
    def user_data(self) -> int:
        """Address for llama_context_params.cb_eval_user_data."""
    def probe(self, ctx: int) -> None:
        """Learns the blocks of the context's model. Raises UnsupportedModelError."""
    def hook(self, ctx: int) -> None:
        """The same for a context without the callback, whose settings will be static: SkipConfig.is_static. Raises
        UnsupportedModelError where it needs the callback."""
    @property
    def hooked(self) -> bool:
        """Whether the context decodes without the callback."""
    @property
    def n_layer(self) -> int: ...
    @property
    def skippable(self) -> npt.NDArray[np.bool_]:
        """bool [n_layer]: the layer has an FFN block that can be skipped."""
    @property
    def blocks(self) -> list[Block]:
        """Attention and FFN blocks in the order they run in; filled by probe(), also where it raises."""
    @property
    def channel_inputs(self) -> list[LayerInput]:
        """What the matrices of each layer read whose channels policy "channels" can or can't leave out."""
    @property
    def fingerprint(self) -> str:
        """What tells the model from others, whatever its quantisation; empty before probe()."""
    config: SkipConfig
    def set_weights_source(
        self, model_path: str, n_threads: int = 0, progress: Callable[[float], bool] | None = None
    ) -> None:
        """For policy "channels", before the settings that want it: the model's GGUF file, and how its weights are
        stored by channel; 0 threads: one for each core. `progress` is told the part that is done, 0 to 1, and stops it
        by False."""
    @property
    def weights_bytes(self) -> int:
        """Memory that the weights by channel take, in copies that all contexts of the model share; 0 without any."""
    @property
    def mapped_weights_bytes(self) -> int:
        """Bytes of them that are mapped from MODEL.channels.gguf, and take no memory of their own."""
    def release_weights(self) -> None:
        """Gives them up, once the context is freed."""
    @property
    def weights_notes(self) -> list[str]:
        """Why files of copies that were found are not used, one line for each."""
    def write_channels(self, path: str, tensors: str, n_threads: int, told: Callable[[float], object]) -> None:
        """Of the inputs that `tensors` names; n_threads 0: all processors. `told` is called with the share done."""
    def set_profile(self, profile: Profile) -> None:
        """Raises ProfileMismatchError where it is another model's."""
    def prepare(self, config: SkipConfig) -> PreparedConfig:
        """Settings to be used in turns, which takes no time. Raises what setting `config` raises, and
        UnsupportedModelError where policy "channels" wants weights that setting `config` has not stored before. From
        any thread."""
    def use(self, settings: PreparedConfig) -> None:
        """They take effect with the next decode."""
    @property
    def resolved(self) -> ResolvedConfig: ...
    def set_reuse(self, full: bool) -> None: ...
    def first_to_repeat(self, end: int, seq: int = 0) -> int:
        """A prompt at position `end` would have positions from here to there computed again; `end`: none."""
    def n_may_skip(self, begin: int, end: int, n_prompt: int) -> int:
        """How many rows of positions [begin, end) may skip, of a text whose tokens from `n_prompt` on are generated."""
    def count_from_here(self, seq: int = 0) -> None:
        """All that the memory holds of a sequence is a prompt."""
    def replaced(self) -> None:
        """Sequence 0 was loaded from elsewhere."""
    def account(self) -> bytes:
        """What is known of sequence 0, to be kept with a saved state."""
    def restore(self, account: bytes) -> None:
        """Raises ValueError where these are not the bytes of an account."""
    def take_notice(self) -> str | None:
        """What the user should be told of the settings in use, at most once."""
    @property
    def stats(self) -> SkipStats: ...
    def reset_stats(self) -> None: ...
    @property
    def input_bytes(self) -> npt.NDArray[np.uint64]:
        """uint64 [n_layer, 4, 2]: bytes read of the weights that read an input, with none of its channels kept and with
        all, as policy "channels" is set; 0 where none may be left out. No layers with other policies."""
    def start_trace(self, reaches: bool = False, layers: bool = False) -> None: ...
    def stop_trace(
        self,
    ) -> tuple[
        npt.NDArray[np.float32],
        npt.NDArray[np.bool_],
        npt.NDArray[np.bool_],
        npt.NDArray[np.float32],
        npt.NDArray[np.uint64],
        npt.NDArray[np.float32],
    ]:
        """similarity float32, skipped and attention_skipped bool, all [n_tokens, n_layer], kept float32 [n_tokens,
        n_layer, 4], reaches uint64 [n_layer, 4, n_bins], and layer_similarity like similarity; `Trace` has them."""

class Session(metaclass=_Native):
    """Sequences of a llama.cpp context, decoded through a controller or without; ffnskip/session.h has the contract.

    Raises DecodeError where llama.cpp does not decode a batch, UnsupportedModelError where it does what is not
    understood, RuntimeError where the memory of the model can't go back to `position`, and ValueError where it ends
    before that.
    """

    def __init__(self, ctx: int, controller: Controller | None) -> None: ...
    def decode(self, tokens: Sequence[int], position: int, kinds: Sequence[RowKind] | None = None) -> None:
        """Decodes any number of tokens of sequence 0 from `position` on, in place of what is there; None: of a prompt.
        The last one has an output."""
    def forward(
        self, tokens: Sequence[int], position: int, kinds: Sequence[RowKind] | None, rows: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """The same; None: they are generated ones, counted from the first.

        Returns:
            float32 [len(rows), n_vocab]: logits of these rows, which are given in ascending order. The last
            token has an output in the context besides.
        """
    def score(
        self, prefix: Sequence[int], continuations: Sequence[Sequence[int]], n_prompt: int | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], int]:
        """Decodes the prefix, once, and each continuation after it as if it were generated; so are tokens of the prefix
        from `n_prompt` on. The memory is emptied first, but for what it has of the prefix, as by keep().

        Returns:
            float64 [n]: log-likelihood of each continuation, bool [n]: whether it is the greedy one, and the number of
            tokens that were evaluated.
        """
    @property
    def n_sequences(self) -> int:
        """That the context has room for."""
    def n_used(self, seq: int) -> int:
        """Position after the last token of a sequence."""
    def keep(self, tokens: Sequence[int], n_prompt: int) -> int:
        """Empties the memory, but for what sequence 0 has of a text as prompt() would decode it now.

        Returns:
            So many of its tokens; never the last one, whose output is needed.
        """
    def prompt(self, tokens: Sequence[int], n_prompt: int, seq: int) -> None:
        """Decodes any number of tokens after what a sequence holds: as a prompt, and from token `n_prompt` on as
        generated ones. The last one has an output."""
    def sample(self, sampler: int) -> int:
        """From the output of the row decoded last."""
    def step_all(self, turns: Sequence[tuple[int, int, int]]) -> list[int]:
        """Decodes one generated token of each of several sequences in one batch, and samples the next ones.

        Args:
            turns: Sequence, token, and address of the sampler.
        """
    def copy(self, source: int, to: int) -> None:
        """Sequence `to` becomes what `source` is."""
    def cut(self, position: int, seq: int) -> None:
        """Takes this position of a sequence and what follows it out of the memory."""
    def choose(
        self, rows: Sequence[tuple[int, int, int, int | None]], generated: bool
    ) -> list[
        tuple[int, float, list[tuple[int, float]], tuple[bool, tuple[int, ...], tuple[int, ...], float | None, float]]
        | str
    ]:
        """Decodes rows, n_batch at most, after what their sequences hold, as generated ones or as a prompt.

        Args:
            rows: Token, sequence, address of a sampler or 0 where nothing is chosen from its output, and how many of
                the likeliest tokens are told; None: not even how likely the chosen one is.
        Returns:
            For each row with a sampler the token chosen, the logarithm of its probability, the likeliest tokens with
            theirs, and what the row left out: whether it may have skipped, layers of FFN and of attention, the share of
            weights read where channels are left out, and its part of `SkipStats.skip_ratio`. The message of a sampler
            that failed.
        """
    def go_back(self, position: int, seq: int) -> bool:
        """Takes this position of a sequence and what follows it out of the memory. False where the memory can't."""
    def clear(self) -> None:
        """Empties the memory."""
    def step(self, sampler: int, token: int, position: int) -> int:
        """Decodes a generated token of sequence 0 and samples the next one."""
    def decode_batch(self, batch: int, generated: bool | None = None) -> None:
        """Decodes a llama_batch, of prompt or generated rows; None: seen from the batch."""

def similarity(h: npt.ArrayLike, f: npt.ArrayLike) -> float:
    """Cosine of the float32 vectors h and h + f, as the policies compute it; NaN where an element is not finite."""

def options() -> list[tuple[str, str | None, str]]:
    """The skip options of programs: name, placeholder of the value (None for a switch), one line of help."""

def config_from_options(values: Sequence[tuple[str, str]], base: SkipConfig) -> SkipConfig:
    """`base` after options, given by name and value. Raises ValueError."""

def environment_name(option: str) -> str:
    """The variable that `ffnskip run` passes an option in: "FFNSKIP_SKIP_RATIO" of "skip-ratio"."""
