"""What decodes: a llama.cpp context per setting, over one model."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import llama_cpp

from .._core import Controller, Profile, RowKind, Session
from ..channel_weights import storing_weights
from ..errors import DecodeError, UnsupportedModelError
from ..gguf_file.header_check import check_header
from ..gguf_file.weights import WeightBytes, read_weight_bytes
from ..load_error import explained
from ..lora import Adapter, as_adapter
from ..memory import available_memory
from .options import Options, Setting, Test, lead_of, settings_of
from .random_model import random_model, usable_in_place

__all__ = ["Runner", "SkippingRunner", "open_model", "open_runners", "quiet"]

TYPICAL_N_UBATCH = 512


class LoadedAdapter:
    """A LoRA adapter, loaded for one model; to be closed after the contexts that have it."""

    def __init__(self, model: int, adapter: Adapter):
        self._scale = adapter.scale
        self._loaded = llama_cpp.llama_adapter_lora_init(model, os.fsencode(adapter.path))
        if not self._loaded:
            raise ValueError(f"lora: {adapter.path} is no LoRA adapter of this model; -v shows why")

    def attach(self, ctx: int) -> None:
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._loaded)
        if llama_cpp.llama_set_adapters_lora(ctx, adapters, 1, (ctypes.c_float * 1)(self._scale)) != 0:
            raise RuntimeError("lora: llama.cpp can't use the adapter in a context")

    def close(self) -> None:
        llama_cpp.llama_adapter_lora_free(self._loaded)


class Runner:
    """Decodes with plain llama.cpp."""

    finds_thresholds = False  # in its first tokens

    def __init__(self, model: int, params: Any, lora: LoadedAdapter | None = None):
        self.ctx = llama_cpp.llama_init_from_model(model, params)
        if not self.ctx:
            raise ValueError(f"llama.cpp can't make a context of {params.n_ctx} tokens; -v shows why")
        if lora is not None:
            lora.attach(self.ctx)
        self._token = (llama_cpp.llama_token * 1)()
        self._batch = llama_cpp.llama_batch_get_one(self._token, 1)

    def close(self) -> None:
        llama_cpp.llama_free(self.ctx)

    @property
    def skip_ratio(self) -> float:
        """Of the generated tokens, as `SkipStats` has it."""
        return 0.0

    def reset_stats(self) -> None:
        pass

    def state(self) -> Any:
        """What the context holds, for `reset` of any runner over the same model."""
        size = llama_cpp.llama_state_seq_get_size(self.ctx, 0)
        data = (ctypes.c_uint8 * size)()
        if llama_cpp.llama_state_seq_get_data(self.ctx, data, size, 0) != size:
            raise RuntimeError("llama.cpp can't save the tokens of --n-depth")
        return data

    def reset(self, state: Any) -> None:
        """Empties the context, or puts into it what `state` gave."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.ctx), False)
        if state is not None and llama_cpp.llama_state_seq_set_data(self.ctx, state, len(state), 0) == 0:
            raise RuntimeError("llama.cpp can't restore the tokens of --n-depth")

    def prompt(self, tokens: Sequence[int], position: int) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        _check(llama_cpp.llama_decode(self.ctx, llama_cpp.llama_batch_get_one(array, len(tokens))))
        llama_cpp.llama_synchronize(self.ctx)

    def generated(self, tokens: Sequence[int], position: int) -> None:
        """One token."""
        self._token[0] = tokens[0]
        _check(llama_cpp.llama_decode(self.ctx, self._batch))
        llama_cpp.llama_synchronize(self.ctx)


class SkippingRunner(Runner):
    """Decodes through a controller."""

    def __init__(
        self,
        model: int,
        params: Any,
        setting: Setting,
        model_path: str = "",
        lora: LoadedAdapter | None = None,
        progress: bool | None = None,
    ):
        self.finds_thresholds = setting.finds_thresholds
        self.controller = Controller()
        is_hooked = setting.is_static and self._hook(model, params, lora)
        if not is_hooked:
            params.cb_eval = ctypes.cast(self.controller.callback, llama_cpp.ggml_backend_sched_eval_callback)
            params.cb_eval_user_data = self.controller.user_data
            super().__init__(model, params, lora)
        try:
            if not is_hooked:
                self.controller.probe(self.ctx)
            with storing_weights(self.controller, model_path, n_threads=os.cpu_count() or 1, show=progress):
                if isinstance(setting.config, Profile):
                    self.controller.set_profile(setting.config)
                elif callable(setting.config):
                    self.controller.config = setting.config(self.controller.skippable)
                elif setting.config is not None:
                    self.controller.config = setting.config
        except ValueError:
            self.close()
            raise
        self._session = Session(self.ctx, self.controller)

    def _hook(self, model: int, params: Any, lora: LoadedAdapter | None) -> bool:
        """Makes a context that needs no callback, where there can be one."""
        super().__init__(model, params, lora)
        try:
            self.controller.hook(self.ctx)
        except UnsupportedModelError:
            self.close()
        return self.controller.hooked

    @property
    def skip_ratio(self) -> float:
        return self.controller.stats.skip_ratio

    def reset_stats(self) -> None:
        self.controller.reset_stats()

    def prompt(self, tokens: Sequence[int], position: int) -> None:
        self._session.decode(tokens, position)
        llama_cpp.llama_synchronize(self.ctx)

    def generated(self, tokens: Sequence[int], position: int) -> None:
        self._session.decode(tokens, position, [RowKind.skippable])
        llama_cpp.llama_synchronize(self.ctx)


def _check(status: int) -> None:
    if status != 0:
        raise DecodeError(f"llama_decode returned {status}", status)


# ---- opening ----


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Keeps llama.cpp's log to itself, unless it is wanted."""
    logger = logging.getLogger("llama-cpp-python")  # which llama_cpp lets decide what of llama.cpp's log is shown
    level = logger.level
    logger.setLevel(logging.INFO if verbose else logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[None]:
    """Ctrl-C takes effect at the end of the block, in which llama.cpp logs: the exception would be lost in llama_cpp's
    log callback, on its way through C."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def open_model(options: Options) -> Iterator[tuple[int, WeightBytes]]:
    """The model as llama.cpp has it, and the bytes of it that a token reads."""
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = options.n_gpu_layers
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as file:
        if options.model_path is not None:
            check_header(options.model_path)
            path = os.fspath(options.model_path)
        else:
            in_place = usable_in_place(options.type)
            params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if in_place else llama_cpp.LLAMA_LOAD_MODE_NONE
            path = file.enter_context(random_model(options.shape or "", options.type))
        weights = read_weight_bytes(path)
        model = _load(path, params)
        stack.callback(llama_cpp.llama_model_free, model)
        _store_weights(stack, model, path, options)
        file.close()
        yield model, weights


def _store_weights(stack: contextlib.ExitStack, model: int, path: str, options: Options) -> None:
    """By channel, where some setting wants them: they stay while a context has them, and the file may be gone later."""
    test = Test(n_gen=1)
    settings = [setting for setting in settings_of(options, test) if setting.leaves_channels_out]
    if settings and any(asked.n_gen for asked in options.tests):
        runner = SkippingRunner(
            model, _context_params(test, 0, 1, options), settings[0], path, progress=_shown(options)
        )
        stack.callback(runner.close)


def _shown(options: Options) -> bool | None:
    """Whether there is a bar: it would get lost between the lines of the log."""
    return False if options.verbose else options.progress


def _load(path: str, params: Any) -> int:
    with explained():
        with _deferred_interrupt():
            model: int | None = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise ValueError(f"Failed to load model from file: {path}")
    return model


@contextlib.contextmanager
def open_runners(
    model: int, settings: Sequence[Setting], test: Test, threads: int, options: Options
) -> Iterator[list[Runner]]:
    """One per setting, with room for the test."""
    runners: list[Runner] = []
    with contextlib.ExitStack() as stack:
        lora = None
        if options.lora is not None:
            with _deferred_interrupt():
                lora = LoadedAdapter(model, as_adapter(options.lora))
            stack.callback(lora.close)
        for setting in settings:
            before = available_memory()
            params = _context_params(test, lead_of(settings), threads, options)
            runners.append(_open_runner(stack, model, setting, params, lora, options))
            if setting is settings[0]:
                n_copies = 1 if test.n_depth else 0  # the state that all of them start from
                _check_memory(before - available_memory(), len(settings) - 1 + n_copies, test)
        yield runners


def _open_runner(
    stack: contextlib.ExitStack,
    model: int,
    setting: Setting,
    params: Any,
    lora: LoadedAdapter | None,
    options: Options,
) -> Runner:
    with _deferred_interrupt():
        if setting.config is None:
            runner = Runner(model, params, lora)
        else:
            path = "" if options.model_path is None else os.fspath(options.model_path)
            runner = SkippingRunner(model, params, setting, path, lora, _shown(options))
        stack.callback(runner.close)
    return runner


def _check_memory(of_one: float, n_more: int, test: Test) -> None:
    """Linux ends a process that takes more memory than there is, without a word."""
    if of_one * n_more > available_memory():
        raise ValueError(
            f"{test.name}: {n_more} more contexts of {of_one / 1e9:.1f} GB do not fit into memory; take fewer tokens "
            "or fewer skip ratios at a time"
        )


def _context_params(test: Test, n_lead: int, threads: int, options: Options) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = test.n_ctx + n_lead
    params.n_batch = max(test.n_prompt, test.n_depth, 2)
    params.n_ubatch = min(params.n_batch, TYPICAL_N_UBATCH)
    params.n_threads = params.n_threads_batch = threads
    if options.flash_attention is not None:
        params.flash_attn_type = int(options.flash_attention)
    return params
