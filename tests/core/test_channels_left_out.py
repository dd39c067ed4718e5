"""Channels left out: what that changes, and what it does not, one by one and in a batch.

The oracles are plain llama.cpp, and llama.cpp on files whose weights are zero; test_channels_reference.py has NumPy's.
"""

from __future__ import annotations

import ctypes
import itertools

import llama_cpp
import numpy as np
import pytest
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from ffnskip_cpp.blocks import ffn_blocks
from ffnskip_cpp import SkipConfig, Unsupported, write_channels
from support import tiny_models
from support.channels import (
    AT_MOST,
    DAMPED,
    N_LAYER,
    ROWS,
    TENSORS,
    TOKENS,
    TYPES,
    TYPICAL,
    WARM_UP,
    WAYS,
    as_a_batch,
    channels,
    differences,
    one_by_one,
    only,
    shares,
    thresholds_of,
)
from support.channels_reference import KINDS, ReferenceExpertsChannels
from support.running import (
    GREEDY,
    PROMPT_ROW,
    SETTINGS,
    SKIPPABLE_ROW,
    WARM_UP_ROW,
    bits_equal,
    context_of,
    feed,
    feed_one_by_one,
    generate_step_by_step,
    last_logits,
    ours,
    perf,
    plain,
    with_changed_tensors,
)

pytestmark = pytest.mark.filterwarnings("ignore:skip:UserWarning")


WITH_EXPERTS = ("moe", "exp_probs")  # of tiny_models
MOST_TOKENS = 0.97  # for one or two of a hundred, rounding may choose another expert

# --- all channels, and none ------------------------------------------------------------------------------------------

NEARLY_NOTHING, EVERYTHING = [1e-30] * 4 * N_LAYER, 1e30


@pytest.mark.parametrize("type", [None, *TYPES])
def test_a_threshold_below_all_channels_generates_the_tokens_of_llama_cpp(model_file, type):
    path = model_file("llama", **DAMPED, **({} if type is None else {"quantized": type}))
    with plain(path) as expected, ours(path, channels(NEARLY_NOTHING, warm_up_index=0)) as llm:
        tokens, logits = generate_step_by_step(expected, TOKENS[:8], 100)
        assert list(llm.generate(TOKENS[:8], max_tokens=100, **GREEDY)) == tokens
        assert llm.stats.bytes_left_out == 0
        assert differences(generate_step_by_step(llm, TOKENS[:8], 100)[1], logits).max() < AT_MOST
        # Several rows are llama.cpp's own product of an input that is as it was.
        assert bits_equal(as_a_batch(llm), feed(expected, TOKENS, 0))


def test_the_demo_model_generates_the_tokens_of_llama_cpp_up_to_a_near_tie(model_file):
    """300 of them. What is near is what llama.cpp's own logits change by in a batch: codes that round otherwise add up
    over 16 layers."""
    path = model_file("demo")
    with plain(path, n_ctx=512) as expected:
        prompt = expected.tokenize(b"Where was")
        tokens, logits = generate_step_by_step(expected, prompt, 300)
        batch = feed(expected, prompt + tokens[:-1], 0)[len(prompt) - 1 :]
        n_layer = int(expected.metadata["llama.block_count"])
    with ours(path, channels([1e-30] * 4 * n_layer, warm_up_index=0), n_ctx=512) as llm:
        got, got_logits = generate_step_by_step(llm, prompt, 300)
    n_equal = next((i for i, (one, other) in enumerate(zip(got, tokens)) if one != other), 299)
    assert n_equal > 20
    assert np.median(differences(got_logits[:n_equal], logits[:n_equal])) < 2 * np.median(differences(batch, logits))
    margin = logits[n_equal].max() - logits[n_equal, got[n_equal]]
    assert margin < np.abs(batch - logits).max()


def test_thresholds_of_zero_leave_nothing_out(model_file):
    path = model_file("llama", **DAMPED, quantized="q8_0")
    with plain(path) as expected, ours(path, channels([0.0] * 4 * N_LAYER, warm_up_index=0)) as llm:
        assert bits_equal(one_by_one(llm), feed_one_by_one(expected, TOKENS))
        assert llm.stats.bytes_left_out == 0


ZEROED = {"qkv": "attn_output", "o": "attn_output", "up": "ffn_down", "down": "ffn_down"}
EMPTIED = (0, 2, N_LAYER - 1)  # layers


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("type", ["f16", "q8_0", "q5_k_s"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_channels_left_out_equal_a_file_without_what_they_lead_to_bit_for_bit(
    model_file, tmp_path, kind, type, setting
):
    path = model_file("llama", **DAMPED, quantized=type)
    names = {f"blk.{il}.{ZEROED[kind]}.weight" for il in EMPTIED}
    zeroed = with_changed_tensors(
        path, tmp_path / "zeroed.gguf", lambda name, data: data.fill(0) if name in names else None
    )
    thresholds = np.zeros((N_LAYER, len(KINDS)))
    thresholds[EMPTIED, KINDS.index(kind)] = EVERYTHING
    config = channels(thresholds.ravel().tolist(), warm_up_index=0)
    with plain(zeroed, **SETTINGS[setting]) as expected, ours(path, config, **SETTINGS[setting]) as llm:
        assert bits_equal(as_a_batch(llm), feed(expected, TOKENS, 0))
        assert bits_equal(feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW), feed_one_by_one(expected, TOKENS))


# --- which rows ------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(model_file):
    """(path, config that leaves out 40 % of all channels)."""
    path = model_file("llama", **DAMPED, quantized="q8_0")
    return path, channels(thresholds_of(path, 0.6))


def test_prompts_and_the_warm_up_run_in_full(model):
    path, config = model
    with plain(path) as expected, ours(path, config) as llm:
        assert bits_equal(feed(llm, TOKENS, 0), feed(expected, TOKENS, 0))
        assert bits_equal(feed_one_by_one(llm, TOKENS), feed_one_by_one(expected, TOKENS))
        assert llm.stats.tokens == 0
        assert bits_equal(
            feed_one_by_one(llm, TOKENS[:WARM_UP], WARM_UP_ROW), feed_one_by_one(expected, TOKENS[:WARM_UP])
        )
        assert (llm.stats.tokens, llm.stats.bytes_left_out) == (WARM_UP, 0)


def test_generated_tokens_leave_channels_out_from_warm_up_index_on(model):
    path, config = model
    for warm_up_index in (0, 1, 7):
        with ours(path, config.replace(warm_up_index=warm_up_index)) as llm, llm.trace() as trace:
            list(llm.generate(TOKENS[:20], max_tokens=30, **GREEDY))
        assert (shares(trace).min(axis=(1, 2)) < 1).tolist() == [i >= warm_up_index for i in range(29)]


@pytest.mark.parametrize("n_ubatch", [1, 2, 7, 64])
def test_rows_of_a_batch_keep_what_they_keep_alone(model, n_ubatch):
    path, config = model
    kinds = [[PROMPT_ROW, WARM_UP_ROW, SKIPPABLE_ROW][i] for i in np.random.default_rng(3).integers(0, 3, len(TOKENS))]
    traces, logits = [], []
    with ours(path, config, n_ubatch=n_ubatch) as llm:
        for way in (feed_one_by_one, lambda llm, tokens, kinds: feed(llm, tokens, 0, kinds)):
            with llm.trace() as trace:
                logits.append(way(llm, TOKENS, kinds))
            traces.append(trace)
    alone, batch = map(shares, traces)
    assert differences(logits[1], logits[0]).max() < AT_MOST
    assert np.abs(alone - batch).mean() < 1e-3
    assert len(alone) == sum(kind != PROMPT_ROW for kind in kinds)


def test_rows_without_logits_leave_channels_out_too(model):
    """The last layer computes the others alone."""
    path, config = model
    rows = [3, 50, 51, len(TOKENS) - 1]
    with ours(path, config) as llm:
        every = as_a_batch(llm)
        assert differences(llm.forward(TOKENS, rows=rows), every[rows]).max() < AT_MOST
        assert differences(llm.forward(TOKENS, rows=[-1]), every[-1:]).max() < AT_MOST


@pytest.mark.parametrize("one_alone", [True, False])
def test_a_token_that_is_not_finite_keeps_all_channels(model, tmp_path, one_alone):
    path, config = model

    def spoil(name, data):
        if name == "token_embd.weight":
            data[TOKENS[-1]] = np.nan

    spoilt = with_changed_tensors(path, tmp_path / "spoilt.gguf", spoil)
    rows = {"tokens": TOKENS[-1:] if one_alone else [*TOKENS[-1:], *TOKENS[:3]], "position": 0, "kind": SKIPPABLE_ROW}
    with ours(spoilt, config) as llm, llm.trace() as trace:
        assert np.isnan(feed(llm, **rows)[0]).all()
    assert (trace.kept[0] == 1).all()


def test_scores_of_texts_in_one_decode_are_those_of_each_alone(model):
    path, config = model
    continuations = [TOKENS[i : i + 30] for i in range(0, 90, 30)]
    with ours(path, config) as llm:
        together = llm.score(TOKENS[:9], continuations).log_likelihood
        alone = [llm.score(TOKENS[:9], [tokens]).log_likelihood[0] for tokens in continuations]
        with llm.dense():
            dense = llm.score(TOKENS[:9], continuations).log_likelihood
    assert together == pytest.approx(alone, abs=2e-3)
    assert np.abs(together - dense).max() > 2e-2


def decode_rows(session, ctx, rows, generated):
    """One decode of rows (sequence, position, token); logits of all."""
    batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
    batch.n_tokens = len(rows)
    for i, (sequence, position, token) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
        batch.seq_id[i][0], batch.logits[i] = sequence, 1
    session.decode_batch(ctypes.addressof(batch), generated)
    llama_cpp.llama_batch_free(batch)
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits(ctx), shape=(len(rows), tiny_models.N_VOCAB)).copy()


@pytest.mark.parametrize("adaptive", [False, True], ids=["given", "found"])
@pytest.mark.parametrize("memory", [{"kv_unified": True}, {}], ids=["one memory", "apart"])
def test_sequences_in_one_decode_leave_out_what_each_does_alone(model, memory, adaptive):
    path, config = model
    config = SkipConfig(policy="channels", warm_up_index=20) if adaptive else config
    texts = [TOKENS[i : i + 50] for i in (0, 30, 60)]
    prompts = [4, 9, 1]

    def run(sequences):
        """What is generated in one decode of all; a sequence whose text ends is in no further decode."""
        with context_of(path, config, n_seq_max=len(texts), **memory) as (ctx, session, controller):
            for s in sequences:
                rows = [(s, i, token) for i, token in enumerate(texts[s][: prompts[s]])]
                decode_rows(session, ctx, rows, generated=False)
            logits = {s: [] for s in sequences}
            for step in range(50):
                at = {s: prompts[s] + step for s in sequences if prompts[s] + step < len(texts[s])}
                rows = [(s, position, texts[s][position]) for s, position in at.items()]
                if rows:
                    for s, row in zip(at, decode_rows(session, ctx, rows, generated=True)):
                        logits[s].append(row)
            return logits, controller.stats

    together, of_all = run([0, 1, 2])
    alone = [run([s]) for s in range(3)]
    for s, (logits, _) in enumerate(alone):
        assert differences(np.stack(together[s]), np.stack(logits[s])).max() < AT_MOST
    assert of_all.tokens == sum(stats.tokens for _, stats in alone)
    assert of_all.bytes_left_out == pytest.approx(sum(stats.bytes_left_out for _, stats in alone), rel=2e-3)
    assert of_all.bytes_left_out > 0


# --- between decodes -------------------------------------------------------------------------------------------------


def test_dense_text_is_llama_cpps_before_within_and_after(model):
    path, config = model
    with plain(path) as expected, ours(path, None) as llm:
        dense = feed_one_by_one(expected, TOKENS)
        assert bits_equal(feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW), dense)
        llm.skip = config
        left_out = one_by_one(llm)
        assert not bits_equal(left_out, dense)
        with llm.dense():
            assert bits_equal(feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW), dense)
        assert bits_equal(one_by_one(llm), left_out)
        llm.skip = None
        assert bits_equal(feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW), dense)
        assert bits_equal(as_a_batch(llm), feed(expected, TOKENS, 0))


def test_rows_in_full_between_others_are_llama_cpps(model):
    """The graph is reused from token to token: what one left out must be there for the next."""
    path, _ = model
    config = channels([EVERYTHING] * 4 * N_LAYER, warm_up_index=0)
    with plain(path) as expected, ours(path, config) as llm:
        for i, token in enumerate(TOKENS[:20]):
            feed(expected, [token], i)
            feed(llm, [token], i, SKIPPABLE_ROW)
            feed(llm, [token], i)  # once more, in full
        assert bits_equal(feed(llm, TOKENS[20:21], 20), feed(expected, TOKENS[20:21], 20))


def test_graphs_are_reused_as_in_llama_cpp(model):
    path, config = model
    with plain(path) as expected, ours(path, config) as llm:
        reused = []
        for each in (expected, llm):
            feed(each, TOKENS[:1], 0)
            before = perf(each).n_reused
            feed_one_by_one(each, TOKENS, ROWS if each is llm else PROMPT_ROW)
            reused.append(perf(each).n_reused - before)
        assert reused[0] == reused[1] > len(TOKENS) / 2


def test_a_text_that_left_channels_out_is_evaluated_again_where_that_is_asked_for(model):
    path, config = model
    with plain(path) as expected, ours(path, config, reuse="full") as full, ours(path, config) as llm:
        text = TOKENS[:20] + list(llm.generate(TOKENS[:20], max_tokens=40, **GREEDY)) + TOKENS[20:30]
        list(full.generate(TOKENS[:20], max_tokens=40, **GREEDY))
        tokens = list(itertools.islice(expected.generate(text, **GREEDY), 40))
        following = feed(expected, text, 0)[-1:]
        with llm.dense():
            assert list(llm.generate(text, max_tokens=40, **GREEDY)) == tokens
        next(full.generate(text, **GREEDY))
        assert differences(last_logits(full), following).max() < AT_MOST


def test_a_control_vector_set_between_tokens_is_learnt(model):
    path, config = model
    data = tiny_models.control_vector(n_layer=N_LAYER, n_embd=DAMPED["n_embd"], scale=20.0)

    def steer(llm, wanted):
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) if wanted else None
        size = data.size if wanted else 0
        assert llama_cpp.llama_set_adapter_cvec(llm.ctx, pointer, size, DAMPED["n_embd"], 1, N_LAYER - 1) == 0

    with ours(path, config) as llm:
        logits = one_by_one(llm)
        steer(llm, True)
        steered = one_by_one(llm)
        assert np.median(differences(steered, logits)) > 10 * AT_MOST
        assert differences(as_a_batch(llm), steered).max() < AT_MOST
        steer(llm, False)
        assert bits_equal(one_by_one(llm), logits)


def test_a_draft_changes_no_token(model):
    path, config = model
    draft = LlamaPromptLookupDecoding(num_pred_tokens=5)
    with ours(path, config) as llm, ours(path, config, draft_model=draft) as drafting:
        prompt = TOKENS[:12] * 3
        tokens = list(llm.generate(prompt, max_tokens=60, **GREEDY))
        assert list(drafting.generate(prompt, max_tokens=60, **GREEDY)) == tokens


def test_a_context_that_is_used_again_gives_the_same(model):
    path, config = model
    with ours(path, config) as llm:
        first, again = (list(llm.generate(TOKENS[:20], max_tokens=60, **GREEDY)) for _ in range(2))
        other = list(llm.generate(TOKENS[20:40], max_tokens=60, **GREEDY))
        assert again == first == list(llm.generate(TOKENS[:20], max_tokens=60, **GREEDY))
    with ours(path, config) as llm:
        assert list(llm.generate(TOKENS[20:40], max_tokens=60, **GREEDY)) == other


def test_a_state_that_is_loaded_goes_on_as_before(model):
    path, config = model
    with ours(path, config) as llm, ours(path, config) as another:
        feed_one_by_one(llm, TOKENS[:40], ROWS[:40])
        state = llm.save_state()
        following = feed_one_by_one(llm, TOKENS[40:60], SKIPPABLE_ROW, 40)
        feed_one_by_one(llm, TOKENS[60:], SKIPPABLE_ROW)
        for each in (llm, another):
            each.load_state(state)
            assert bits_equal(feed_one_by_one(each, TOKENS[40:60], SKIPPABLE_ROW, 40), following)


def test_both_loops_of_generation_leave_out_the_same(model):
    path, config = model
    nothing = llama_cpp.LogitsProcessorList([lambda input_ids, scores: scores])
    for each in (config, SkipConfig(policy="channels", warm_up_index=20)):
        with ours(path, each) as llm:
            results = []
            for processor in (None, nothing):
                llm.reset()
                with llm.trace() as trace:
                    tokens = list(llm.generate(TOKENS[:20], max_tokens=60, logits_processor=processor, **GREEDY))
                results.append((tokens, trace.kept.tobytes()))
            assert results[0] == results[1]


# --- contexts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_any_number_of_threads_gives_the_same_bits(model, way):
    path, config = model
    logits = []
    for n_threads in (1, 2, 3):
        with ours(path, config, n_threads=n_threads, n_threads_batch=n_threads) as llm:
            logits.append(WAYS[way](llm))
    assert bits_equal(logits[1], logits[0]) and bits_equal(logits[2], logits[0])


def test_a_long_text_leaves_channels_out_to_its_end(model):
    """A graph is built anew every 256 positions."""
    path, config = model
    tokens = np.random.default_rng(5).integers(0, 256, 600).tolist()
    with ours(path, config, n_ctx=1024) as llm:
        with llm.trace() as trace:
            alone = feed_one_by_one(llm, tokens, SKIPPABLE_ROW)
        assert (shares(trace).min(axis=(1, 2)) < 0.9).all()
        batch = feed(llm, tokens, 0, SKIPPABLE_ROW)
        assert differences(alone, batch).max() < AT_MOST


def test_two_contexts_side_by_side_keep_to_themselves(model):
    path, config = model
    with ours(path, config) as first, ours(path, config.replace(layers=[1])) as second:
        expected = [one_by_one(llm) for llm in (first, second)]
        rows = [[], []]
        for i, token in enumerate(TOKENS):
            for llm, logits in zip((first, second), rows):
                logits.append(feed(llm, [token], i, ROWS[i]))
        assert all(bits_equal(np.concatenate(got), wanted) for got, wanted in zip(rows, expected))
        assert not bits_equal(*expected)


# --- other models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*tiny_models.SKIPPABLE, "gptneox_sequential"])
@pytest.mark.parametrize("tensors", TENSORS)
def test_an_architecture_leaves_channels_out_exactly(model_file, kind, tensors):
    """Kept are all, which is llama.cpp; one by one and in a batch are the same where some are not."""
    path = model_file(kind, n_layer=N_LAYER, embedding_rms=DAMPED["embedding_rms"])
    with (
        ours(path, channels(only(NEARLY_NOTHING, *TENSORS[tensors]), warm_up_index=0)) as llm,
        plain(path) as expected,
    ):
        batch = feed(expected, TOKENS, 0)
        if kind in WITH_EXPERTS:  # whose products are ours in a batch, too
            assert np.median(differences(as_a_batch(llm), batch)) < TYPICAL
        else:
            assert bits_equal(as_a_batch(llm), batch)
        assert np.median(differences(one_by_one(llm), feed_one_by_one(expected, TOKENS))) < TYPICAL
        with llm.trace() as trace:
            llm.skip = SkipConfig(policy="channels", tensors=tensors, warm_up_index=WARM_UP)
            logits = [way(llm) for way in WAYS.values()]
        assert np.median(differences(*logits)) < TYPICAL
        kept = trace.kept[:, :, np.isin(KINDS, TENSORS[tensors])].reshape(2, len(TOKENS), -1)
        assert np.nanmean(np.abs(kept[0] - kept[1])) < 1e-3
        assert 0.4 < np.nanmean(kept[:, 40:]) < 0.9


@pytest.fixture
def with_lora(model_file, tmp_path):
    """(path of a model, of an adapter for it)."""
    path = model_file("llama", n_layer=N_LAYER)
    return path, tiny_models.write_lora(tmp_path / "lora.gguf", n_layer=N_LAYER)


@pytest.mark.parametrize("config", [SkipConfig(policy="channels"), channels(NEARLY_NOTHING)], ids=["found", "given"])
def test_a_lora_adapter_is_refused_by_name(with_lora, config):
    path, adapter = with_lora
    with pytest.raises(Unsupported, match=r"channels.*blk\.0\..*lora_a"):
        with ours(path, config, lora_path=str(adapter)):
            pass


def test_a_lora_adapter_set_between_tokens_is_refused_by_name_and_dense_goes_on(with_lora):
    path, file = with_lora
    with ours(path, channels(NEARLY_NOTHING, warm_up_index=0)) as llm, plain(path, lora_path=str(file)) as expected:
        feed_one_by_one(llm, TOKENS[:10], SKIPPABLE_ROW)
        adapter = llama_cpp.llama_adapter_lora_init(llm.model, str(file).encode())
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
        assert llama_cpp.llama_set_adapters_lora(llm.ctx, adapters, 1, (ctypes.c_float * 1)(1.0)) == 0
        with pytest.raises(Unsupported, match=r"channels.*blk\.0\..*lora_a"):
            feed(llm, TOKENS[10:11], 10, SKIPPABLE_ROW)
        llm.skip = None
        assert bits_equal(feed(llm, TOKENS, 0), feed(expected, TOKENS, 0))


# --- experts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def experts(model_file):
    """(path, config that leaves out 40 % of all channels)."""
    path = model_file("moe", **DAMPED, quantized="q8_0")
    reference = ReferenceExpertsChannels(path)
    reference.evaluate(TOKENS)
    return path, channels(reference.thresholds_that_keep(0.6))


@pytest.mark.parametrize("kind", WITH_EXPERTS)
@pytest.mark.parametrize("type", [None, *TYPES])
def test_experts_that_keep_all_generate_the_tokens_of_llama_cpp(model_file, type, kind):
    path = model_file(kind, **DAMPED, **({} if type is None else {"quantized": type}))
    with plain(path) as expected, ours(path, channels(NEARLY_NOTHING, warm_up_index=0)) as llm:
        tokens, logits = generate_step_by_step(expected, TOKENS[:8], 100)
        assert list(llm.generate(TOKENS[:8], max_tokens=100, **GREEDY)) == tokens
        assert llm.stats.bytes_left_out == 0
        got = differences(generate_step_by_step(llm, TOKENS[:8], 100)[1], logits)
        assert np.median(got) < TYPICAL and np.quantile(got, MOST_TOKENS) < AT_MOST
        got = differences(as_a_batch(llm), feed(expected, TOKENS, 0))
        assert np.median(got) < TYPICAL and np.quantile(got, MOST_TOKENS) < AT_MOST


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("type", ["f16", "q8_0"])
@pytest.mark.parametrize("kind", TENSORS["ffn"])
def test_experts_without_channels_equal_a_file_without_what_they_lead_to_bit_for_bit(
    model_file, tmp_path, kind, type, setting
):
    path = model_file("moe", **DAMPED, quantized=type)
    names = {f"blk.{il}.ffn_down_exps.weight" for il in EMPTIED}
    zeroed = with_changed_tensors(
        path, tmp_path / "zeroed.gguf", lambda name, data: data.fill(0) if name in names else None
    )
    thresholds = np.zeros((N_LAYER, len(KINDS)))
    thresholds[EMPTIED, KINDS.index(kind)] = EVERYTHING
    config = channels(thresholds.ravel().tolist(), warm_up_index=0)
    with plain(zeroed, **SETTINGS[setting]) as expected, ours(path, config, **SETTINGS[setting]) as llm:
        assert bits_equal(as_a_batch(llm), feed(expected, TOKENS, 0))
        assert bits_equal(feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW), feed_one_by_one(expected, TOKENS))


def test_rows_of_experts_keep_to_themselves(experts):
    """In a batch where others leave nothing out, on any number of threads, and before and after plain tokens."""
    path, config = experts
    logits, kept = [], []
    for n_threads in (1, 2, 3):
        with ours(path, config, n_threads=n_threads, n_threads_batch=n_threads) as llm, plain(path) as expected:
            for way in WAYS.values():
                with llm.trace() as trace:
                    logits.append(way(llm))
                kept.append(shares(trace))
            assert bits_equal(feed(llm, TOKENS, 0), feed(expected, TOKENS, 0))
            llm.skip = None
            assert bits_equal(feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW), feed_one_by_one(expected, TOKENS))
    assert all(bits_equal(each, logits[i % 2]) for i, each in enumerate(logits))
    assert np.quantile(differences(*logits[:2]), MOST_TOKENS) < AT_MOST
    assert np.abs(kept[0] - kept[1]).mean() < 1e-3
    assert (kept[0][:WARM_UP] == 1).all() and (kept[0][WARM_UP:] < 1).mean() > 0.9


@pytest.mark.parametrize("n_ubatch", [7, 512])
def test_thresholds_of_experts_are_found_in_a_batch_as_one_by_one(model_file, n_ubatch):
    path = model_file("exp_probs", **DAMPED, quantized="q8_0")
    with ours(path, SkipConfig(policy="channels", warm_up_index=20), n_ubatch=n_ubatch) as llm:
        traces, logits = [], []
        for way in (as_a_batch, lambda llm: feed_one_by_one(llm, TOKENS, ROWS[:10] * 2 + ROWS[20:])):
            with llm.trace() as trace:
                logits.append(way(llm))
            traces.append(shares(trace))
        assert np.quantile(differences(*logits), MOST_TOKENS) < AT_MOST
        assert np.abs(traces[0] - traces[1]).mean() < 1e-3
        llm.reset_stats()
        feed_one_by_one(llm, TOKENS[:50], WARM_UP_ROW)
        llm.reset_stats()
        feed_one_by_one(llm, TOKENS[50:], SKIPPABLE_ROW, 50)
        assert llm.stats.skip_ratio == pytest.approx(1 / 3, abs=0.03)


def test_copies_of_experts_are_mapped_from_a_file(experts, tmp_path):
    path, config = experts
    beside = tmp_path / "model.gguf"
    beside.write_bytes(path.read_bytes())
    write_channels(beside, tensors="all", progress=False)
    with ours(beside, config) as mapping, ours(path, config) as copying:  # both: a model's copies outlive its last user
        assert mapping.weights_bytes == 0 < copying.weights_bytes
        assert bits_equal(one_by_one(mapping), one_by_one(copying))


# --- thresholds found for each text ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [None, 0.1, 0.5])
@pytest.mark.parametrize("tensors", TENSORS)
def test_without_thresholds_the_share_of_bytes_that_was_asked_for_is_left_out(model_file, tensors, ratio):
    path = model_file("llama", **DAMPED, quantized="q8_0")
    config = SkipConfig(policy="channels", skip_ratio=ratio, tensors=tensors, warm_up_index=30)
    with ours(path, config) as llm:
        feed_one_by_one(llm, TOKENS[:30], WARM_UP_ROW)
        assert llm.stats.bytes_left_out == 0
        llm.reset_stats()
        with llm.trace() as trace:
            feed_one_by_one(llm, TOKENS[30:], SKIPPABLE_ROW, 30)
        assert llm.stats.skip_ratio == pytest.approx(ratio or 1 / 3, abs=0.03)
        of_ffn = np.isin(KINDS, TENSORS["ffn"])
        assert (np.isnan(trace.kept) | (trace.kept < 1)).all()
        assert np.isnan(trace.kept[:, :, ~of_ffn]).all() == (tensors == "ffn")


@pytest.mark.parametrize("n_ubatch", [7, 512])
def test_thresholds_found_in_a_batch_are_those_found_one_by_one(model_file, n_ubatch):
    path = model_file("llama", **DAMPED, quantized="q8_0")
    with ours(path, SkipConfig(policy="channels", warm_up_index=20), n_ubatch=n_ubatch) as llm:
        traces, logits = [], []
        for way in (as_a_batch, lambda llm: feed_one_by_one(llm, TOKENS, ROWS[:10] * 2 + ROWS[20:])):
            with llm.trace() as trace:
                logits.append(way(llm))
            traces.append(shares(trace))
        assert differences(*logits).max() < AT_MOST
        assert np.abs(traces[0] - traces[1]).mean() < 1e-3


TURNS = [PROMPT_ROW] * 8 + [WARM_UP_ROW] * 20 + [SKIPPABLE_ROW] * 20
TURNS = [*TURNS, *TURNS, PROMPT_ROW, *[SKIPPABLE_ROW] * 13]  # fewer than tell anything


@pytest.mark.parametrize("n_ubatch", [16, 512])
def test_texts_of_several_turns_are_found_thresholds_for_in_each(model_file, n_ubatch):
    path = model_file("llama", **DAMPED, quantized="q8_0")
    with ours(path, SkipConfig(policy="channels", warm_up_index=20), n_ubatch=n_ubatch) as llm:
        traces, logits = [], []
        for way in (lambda llm: feed(llm, TOKENS, 0, TURNS), lambda llm: feed_one_by_one(llm, TOKENS, TURNS)):
            with llm.trace() as trace:
                logits.append(way(llm))
            traces.append(shares(trace))
        leaves_out = [(kept.min(axis=(1, 2)) < 1).tolist() for kept in traces]
        assert leaves_out == [[False, *[False] * 19, *[True] * 20] * 2 + [False] * 13] * 2
        assert np.abs(traces[0] - traces[1]).mean() < 1e-3
        assert differences(*logits).max() < AT_MOST


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channel_thresholds": [0.1, -1.0]}, "channel_thresholds: -1"),
        ({"channel_thresholds": [float("nan")] * 4}, "channel_thresholds: nan"),
        ({"channel_thresholds": [0.1] * 4, "policy": "ffn_skip"}, "channel_thresholds: only policy 'channels'"),
        ({"max_skip": 2}, "max_skip: 2"),
        ({"tensors": "attention"}, "tensors.*attention.*ffn.*all"),
        ({"skip_ratio": 1.5}, "skip_ratio: 1.5"),
    ],
)
def test_a_value_that_is_wrong_for_any_model_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SkipConfig(**{"policy": "channels", **options})


def test_thresholds_for_another_number_of_layers_are_refused(model):
    with pytest.raises(ValueError, match=rf"channel_thresholds: 12 for a model of {N_LAYER} layers"):
        with ours(model[0], channels([0.1] * 12)):
            pass


def test_weights_that_are_read_in_full_count_too(model_file):
    """Blocks left out whole, and inputs that keep all: the ratio is of all of the FFN's bytes."""
    tokens, n_layer, left_out = list(TOKENS), 16, 2
    some = np.zeros((n_layer, 4))
    some[1, KINDS.index("down")] = 1e-30
    with ours(model_file("llama"), SkipConfig(policy="channels", channel_thresholds=some, warm_up_index=0)) as llm:
        feed_one_by_one(llm, tokens, SKIPPABLE_ROW)
        assert llm.stats.bytes_left_out == 0
        total = llm.stats.bytes_total
        llm.skip = SkipConfig(policy="channels", channel_thresholds=some, warm_up_index=0, layers=(left_out,))
        llm.reset()
        llm.reset_stats()
        feed_one_by_one(llm, tokens, SKIPPABLE_ROW)
        of_ffn = ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")
        of_block = sum(
            weight.bytes for weight in ffn_blocks(llm.blocks)[left_out].weights if weight.name.endswith(of_ffn)
        )
        assert llm.stats.bytes_total == total == pytest.approx(llm.stats.tokens * n_layer * of_block, rel=0.1)
        assert llm.stats.skip_ratio == pytest.approx(1 / n_layer, rel=0.1)
