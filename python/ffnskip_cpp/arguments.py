"""What llama_cpp's own functions take, for editors and type checkers, which can't see it through `**kwargs`.

Imported by none of the programs that run; a test compares it with llama_cpp.
"""

from __future__ import annotations

from typing import TypedDict

from llama_cpp.llama import LogitsProcessorList, StoppingCriteriaList
from llama_cpp.llama_chat_format import LlamaChatCompletionHandler
from llama_cpp.llama_grammar import LlamaGrammar
from llama_cpp.llama_speculative import LlamaDraftModel
from llama_cpp.llama_tokenizer import BaseLlamaTokenizer

__all__ = ["BatchSamplingOptions", "LlamaArguments", "SamplingOptions"]


class LlamaArguments(TypedDict, total=False):
    """Of `llama_cpp.Llama`."""

    n_gpu_layers: int
    split_mode: int
    main_gpu: int
    tensor_split: list[float] | None
    vocab_only: bool
    use_mmap: bool
    use_mlock: bool
    kv_overrides: dict[str, bool | int | float | str] | None
    seed: int
    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_threads: int | None
    n_threads_batch: int | None
    rope_scaling_type: int | None
    pooling_type: int
    attention_type: int
    rope_freq_base: float
    rope_freq_scale: float
    yarn_ext_factor: float
    yarn_attn_factor: float
    yarn_beta_fast: float
    yarn_beta_slow: float
    yarn_orig_ctx: int
    logits_all: bool
    embedding: bool
    offload_kqv: bool
    flash_attn: bool
    op_offload: bool | None
    swa_full: bool | None
    no_perf: bool
    last_n_tokens_size: int
    lora_base: str | None
    lora_scale: float
    lora_path: str | None
    numa: bool | int
    chat_format: str | None
    chat_handler: LlamaChatCompletionHandler | None
    draft_model: LlamaDraftModel | None
    tokenizer: BaseLlamaTokenizer | None
    type_k: int | None
    type_v: int | None
    spm_infill: bool
    verbose: bool


class BatchSamplingOptions(TypedDict, total=False):
    """Of `llama_cpp.Llama.generate`, and of several texts at once."""

    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    temp: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    tfs_z: float
    mirostat_mode: int
    mirostat_tau: float
    mirostat_eta: float
    penalize_nl: bool
    grammar: LlamaGrammar | None


class SamplingOptions(BatchSamplingOptions, total=False):
    """Of `llama_cpp.Llama.generate`."""

    reset: bool
    logits_processor: LogitsProcessorList | None
    stopping_criteria: StoppingCriteriaList | None
