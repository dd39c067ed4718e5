"""Whatever changes the graph or the memory between two tokens, a skipping context stays exact.

The yardstick is plain llama.cpp on a file whose skipped FFN blocks are zero, taken through the same changes.
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

import ffnskip_cpp
from ffnskip_cpp import SkipConfig, Unsupported, _core
from support import tiny_models
from support.running import (
    PROMPT_ROW,
    SKIPPABLE_ROW,
    bits_equal,
    feed,
    feed_one_by_one,
    ours,
    perf,
    plain,
    with_changed_tensors,
)

TOKENS = np.random.default_rng(17).integers(8, 256, 24).tolist()  # 0 to 7 are kept for embeddings that are not finite
BEFORE, BETWEEN, AFTER = TOKENS[:8], TOKENS[8:16], TOKENS[16:]

N_LAYER = 8
N_EMBD = 64
SKIPPED = (1, 2, 5)
FIXED = SkipConfig(policy="fixed", layers=SKIPPED, warm_up_index=0)
TRIPS_AT_ONCE = SkipConfig(sim_threshold=-1.0, cold_s=1, cold_e=7, max_skip=3, warm_up_index=0)  # any finite cosine

FORMS = ["llama", "phi3", "falcon", "gptneox"]  # plain, in place, parallel in two orders


@pytest.fixture
def path(model_file):
    return model_file("llama", n_layer=N_LAYER)


@pytest.fixture
def zeroed(model_file):
    return model_file("llama", n_layer=N_LAYER, zero_ffn_layers=SKIPPED)


@pytest.fixture
def pair(path, zeroed, callback):
    """A skipping context, and plain llama.cpp on the file without the blocks it skips."""
    with ours(path, FIXED, callback=callback) as llm, plain(zeroed) as expected:
        yield llm, expected


def n_decoded(llm):
    """Batches of one token so far. llama.cpp says 1 where it means 0: one is fed, and fed again later."""
    if perf(llm).n_eval == 1:
        memory = llama_cpp.llama_get_memory(llm.ctx)
        feed(llm, TOKENS[:1], llama_cpp.llama_memory_seq_pos_max(memory, 0) + 1)
    return perf(llm).n_eval


def assert_same(pair, tokens, position, times=1):
    """The same tokens through both, one by one. `times`: decodes that the first token takes the skipping context; None
    after a decode that failed, which llama.cpp counts with the next."""
    llm, expected = pair
    n_before = n_decoded(llm) if times else 0
    got = feed_one_by_one(llm, tokens, SKIPPABLE_ROW, position)
    assert bits_equal(got, feed_one_by_one(expected, tokens, position=position))
    assert not times or perf(llm).n_eval - n_before == len(tokens) + times - 1
    return got


def times_learnt(pair):
    """Decodes of a batch that meets a graph of unknown structure: without the callback it is seen when it is built."""
    return 1 if pair[0]._controller.hooked else 2


# --- the structure of the graph changes ------------------------------------------------------------------------------


def set_control_vector(llm, data):
    pointer = None if data is None else data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    size = 0 if data is None else data.size
    assert llama_cpp.llama_set_adapter_cvec(llm.ctx, pointer, size, N_EMBD, 1, N_LAYER - 1) == 0


def test_control_vector_set_and_removed_between_tokens_is_learnt_once(pair):
    """Each layer then ends with one more add, and a batch that meets the new graph is decoded twice."""
    vector = tiny_models.control_vector(n_layer=N_LAYER)
    assert_same(pair, BEFORE, 0)
    for llm in pair:
        set_control_vector(llm, vector)
    steered = assert_same(pair, BETWEEN, 8, times=times_learnt(pair))
    for llm in pair:
        set_control_vector(llm, None)
    assert not np.array_equal(assert_same(pair, BETWEEN, 8), steered)  # the old graph is still known
    for llm in pair:
        set_control_vector(llm, vector)
    assert bits_equal(assert_same(pair, BETWEEN, 8), steered)


def test_control_vector_set_later_equals_one_set_from_the_start(path, callback):
    vector = tiny_models.control_vector(n_layer=N_LAYER)
    with ours(path, FIXED, callback=callback) as late, ours(path, FIXED, callback=callback) as early:
        set_control_vector(early, vector)
        feed(late, BEFORE, 0)
        set_control_vector(late, vector)
        for llm in (late, early):
            llm.reset_stats()
        # The first batch that may skip meets the new graph: a batch of several rows is decoded again as a whole.
        assert bits_equal(feed(late, TOKENS, 0, SKIPPABLE_ROW), feed(early, TOKENS, 0, SKIPPABLE_ROW))
        for llm in (late, early):  # a batch that was repeated counts once
            assert (llm.stats.tokens, llm.stats.ffn_skipped) == (len(TOKENS), len(TOKENS) * len(SKIPPED))


def test_control_vector_with_several_pieces_of_a_batch(path, zeroed, callback):
    vector = tiny_models.control_vector(n_layer=N_LAYER)
    with ours(path, FIXED, callback=callback, n_ubatch=7) as llm, plain(zeroed, n_ubatch=7) as expected:
        for each in (llm, expected):
            set_control_vector(each, vector)
        assert bits_equal(feed(llm, TOKENS, 0, SKIPPABLE_ROW), feed(expected, TOKENS, 0))


def test_checks_see_the_residual_before_the_control_vector(path):
    """The vector is added after the residual add; the similarity is that of the FFN alone."""
    vector = np.zeros(N_EMBD * (N_LAYER - 1), np.float32)
    config = SkipConfig(sim_threshold=1.5, cold_s=0, cold_e=N_LAYER - 1, max_skip=1, warm_up_index=0)
    with ours(path, config) as llm:
        with llm.trace() as without:
            feed(llm, TOKENS[:1], 0, SKIPPABLE_ROW)
        set_control_vector(llm, vector)
        with llm.trace() as with_zeros:
            feed(llm, TOKENS[:1], 0, SKIPPABLE_ROW)
        set_control_vector(llm, 100 + vector)
        with llm.trace() as with_large:
            feed(llm, TOKENS[:1], 0, SKIPPABLE_ROW)
    assert bits_equal(with_zeros.similarity, without.similarity)
    # Layer 1's own FFN is before the first addition, the rest sees a residual that points in one direction.
    assert bits_equal(with_large.similarity[:, :2], without.similarity[:, :2])
    assert with_large.similarity[0, 2:-1].min() > 0.999


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """(adapter, the same with nothing added to ffn_down of the layers skipped)."""
    folder = tmp_path_factory.mktemp("adapters")
    adapter = tiny_models.write_lora(folder / "adapter.gguf", n_layer=N_LAYER)
    names = {f"blk.{il}.ffn_down.weight.lora_b" for il in SKIPPED}
    return adapter, with_changed_tensors(
        adapter, folder / "zeroed.gguf", lambda name, data: data.fill(0) if name in names else None
    )


def test_lora_given_at_construction_is_skipped_with_its_block(path, zeroed, adapters, callback):
    adapter, zeroed_adapter = adapters
    options = {"callback": callback, "lora_path": str(adapter)}
    with ours(path, FIXED, **options) as llm, plain(zeroed, lora_path=str(zeroed_adapter)) as expected:
        assert bits_equal(feed(llm, TOKENS, 0, SKIPPABLE_ROW), feed(expected, TOKENS, 0))
        assert_same((llm, expected), TOKENS, 0)
        with plain(zeroed) as without:
            assert not np.array_equal(feed(without, TOKENS, 0), feed(expected, TOKENS, 0))


@contextlib.contextmanager
def loaded_adapter(llm, path):
    adapter = llama_cpp.llama_adapter_lora_init(llm.model, str(path).encode())
    try:
        yield adapter
    finally:
        set_adapters(llm, [])
        llama_cpp.llama_adapter_lora_free(adapter)


def set_adapters(llm, adapters):
    array = (llama_cpp.llama_adapter_lora_p_ctypes * len(adapters))(*adapters)
    scales = (ctypes.c_float * len(adapters))(*[1.0] * len(adapters))
    assert llama_cpp.llama_set_adapters_lora(llm.ctx, array, len(adapters), scales) == 0


def test_lora_set_and_removed_between_tokens_is_learnt_once(pair, adapters):
    with loaded_adapter(pair[0], adapters[0]) as first, loaded_adapter(pair[1], adapters[1]) as second:
        plain_logits = assert_same(pair, BEFORE, 0)
        for times in (times_learnt(pair), 1):
            set_adapters(pair[0], [first])
            set_adapters(pair[1], [second])
            assert not np.array_equal(assert_same(pair, BEFORE, 0, times), plain_logits)
            set_adapters(pair[0], [])
            set_adapters(pair[1], [])
            assert bits_equal(assert_same(pair, BEFORE, 0), plain_logits)


# --- the memory changes ----------------------------------------------------------------------------------------------


def shift(llm, first, last):
    """Forgets positions [first, last) and moves what follows up to them: the next decode rotates the keys."""
    memory = llama_cpp.llama_get_memory(llm.ctx)
    assert llama_cpp.llama_memory_seq_rm(memory, 0, first, last)
    llama_cpp.llama_memory_seq_add(memory, 0, last, -1, first - last)


def test_context_shift_between_tokens(pair):
    """The keys are rotated by a graph of their own, run by the same scheduler in the midst of a decode."""
    assert_same(pair, BEFORE + BETWEEN, 0)
    for llm in pair:
        shift(llm, 4, 8)
    assert_same(pair, AFTER, 12)
    for llm in pair:
        shift(llm, 0, 1)
    whole = [feed(llm, AFTER, 19, kind) for llm, kind in zip(pair, (SKIPPABLE_ROW, PROMPT_ROW))]
    assert bits_equal(*whole)


def test_state_saved_and_loaded_between_tokens(path, zeroed, callback):
    with ours(path, FIXED, callback=callback) as llm, plain(zeroed) as expected:
        assert_same((llm, expected), BEFORE, 0)
        states = llm.save_state(), expected.save_state()
        following = assert_same((llm, expected), BETWEEN, 8)
        assert_same((llm, expected), AFTER, 0)
        for each, state in zip((llm, expected), states):
            each.load_state(state)
        assert bits_equal(assert_same((llm, expected), BETWEEN, 8), following)
        with ours(path, FIXED, callback=not callback) as other:
            other.load_state(states[0])
            assert bits_equal(feed_one_by_one(other, BETWEEN, SKIPPABLE_ROW, 8), following)


def test_a_batch_refused_by_a_full_context_leaves_no_mark(pair):
    llm, expected = pair
    n_ctx = llm.n_ctx()
    long = np.random.default_rng(2).integers(8, 256, n_ctx - 1).tolist()
    assert bits_equal(feed(llm, long, 0, SKIPPABLE_ROW), feed(expected, long, 0))
    llm.reset_stats()
    with pytest.raises(RuntimeError, match="llama_decode returned 1: no room for the batch"):
        feed(llm, BEFORE, n_ctx - 1, SKIPPABLE_ROW)
    assert llm.stats.tokens == 0
    assert_same(pair, TOKENS[:1], n_ctx - 1, times=None)
    assert_same(pair, AFTER, 100, times=None)


# --- decodes that end early, or that nobody told of ------------------------------------------------------------------


@contextlib.contextmanager
def aborting_after(llm, n_nodes):
    """llama.cpp's CPU backend asks after each node whether to go on."""
    count = 0

    @llama_cpp.ggml_abort_callback
    def abort(_data):
        nonlocal count
        count += 1
        return count > n_nodes

    llama_cpp.llama_set_abort_callback(llm.ctx, abort, None)
    try:
        yield
    finally:
        llama_cpp.llama_set_abort_callback(llm.ctx, llama_cpp.ggml_abort_callback(0), None)


@pytest.mark.parametrize("n_nodes", [0, 30, 90])
def test_an_aborted_decode_leaves_no_mark(pair, n_nodes):
    assert_same(pair, BEFORE, 0)
    with aborting_after(pair[0], n_nodes), pytest.raises(RuntimeError, match="returned 2: aborted"):
        feed(pair[0], BETWEEN[:1], 8, SKIPPABLE_ROW)
    assert pair[0].stats.tokens == 8
    assert_same(pair, BETWEEN, 8, times=None)


def test_a_graph_whose_first_evaluation_is_aborted_is_learnt_from_the_next(pair):
    """Half a graph was once kept as if it were a whole one: 'no residual add was found'."""
    assert_same(pair, BEFORE, 0)
    for llm in pair:
        set_control_vector(llm, tiny_models.control_vector(n_layer=N_LAYER))
    with aborting_after(pair[0], 90), pytest.raises(RuntimeError, match="returned 2: aborted"):
        feed(pair[0], BETWEEN[:1], 8, SKIPPABLE_ROW)
    assert_same(pair, BETWEEN, 8, times=None)


def decode_behind_our_back(llm, tokens):
    """As libmtmd does for images: llama_decode on the context, past the controller."""
    llm._ctx.kv_cache_clear()
    llm._batch.set_batch(batch=list(tokens), n_past=0, logits_all=True)
    type(llm._ctx).decode(llm._ctx, llm._batch)
    return np.ctypeslib.as_array(llm._ctx.get_logits(), shape=(len(tokens), llm.n_vocab())).copy()


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("config", [FIXED, TRIPS_AT_ONCE], ids=["fixed", "ffn_skip"])
def test_a_decode_the_controller_was_not_told_of_runs_in_full(path, config, n_tokens, callback):
    """The callback then still held the batch of the last decode, memory that was no longer there."""
    with ours(path, config, callback=callback) as llm, plain(path) as expected:
        for _ in range(3):
            llm.reset()
            llm.eval(BEFORE)
            llm.eval([llm.sample(temp=0.0)])  # may skip, and is decoded from a batch that ends with this call
            assert bits_equal(decode_behind_our_back(llm, TOKENS[:n_tokens]), feed(expected, TOKENS[:n_tokens], 0))
        assert llm.stats.ffn_skipped == 3 * 3


def test_two_contexts_side_by_side_keep_to_themselves(path, model_file):
    configs = [FIXED, SkipConfig(policy="fixed", layers=[0, 6], warm_up_index=0)]
    files = [model_file("llama", n_layer=N_LAYER, zero_ffn_layers=tuple(config.layers)) for config in configs]
    with contextlib.ExitStack() as stack:
        llms = [stack.enter_context(ours(path, config)) for config in configs]
        expected = [stack.enter_context(plain(file)) for file in files]
        for i, token in enumerate(TOKENS):
            for pair in zip(llms, expected):
                assert_same(pair, [token], i)


# --- values that are not finite --------------------------------------------------------------------------------------

NAN_TOKEN, INF_TOKEN, HUGE_TOKEN = 5, 6, 7


@pytest.fixture(scope="module")
def broken(model_file, tmp_path_factory):
    """Three tokens whose embeddings are NaN, infinite, and so large that float32 can't hold their square."""
    values = {NAN_TOKEN: np.nan, INF_TOKEN: np.inf, HUGE_TOKEN: 1e25}

    def change(name, data):
        if name == "token_embd.weight":
            for token, value in values.items():
                data[token] = value

    file = model_file("llama", n_layer=N_LAYER)
    return with_changed_tensors(file, tmp_path_factory.mktemp("broken") / "broken.gguf", change)


@pytest.mark.parametrize("token", [NAN_TOKEN, INF_TOKEN, HUGE_TOKEN], ids=["nan", "inf", "huge"])
@pytest.mark.parametrize("one_by_one", [False, True], ids=["batch", "one_by_one"])
def test_a_token_that_is_not_finite_never_trips_and_runs_in_full(broken, token, one_by_one):
    tokens = [*BEFORE, token]
    kinds = [PROMPT_ROW] * len(BEFORE) + [SKIPPABLE_ROW]
    with plain(broken) as expected, ours(broken, TRIPS_AT_ONCE) as llm, llm.trace() as trace:
        if one_by_one:
            got, wanted = feed_one_by_one(llm, tokens, kinds), feed_one_by_one(expected, tokens)
        else:
            got, wanted = feed(llm, tokens, 0, kinds), feed(expected, tokens, 0)
    assert np.array_equal(got, wanted, equal_nan=True)
    assert np.isnan(got[-1]).all() == (token != HUGE_TOKEN)
    assert trace.similarity.shape == (1, N_LAYER) and np.isnan(trace.similarity).all()
    assert not trace.skipped.any()
    assert llm.stats.tokens_never_tripped == 1


def test_finite_rows_beside_one_that_is_not_still_skip(broken):
    with ours(broken, TRIPS_AT_ONCE) as llm, llm.trace() as trace:
        llm.forward([*BEFORE, HUGE_TOKEN, *AFTER])
    assert trace.skipped.sum(axis=1).tolist() == [3] * 8 + [0] + [3] * 8


@pytest.fixture
def filled(model_file, tmp_path):
    """filled(kind, value): a file whose skipped blocks have `value` throughout ffn_down."""

    def write(kind, value):
        names = {f"blk.{il}.ffn_down.weight" for il in SKIPPED}
        return with_changed_tensors(
            model_file(kind, n_layer=N_LAYER),
            tmp_path / "filled.gguf",
            lambda name, data: data.fill(value) if name in names else None,
        )

    return write


@pytest.mark.parametrize("kind", FORMS)
def test_blocks_that_would_give_nan_can_be_skipped(model_file, filled, kind):
    zeroed = model_file(kind, n_layer=N_LAYER, zero_ffn_layers=SKIPPED)
    with plain(zeroed) as expected, ours(filled(kind, np.nan), FIXED) as llm:
        assert bits_equal(llm.forward(TOKENS), feed(expected, TOKENS, 0))
        assert np.isnan(feed(llm, TOKENS, 0)).any()


@pytest.mark.parametrize("kind", FORMS)
def test_nothing_of_a_large_block_stays_in_the_rows_of_a_mixed_batch_that_skip_it(model_file, filled, kind):
    """There the block is computed for all rows, and the residual then put back into some."""
    zeroed = model_file(kind, n_layer=N_LAYER, zero_ffn_layers=SKIPPED)
    with plain(zeroed) as expected, ours(filled(kind, 1e8), FIXED) as llm:
        mixed = llm.forward(TOKENS, [i < 8 for i in range(len(TOKENS))])
        assert bits_equal(mixed[:8], feed(expected, TOKENS, 0)[:8])


# --- contexts in which nothing can be skipped ------------------------------------------------------------------------


@pytest.mark.parametrize("il", [N_LAYER - 1, N_LAYER, -1])
def test_the_last_layer_always_runs(path, il):
    """It computes only the rows whose logits are wanted, so its rows are not the batch's."""
    why = r"negative|out of range.*\[0, 6\] \(the last layer always runs\)"
    with pytest.raises(ValueError, match=rf"layers: {il} is ({why})"):
        ffnskip_cpp.Llama(str(path), skip=SkipConfig(policy="fixed", layers=[il]), verbose=False)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_embedding_contexts_run_in_full(model_file, kind):
    file = str(model_file(kind))
    with contextlib.closing(llama_cpp.Llama(file, embedding=True, n_threads=1, verbose=False)) as llm:
        expected = llm.embed("hello there")
    for skip in ("auto", None):
        with contextlib.closing(ffnskip_cpp.Llama(file, skip=skip, embedding=True, n_threads=1, verbose=False)) as llm:
            assert llm.skip is None
            assert llm.embed("hello there") == expected
    with pytest.raises(Unsupported, match="an embedding context does not generate"):
        ffnskip_cpp.Llama(file, skip=0.25, embedding=True, verbose=False)


def test_a_recurrent_model_without_ffn_blocks_runs_in_full_and_is_refused_by_name(model_file):
    file = model_file("mamba")
    with plain(file) as expected, ours(file, "auto") as auto, ours(file, None) as dense:
        logits = feed(expected, TOKENS, 0)
        for llm in (auto, dense):
            assert llm.skip is None
            assert bits_equal(llm.forward(TOKENS), logits)
            with pytest.raises(Unsupported):
                llm.skip = 0.25
            assert bits_equal(llm.forward(TOKENS), logits)
    with pytest.raises(Unsupported, match="architecture 'mamba' has no FFN block that can be skipped") as error:
        ffnskip_cpp.Llama(str(file), skip=0.25, verbose=False)
    assert isinstance(error.value, ValueError)


def test_an_encoder_is_refused_by_name(model_file):
    file = str(model_file("bert"))
    with pytest.raises(Unsupported, match="architecture 'nomic-bert' does not generate token by token"):
        ffnskip_cpp.Llama(file, skip=0.25, verbose=False)
    for skip in ("auto", None):
        with contextlib.closing(ffnskip_cpp.Llama(file, skip=skip, n_threads=1, verbose=False)) as llm:
            assert llm.skip is None


def test_a_model_whose_weights_are_spread_over_devices_is_refused(path):
    """Split mode "tensor": what computes a node there is not the node that was edited. One device, the CPU, will do."""
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml.so.0"))
    library.ggml_backend_dev_by_name.restype = ctypes.c_void_p
    library.ggml_backend_dev_by_name.argtypes = [ctypes.c_char_p]
    devices = (ctypes.c_void_p * 2)(library.ggml_backend_dev_by_name(b"CPU"), None)

    params = llama_cpp.llama_model_default_params()
    params.devices = ctypes.addressof(devices)
    params.split_mode = llama_cpp.LLAMA_SPLIT_MODE_TENSOR
    params.n_gpu_layers = 99
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model
    context_params = llama_cpp.llama_context_default_params()
    context_params.flash_attn_type = 1  # this mode needs it
    controller = _core.Controller()
    context_params.cb_eval = ctypes.cast(controller.callback, llama_cpp.ggml_backend_sched_eval_callback)
    context_params.cb_eval_user_data = controller.user_data
    ctx = llama_cpp.llama_init_from_model(model, context_params)
    assert ctx
    try:
        with pytest.raises(Unsupported, match=r"layer 0.*its weights are spread over devices \(split mode 'tensor'\)"):
            controller.probe(ctx)
    finally:
        llama_cpp.llama_free(ctx)
        llama_cpp.llama_model_free(model)
