"""The C++ core. `SkipConfig`, `SkipStats` and `Unsupported` are public, from `ffnskip_cpp`; the rest serves `Llama`."""

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
import numpy.typing as npt

__version__: str

PolicyName = Literal[
    "dense",
    "ffn_skip",
    "ffn_skip_per_layer",
    "random",
    "random_adaptive_region",
    "fixed",
    "fixed_plus_ffn_skip",
]

class Unsupported(ValueError):
    """The model or context has no FFN block that can be skipped, or one that is not understood."""

class SkipConfig:
    """What to skip. FFN-SkipLLM (arXiv:2404.03865), section 3.2 and Algorithm 1. Immutable, hashable, picklable.

    Args:
        policy: "ffn_skip" is Algorithm 1, "ffn_skip_per_layer" the same with a threshold for each layer; "random" and
            "random_adaptive_region" are the paper's baselines 1 and 2 (max_skip FFN blocks a token, from all layers
            but the last, or from the adaptive region); "fixed" skips the FFN blocks of `layers`, and
            "fixed_plus_ffn_skip" those and, by Algorithm 1, others of the adaptive region; "dense" skips nothing.
        sim_threshold: Cosine similarity of the residual before and after an FFN block at which a token trips.
            Above 1: never.
        cold_s, cold_e: Layers [0, cold_s) and [cold_e, n_layer) never skip; [cold_s, cold_e) is the adaptive region.
            0 <= cold_s < cold_e < n_layer. Default: an eighth of the layers at either end.
        warm_up_index: Generated tokens per generation that run in full first, 0 or more.
        skip_ratio: Target share of all FFN blocks, [0, 1]; sets max_skip = round(skip_ratio * n_layer), less the
            number of `layers`.
        max_skip: FFN blocks skipped after the trip, counted from the next layer on and never past cold_e; 0 or more.
        layers: For the fixed policies: layers in [0, n_layer - 1) that every token skips.
        seed: For the random policies.
        layer_thresholds: For "ffn_skip_per_layer": float [n_layer], each like sim_threshold; infinite where a layer is
            not to be checked.
        check_stride: Every n-th layer of the adaptive region is checked, 1 or more.
    Raises:
        ValueError: A value is wrong for any model. What does not fit a given model is refused by that `Llama`.
    """

    def __init__(
        self,
        policy: PolicyName = "ffn_skip",
        sim_threshold: float = 0.9,
        cold_s: int | None = None,
        cold_e: int | None = None,
        warm_up_index: int = 30,
        skip_ratio: float = 0.25,
        max_skip: int | None = None,
        layers: Sequence[int] | None = None,
        seed: int = 0,
        layer_thresholds: Sequence[float] | None = None,
        check_stride: int = 1,
    ) -> None: ...
    @property
    def policy(self) -> PolicyName: ...
    @property
    def sim_threshold(self) -> float: ...
    @property
    def cold_s(self) -> int | None: ...
    @property
    def cold_e(self) -> int | None: ...
    @property
    def warm_up_index(self) -> int: ...
    @property
    def skip_ratio(self) -> float: ...
    @property
    def max_skip(self) -> int | None: ...
    @property
    def layers(self) -> list[int] | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def layer_thresholds(self) -> list[float] | None: ...
    @property
    def check_stride(self) -> int: ...

class SkipStats:
    """Counts over generated tokens since the last reset; a snapshot."""

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
        """ffn_skipped / ffn_total; 0 without tokens."""
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

class FfnWeight:
    """A weight of an FFN block."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str:
        """As ggml names it: "q4_0"."""
    @property
    def n_elements(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class FfnBlock:
    """The FFN block of a layer, as it was found in the model's graph."""

    @property
    def layer(self) -> int: ...
    @property
    def skippable(self) -> bool: ...
    @property
    def why_not(self) -> str:
        """Why it can't be skipped; empty where it can."""
    @property
    def kind(self) -> Literal["gated", "plain", "experts", "experts + shared"]: ...
    @property
    def residual(self) -> Literal["sequential", "in place", "parallel"]: ...
    @property
    def bytes_per_token(self) -> int:
        """Of weights read for one token; of experts, those chosen."""
    @property
    def weights(self) -> list[FfnWeight]: ...

class Profile:
    """Settings found for one model; `Llama(skip=...)` takes its path, or its config."""

    @property
    def path(self) -> str:
        """The file it was read from."""
    @property
    def model(self) -> str:
        """Fingerprint of the model it was made for."""
    @property
    def config(self) -> SkipConfig: ...

def read_profile(path: str) -> Profile: ...
def profile_path(model_path: str) -> str: ...
def find_profile(model: int, model_path: str) -> Profile | None:
    """The profile beside or in a model, which is given by its address too."""

class ResolvedConfig(TypedDict):
    """A SkipConfig as it applies to one model."""

    policy: PolicyName
    sim_threshold: float
    cold_s: int
    cold_e: int
    warm_up_index: int
    max_skip: int

class Controller:
    """Skips FFN blocks in one llama.cpp context; ffnskip/controller.h has the contract.

    Contexts, samplers and batches are given by address. Row kinds: 0 prompt, 1 warm-up, 2 skippable.
    """

    def __init__(self) -> None: ...
    @property
    def callback(self) -> int:
        """Address for llama_context_params.cb_eval."""
    @property
    def user_data(self) -> int:
        """Address for llama_context_params.cb_eval_user_data."""
    def probe(self, ctx: int) -> None:
        """Learns the FFN blocks of the context's model. Raises Unsupported."""
    @property
    def n_layer(self) -> int: ...
    @property
    def skippable(self) -> npt.NDArray[np.bool_]:
        """bool [n_layer]: the layer has an FFN block that can be skipped."""
    @property
    def ffn_map(self) -> list[FfnBlock]:
        """Of each layer that has an FFN block; filled by probe(), also where it raises."""
    @property
    def fingerprint(self) -> str:
        """What tells the model from others, whatever its quantisation; empty before probe()."""
    config: SkipConfig
    def set_profile(self, profile: Profile) -> None:
        """Raises ValueError where it is another model's."""
    @property
    def resolved(self) -> ResolvedConfig: ...
    def decode(
        self,
        ctx: int,
        tokens: Sequence[int],
        position: int,
        kinds: Sequence[int] | None = None,
        all_logits: bool = False,
    ) -> None:
        """Decodes tokens of sequence 0 from `position` on. Raises RuntimeError with llama_decode's status."""
    def decode_batch(self, ctx: int, batch: int, generated: bool | None = None) -> None:
        """Decodes a llama_batch, of prompt or generated rows; None: seen from the batch. Raises RuntimeError with
        llama_decode's status."""
    def step(self, ctx: int, sampler: int, token: int, position: int) -> int:
        """Decodes a generated token of sequence 0 and samples the next one."""
    def set_reuse(self, full: bool) -> None: ...
    def first_to_repeat(self, end: int) -> int:
        """A prompt at position `end` would have positions from here to there computed again; `end`: none."""
    def count_from_here(self) -> None:
        """All that the memory holds of sequence 0 is a prompt."""
    def replaced(self) -> None:
        """Sequence 0 was loaded from elsewhere."""
    def account(self) -> bytes:
        """What is known of sequence 0, to be kept with a saved state."""
    def restore(self, account: bytes) -> None:
        """Raises ValueError where these are not the bytes of an account."""
    def take_notice(self) -> str | None:
        """What the user should be told of the settings in use, at most once."""
    def row_kind(self, generated_index: int) -> int: ...
    @property
    def stats(self) -> SkipStats: ...
    def reset_stats(self) -> None: ...
    def start_trace(self) -> None: ...
    def stop_trace(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """similarity float32 and skipped bool, both [n_tokens, n_layer]."""

def similarity(h: npt.ArrayLike, f: npt.ArrayLike) -> float:
    """Cosine of the float32 vectors h and h + f, as the policies compute it; NaN where an element is not finite."""

def options() -> list[tuple[str, str | None, str]]:
    """The skip options of programs: name, placeholder of the value (None for a switch), one line of help."""

def config_from_options(values: Sequence[tuple[str, str]], base: SkipConfig = ...) -> SkipConfig:
    """`base`, by default SkipConfig(), after options, given by name and value. Raises ValueError."""

def environment_name(option: str) -> str:
    """The variable that `ffnskip run` passes an option in: "FFNSKIP_SKIP_RATIO" of "skip-ratio"."""
