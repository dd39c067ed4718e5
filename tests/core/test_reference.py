"""The oracle is right: its arithmetic equals plain llama.cpp's, its skipping equals a written-out case.

Also: every tiny model loads, reads text and evaluates in plain llama.cpp under every setting the tests use.
"""

from __future__ import annotations

import ctypes
from contextlib import closing

import gguf
import llama_cpp
import numpy as np
import pytest

from support import tiny_models
from support.gemma_reference import ReferenceGemma
from support.reference import NOT_TRIPPED, ReferenceLlama, SkipSettings, Trace, cosine, feed_forward_or_skip, to_q8_0

TOKENS = np.random.default_rng(7).integers(0, 256, 48).tolist()

# Difference of logits relative to the largest logit.
SAME_ARITHMETIC = 1e-4  # F32 throughout: what is left is the order of summation
F16_CACHE = 1e-2  # the same roundings, but a value on the edge may round the other way
F16_ACCUMULATION = 2e-2  # flash attention also sums in F16, which the reference does not follow
Q8_0_ACTIVATIONS = 5e-2  # each product rounds to 1 part in 254: one flip shows; 16 random layers would amplify it

NEVER = 2.0  # above any cosine


def relative_difference(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


def typical_difference(got, expected):
    """Of the middle token: now and then rounding turns a near-tie of two experts or two 8-bit values."""
    return np.median(np.abs(got - expected).max(axis=-1)) / np.abs(expected).max()


def llama_logits(path, tokens=TOKENS, *, one_by_one=False, **options):
    """Logits of every position, (n_tokens, n_vocab), from plain llama.cpp."""
    options = {"n_threads": 1, "n_threads_batch": 1, "n_ctx": 256, "verbose": False, **options}
    with closing(llama_cpp.Llama(str(path), logits_all=True, **options)) as llm:
        for piece in [[token] for token in tokens] if one_by_one else [tokens]:
            llm.eval(piece)
        return np.array(llm.scores[: len(tokens)])


F32_CACHE = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}


@pytest.fixture(scope="module")
def llama_path(tmp_path_factory):
    return tiny_models.write_llama(tmp_path_factory.mktemp("models") / "llama.gguf")


def all_checked(path, **options):
    return ReferenceLlama(path, settings=SkipSettings(NEVER, 0, 16, 0), **options)


# --- dense arithmetic against plain llama.cpp ------------------------------------------------------------------------


@pytest.mark.parametrize("one_by_one", [False, True], ids=["batch", "one_by_one"])
@pytest.mark.parametrize("shape", [{}, {"n_layer": 4, "tied": True}, {"n_head": 8, "n_head_kv": 8, "n_ff": 160}])
def test_dense_logits_equal_plain_llama_cpp_with_f32_cache(tmp_path, shape, one_by_one):
    path = tiny_models.write_llama(tmp_path / "m.gguf", **shape)
    expected = llama_logits(path, one_by_one=one_by_one, **F32_CACHE)
    got, _ = ReferenceLlama(path, kv_f16=False).evaluate(TOKENS)
    assert relative_difference(got, expected) < SAME_ARITHMETIC


@pytest.mark.parametrize(
    "flash_attn, tolerance", [(False, F16_CACHE), (True, F16_ACCUMULATION)], ids=["plain", "flash"]
)
def test_dense_logits_are_close_to_llama_cpp_defaults(llama_path, flash_attn, tolerance):
    expected = llama_logits(llama_path, flash_attn=flash_attn)
    got, _ = ReferenceLlama(llama_path).evaluate(TOKENS)
    assert relative_difference(got, expected) < tolerance


@pytest.mark.parametrize("qtype", [tiny_models.Q8_0, tiny_models.F16], ids=lambda qtype: qtype.name)
def test_dense_logits_of_rounded_weights_are_close_to_llama_cpp(tmp_path, qtype):
    path = tiny_models.write_llama(tmp_path / "m.gguf", n_layer=4, qtype=qtype)
    expected = llama_logits(path, one_by_one=True)
    got, _ = ReferenceLlama(path).evaluate(TOKENS)
    assert relative_difference(got, expected) < Q8_0_ACTIVATIONS


@pytest.mark.parametrize("type", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k_s", "q5_k_s", "q6_k"])
def test_one_layer_follows_llama_cpp_exactly_and_only_with_rounded_activations(model_file, type):
    path = model_file("llama", n_layer=1, n_embd=256, n_ff=512, quantized=type)
    expected = llama_logits(path, **F32_CACHE)
    assert typical_difference(ReferenceLlama(path, kv_f16=False).evaluate(TOKENS)[0], expected) < SAME_ARITHMETIC
    exact, _ = ReferenceLlama(path, kv_f16=False, round_activations=False).evaluate(TOKENS)
    assert typical_difference(exact, expected) > 10 * SAME_ARITHMETIC


@pytest.mark.parametrize("one_by_one", [False, True], ids=["batch", "one_by_one"])
def test_dense_logits_of_gemma_equal_plain_llama_cpp(model_file, one_by_one):
    path = model_file("post_norm", n_layer=4)
    expected = llama_logits(path, one_by_one=one_by_one, **F32_CACHE)
    got, _ = ReferenceGemma(path, kv_f16=False).evaluate(TOKENS)
    assert typical_difference(got, expected) < SAME_ARITHMETIC  # gelu rounds to 16 bits


def test_dense_greedy_tokens_equal_plain_llama_cpp(llama_path):
    with closing(llama_cpp.Llama(str(llama_path), n_ctx=256, n_threads=1, verbose=False, **F32_CACHE)) as llm:
        generator = llm.generate(TOKENS[:8], temp=0.0, repeat_penalty=1.0)
        expected = [next(generator) for _ in range(40)]
    reference = ReferenceLlama(llama_path, kv_f16=False)
    result = reference.generate_greedy(
        TOKENS[:8], 40, sim_threshold=NEVER, cold_s=2, cold_e=14, max_skip=4, warm_up_index=0
    )
    assert result.tokens == expected
    assert not result.trace.skipped.any()


# --- Algorithm 1 against written-out cases ---------------------------------------------------------------------------


def test_cosine_of_written_out_vectors():
    a = np.array([[1.0, 0.0], [3.0, 4.0], [1.0, 2.0]])
    b = np.array([[1.0, 1.0], [6.0, 8.0], [-1.0, -2.0]])
    assert cosine(a, b) == pytest.approx([np.sqrt(0.5), 1.0, -1.0])


def test_q8_0_rounding_of_a_written_out_block():
    x = np.zeros(32)
    x[:4] = [127.0, -1.4, 0.6, 63.49]  # d = 1: the values round to whole numbers
    assert to_q8_0(x)[:4].tolist() == [127.0, -1.0, 1.0, 63.0]
    assert not to_q8_0(np.zeros(32)).any()


def turn(h, similarity):
    """What an FFN must add to the two-dimensional h for the cosine before and after to be `similarity`."""
    return np.tan(np.arccos(similarity)) * np.stack([-h[:, 1], h[:, 0]], axis=1)


def run_scripted_layers(similarity, settings, may_skip=True):
    """One token through layers whose FFNs turn the state by scripted similarities."""
    trace, state = Trace.empty(1, len(similarity)), np.array([[1.0, 0.0]])
    for il, value in enumerate(similarity):
        state = feed_forward_or_skip(il, state, lambda h, s=value: turn(h, s), settings, np.array([may_skip]), trace)
    return trace, state


SCRIPT = [0.5, 0.95, 0.8, 0.92, 0.99, 0.98, 0.97, 0.96, 0.5]


@pytest.mark.parametrize(
    "max_skip, skipped",
    [(0, []), (1, [4]), (2, [4, 5]), (3, [4, 5, 6]), (100, [4, 5, 6])],  # cold_e = 7 bounds the last two
)
def test_k_blocks_after_the_trip_are_skipped_but_none_beyond_the_adaptive_region(max_skip, skipped):
    trace, _ = run_scripted_layers(SCRIPT, SkipSettings(sim_threshold=0.9, cold_s=2, cold_e=7, max_skip=max_skip))
    assert trace.trip_layer.tolist() == [3]  # layer 1 is similar enough but cold
    assert np.flatnonzero(trace.skipped[0]).tolist() == skipped
    assert np.flatnonzero(np.isfinite(trace.similarity[0])).tolist() == [2, 3]
    assert trace.similarity[0, 2:4] == pytest.approx([0.8, 0.92])


def test_computed_blocks_update_the_state_and_skipped_ones_pass_it_on():
    _, state = run_scripted_layers(SCRIPT, SkipSettings(sim_threshold=0.9, cold_s=2, cold_e=7, max_skip=2))
    turned = sum(np.arccos(value) for il, value in enumerate(SCRIPT) if il not in (4, 5))
    assert cosine(state, np.array([[np.cos(turned), np.sin(turned)]])) == pytest.approx([1.0])


@pytest.mark.parametrize("threshold, may_skip", [(0.9, False), (0.981, True)], ids=["warm_up", "threshold_not_met"])
def test_nothing_is_skipped_without_permission_or_trip(threshold, may_skip):
    trace, _ = run_scripted_layers(SCRIPT, SkipSettings(threshold, cold_s=5, cold_e=8, max_skip=3), may_skip)
    assert trace.trip_layer.tolist() == [NOT_TRIPPED]
    assert not trace.skipped.any()


def test_reaching_the_threshold_exactly_trips():
    trace, _ = run_scripted_layers([1.0, 1.0, 1.0], SkipSettings(1.0, cold_s=0, cold_e=2, max_skip=5))
    assert trace.trip_layer.tolist() == [0]
    assert trace.skipped.tolist() == [[False, True, False]]


# --- Algorithm 1 in the model ----------------------------------------------------------------------------------------


def test_skipping_a_fixed_set_equals_a_file_without_these_ffn_blocks(tmp_path, llama_path):
    # Below any cosine: every token trips in layer 5 and skips 6, 7 and 8.
    skipping = ReferenceLlama(llama_path, settings=SkipSettings(-NEVER, cold_s=5, cold_e=14, max_skip=3))
    got, trace = skipping.evaluate(TOKENS, may_skip=True)
    assert (trace.trip_layer == 5).all()
    zero = tiny_models.write_llama(tmp_path / "zero.gguf", zero_ffn_layers=(6, 7, 8))
    assert np.allclose(got, ReferenceLlama(zero).evaluate(TOKENS)[0], rtol=0, atol=1e-9)


def test_rows_of_a_batch_decide_as_they_do_alone(llama_path):
    settings = SkipSettings(0.9, cold_s=2, cold_e=14, max_skip=4)
    may_skip = np.arange(len(TOKENS)) % 3 != 0
    batch = ReferenceLlama(llama_path, settings=settings)
    logits, trace = batch.evaluate(TOKENS, may_skip)
    alone = ReferenceLlama(llama_path, settings=settings)
    rows = [alone.decode(token, may) for token, may in zip(TOKENS, may_skip)]
    assert np.allclose(logits, np.stack([row for row, _ in rows]), atol=1e-3)
    assert np.array_equal(trace.skipped, Trace.joined([one for _, one in rows]).skipped)
    assert not trace.skipped[~may_skip].any()


def test_more_tokens_than_the_cache_holds_are_refused(llama_path):
    with pytest.raises(ValueError, match=r"0 \+ 48 tokens exceed the cache of 16"):
        ReferenceLlama(llama_path, n_ctx=16).evaluate(TOKENS)


def test_warm_up_tokens_run_the_full_model_and_decisions_then_vary(llama_path):
    result = ReferenceLlama(llama_path).generate_greedy(
        TOKENS[:8], 64, sim_threshold=0.9, cold_s=2, cold_e=14, max_skip=4, warm_up_index=10
    )
    trips = result.trace.trip_layer
    assert (trips[:10] == NOT_TRIPPED).all() and np.isnan(result.trace.similarity[:10]).all()
    assert len(result.tokens) == 64 and len(trips) == 63
    assert len(set(trips[10:].tolist())) >= 4
    assert (result.trace.skipped[10:].sum(axis=1) == 4).mean() > 0.9


def test_similarity_of_the_default_model_varies_by_layer_and_token(llama_path):
    _, trace = all_checked(llama_path).evaluate(TOKENS, may_skip=True)
    mean, spread = trace.similarity.mean(axis=0), trace.similarity.std(axis=0)
    assert 0.7 < mean.min() and mean.max() < 0.99
    assert mean[6:10].min() > mean[[0, -1]].max()
    assert spread.min() > 0.02


@pytest.mark.parametrize("size", [0.1, 0.5, 1.0])
def test_ffn_scale_sets_the_similarity(tmp_path, size):
    path = tiny_models.write_llama(tmp_path / "m.gguf", ffn_scale=size)
    _, trace = all_checked(path).evaluate(TOKENS, may_skip=True)
    assert np.median(trace.similarity) == pytest.approx(1 / np.sqrt(1 + size**2), abs=0.15)


# --- the tiny models in plain llama.cpp ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: write(folder / f"{kind}.gguf") for kind, write in tiny_models.SKIPPABLE.items()}


@pytest.mark.parametrize("kind", tiny_models.SKIPPABLE)
def test_kind_evaluates_alike_under_every_setting(paths, kind):
    expected = llama_logits(paths[kind])
    assert np.isfinite(expected).all()
    assert 0.5 < expected.std() < 10
    for options in ({"n_threads": 2}, {"flash_attn": True}, {"flash_attn": True, "n_threads": 2}, F32_CACHE):
        assert typical_difference(llama_logits(paths[kind], **options), expected) < F16_ACCUMULATION, options


@pytest.mark.parametrize("kind", tiny_models.SKIPPABLE)
def test_zero_ffn_layers_changes_nothing_but_the_end_of_these_ffn_blocks(tmp_path, paths, kind):
    zero = tiny_models.SKIPPABLE[kind](tmp_path / "zero.gguf", zero_ffn_layers=(2, 5))
    before, after = (
        {tensor.name: tensor.data for tensor in gguf.GGUFReader(str(path)).tensors} for path in (paths[kind], zero)
    )
    assert before.keys() == after.keys()
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert {name.split(".")[1] for name in changed} == {"2", "5"}
    assert all(name.split(".")[2].startswith(("ffn_down", "post_ffw_norm")) for name in changed)
    assert not any(after[name].any() for name in changed)
    assert relative_difference(llama_logits(zero), llama_logits(paths[kind])) > 0.05


def test_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path):
    first, second, other = (
        tiny_models.write_llama(tmp_path / f"{i}.gguf", n_layer=2, seed=seed).read_bytes()
        for i, seed in enumerate((0, 0, 1))
    )
    assert first == second != other


def test_a_longer_model_begins_with_the_layers_of_a_shorter_one(tmp_path):
    sizes = (tiny_models.write_llama(tmp_path / f"{n}.gguf", n_layer=n, ffn_scale=0.5) for n in (2, 4))
    short, long = ({t.name: t.data for t in gguf.GGUFReader(str(path)).tensors} for path in sizes)
    assert all(np.array_equal(data, long[name]) for name, data in short.items())


def test_any_text_survives_tokenising_and_bytes_are_tokens(llama_path):
    text = "the naïve 你好 🙂\n"
    with closing(llama_cpp.Llama(str(llama_path), vocab_only=True, verbose=False)) as llm:
        tokens = llm.tokenize(text.encode())
        assert llm.detokenize(tokens) == text.encode()
        assert tokens[0] == 256 and len(tokens) == len(text.encode()) - 1  # "th" is one token
        assert llm.tokenize("🙂".encode()) == list("🙂".encode())
        assert (llm.token_bos(), llm.token_eos(), llm.n_vocab()) == (
            tiny_models.BOS,
            tiny_models.EOS,
            tiny_models.N_VOCAB,
        )


def test_text_generation_works_in_plain_llama_cpp(llama_path):
    with closing(llama_cpp.Llama(str(llama_path), n_ctx=256, n_threads=1, verbose=False)) as llm:
        answer = llm("hello", max_tokens=8, temperature=0.0)
    assert answer["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("flash_attn", [False, True])
def test_bert_embeds(tmp_path, flash_attn):
    path = tiny_models.write_bert(tmp_path / "bert.gguf")
    with closing(llama_cpp.Llama(str(path), embedding=True, flash_attn=flash_attn, verbose=False)) as llm:
        embedding = np.array(llm.embed("hello there"))
    assert embedding.shape == (64,) and np.isfinite(embedding).all() and embedding.any()


def test_mamba_evaluates(tmp_path):
    path = tiny_models.write_mamba(tmp_path / "mamba.gguf")
    expected = llama_logits(path)
    assert np.isfinite(expected).all() and expected.std() > 0.5
    assert relative_difference(llama_logits(path, n_threads=2), expected) < SAME_ARITHMETIC


def test_lora_changes_logits(tmp_path, llama_path):
    adapter = tiny_models.write_lora(tmp_path / "lora.gguf")
    assert relative_difference(llama_logits(llama_path, lora_path=str(adapter)), llama_logits(llama_path)) > 0.05


def test_control_vector_changes_logits(llama_path):
    data = tiny_models.control_vector()
    with closing(llama_cpp.Llama(str(llama_path), n_ctx=256, logits_all=True, verbose=False)) as llm:
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        assert llama_cpp.llama_set_adapter_cvec(llm.ctx, pointer, data.size, 64, 1, 15) == 0
        llm.eval(TOKENS)
        got = np.array(llm.scores[: len(TOKENS)])
    assert relative_difference(got, llama_logits(llama_path)) > 0.05
