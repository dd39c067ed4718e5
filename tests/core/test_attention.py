"""Attention left out: of every row it is that of a file without it, bit for bit; else keys and values are there."""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import Llama, SkipConfig
from ffnskip_cpp.blocks import attention_blocks
from support import tiny_models
from support.reference import ReferenceLlama, SkipSettings
from support.running import (
    F32_CACHE,
    GREEDY,
    PROMPT_ROW,
    SETTINGS,
    SKIPPABLE_ROW,
    bits_equal,
    context_of,
    feed,
    feed_one_by_one,
    generate_step_by_step,
    last_logits,
    ours,
    perf,
    plain,
    typical_difference,
    with_changed_tensors,
    without_attention,
    without_ffn,
)

pytestmark = pytest.mark.filterwarnings("ignore:skip:UserWarning")

TOKENS = np.random.default_rng(7).integers(0, 256, 40).tolist()
PROMPT = TOKENS[:8]
N_GENERATED = 16
LEFT_OUT = (1, 2, 5)
TIMES_PLAIN = 4.0  # see test_oracles.py

KINDS = ["llama", "moe", "exp_probs", "phi3", "post_norm", "biased", "gptneox_sequential", "demo"]


def every_row(attention=LEFT_OUT, **options):
    given = {"max_skip": 0, "attention_layers": attention, "every_row": True, "warm_up_index": 0}
    return SkipConfig(**{**given, **options})


def per_token(attention=LEFT_OUT, **options):
    return every_row(attention, every_row=False, **options)


@pytest.fixture
def without(model_file, tmp_path):
    """A copy of a model's file without attention in some layers."""

    def make(kind, layers=LEFT_OUT):
        return without_attention(model_file(kind), layers, tmp_path / f"{kind}.gguf")

    return make


def hand_over(from_: llama_cpp.Llama, to: llama_cpp.Llama) -> None:
    """Keys and values of the one become those of the other."""
    size = llama_cpp.llama_state_seq_get_size(from_._ctx.ctx, 0)
    state = (ctypes.c_uint8 * size)()
    assert llama_cpp.llama_state_seq_get_data(from_._ctx.ctx, state, size, 0) == size
    assert llama_cpp.llama_state_seq_set_data(to._ctx.ctx, state, size, 0) == size


def taking_turns(path, zeroed, kinds, tokens, **options):
    """Logits of rows, each of which the model in full or that without attention decodes, on keys and values of both."""
    rows = []
    with plain(path, **options) as full, plain(zeroed, **options) as part:
        last = None
        for i, (token, kind) in enumerate(zip(tokens, kinds)):
            llm = part if kind == SKIPPABLE_ROW else full
            if last not in (None, llm):
                llm._ctx.kv_cache_seq_rm(-1, 0, -1)
                hand_over(last, llm)
            rows.append(feed(llm, [token], i))
            last = llm
    return np.concatenate(rows)


# --- of every row ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, SETTINGS["flash_attention_two_threads"]], ids=["one_thread", "flash_two"])
def test_attention_left_out_of_every_row_equals_a_file_without_it_bit_for_bit(
    model_file, without, kind, options, callback
):
    path, zeroed = model_file(kind), without(kind)
    with plain(zeroed, **options) as expected, ours(path, every_row(), callback=callback, **options) as llm:
        whole = feed(expected, TOKENS, 0)
        assert bits_equal(llm.forward(TOKENS), whole)
        assert bits_equal(feed(llm, TOKENS, 0), whole)  # prompt rows
        for row in (PROMPT_ROW, SKIPPABLE_ROW):
            assert bits_equal(feed_one_by_one(llm, TOKENS, row), feed_one_by_one(expected, TOKENS))
        got, want = (
            generate_step_by_step(llm, PROMPT, N_GENERATED),
            generate_step_by_step(expected, PROMPT, N_GENERATED),
        )
        assert got[0] == want[0] and bits_equal(got[1], want[1])
        assert perf(llm).n_reused > 0
        llm.reset()
        with llm.dense():
            assert not np.array_equal(llm.forward(TOKENS), whole)  # or else the test could not tell


@pytest.mark.parametrize("kind", ["llama", "post_norm", "demo"])
def test_short_gpt_equals_a_file_without_these_layers_bit_for_bit(model_file, without, tmp_path, kind):
    path, zeroed = model_file(kind), without_ffn(without(kind), LEFT_OUT, tmp_path / "both.gguf")
    config = SkipConfig(policy="short_gpt", layers=LEFT_OUT)
    assert config.label == "short_gpt" and config.warm_up_index > N_GENERATED
    with plain(zeroed) as expected, ours(path, config) as llm:
        want = generate_step_by_step(expected, PROMPT, N_GENERATED)
        got = generate_step_by_step(llm, PROMPT, N_GENERATED)
        assert got[0] == want[0] and bits_equal(got[1], want[1])
        assert list(llm.generate(PROMPT, max_tokens=N_GENERATED, **GREEDY)) == want[0]
        assert bits_equal(llm.forward(TOKENS), feed(expected, TOKENS, 0))
        blocks = {(block.layer, block.kind): block.bytes_per_token for block in llm.blocks}
        left_out = sum(size for (layer, _), size in blocks.items() if layer in LEFT_OUT)
        assert llm.stats.skip_ratio == pytest.approx(left_out / sum(blocks.values()))


def test_pieces_of_a_batch_leave_it_out(model_file, without):
    with plain(without("llama"), n_ubatch=3) as expected, ours(model_file("llama"), every_row(), n_ubatch=3) as llm:
        assert bits_equal(feed(llm, TOKENS, 0), feed(expected, TOKENS, 0))
        llm.eval(TOKENS)
        expected.reset()
        expected.eval(TOKENS)
        assert bits_equal(last_logits(llm), last_logits(expected))


def test_embeddings_leave_it_out(model_file, without):
    """Rows without tokens, as pictures are."""
    inputs = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)

    def decode(ctx, session):
        batch = llama_cpp.llama_batch_init(4, 64, 1)
        batch.n_tokens = 4
        ctypes.memmove(batch.embd, inputs.ctypes.data, inputs.nbytes)
        for i in range(4):
            batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = i, 1, 0, 1
        session.decode_batch(ctypes.addressof(batch))
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(ctx), shape=(4, tiny_models.N_VOCAB)).copy()
        llama_cpp.llama_batch_free(batch)
        return logits

    with context_of(without("llama"), None) as (ctx, session, _):
        expected = decode(ctx, session)
    with context_of(model_file("llama"), every_row()) as (ctx, session, _):
        assert bits_equal(decode(ctx, session), expected)
    with context_of(model_file("llama"), SkipConfig(policy="dense")) as (ctx, session, _):
        assert not np.array_equal(decode(ctx, session), expected)


def test_cells_that_were_not_written_are_never_attended_to(model_file, without, tmp_path):
    """The weights of keys and values are no numbers: a prompt in full fills the cache with NaN, and what comes later
    over it, without these layers' attention, neither computes nor reads any of it."""
    stems = tuple(f"blk.{il}.attn_{name}." for il in LEFT_OUT for name in "kv")
    poisoned = with_changed_tensors(
        model_file("llama"),
        tmp_path / "nan.gguf",
        lambda name, data: data.fill(np.nan) if name.startswith(stems) else None,
    )
    for options in (F32_CACHE, {"flash_attn": True}):
        with plain(without("llama"), **options) as expected, ours(poisoned, None, **options) as llm:
            llm.skip = every_row()
            with llm.dense():
                assert np.isnan(feed(llm, TOKENS, 0)).all()
            assert bits_equal(feed(llm, TOKENS, 0), feed(expected, TOKENS, 0))
            assert bits_equal(feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW), feed_one_by_one(expected, TOKENS))


def test_what_was_not_written_is_computed_again_before_others_attend_to_it(model_file):
    """A generation goes on with other settings: the prompt's keys and values were left out under the first."""
    path = model_file("llama")
    with plain(path) as expected, ours(path, every_row()) as llm:
        for each in (expected, llm):
            each.eval(PROMPT)
        with llm.skipping(every_row((3,))):
            llm.eval(TOKENS[8:9])
        with llm.dense():
            llm.eval(TOKENS[9:10])
            expected.eval(TOKENS[8:9])
            expected.eval(TOKENS[9:10])
            assert typical_difference(last_logits(llm), last_logits(expected)) < 1e-3
            llm.eval(TOKENS[10:11])
            expected.eval(TOKENS[10:11])
            assert typical_difference(last_logits(llm), last_logits(expected)) < 1e-3


def test_rows_whose_kinds_are_named_are_not_put_on_a_cache_with_gaps(model_file):
    with ours(model_file("llama"), every_row()) as llm:
        feed(llm, PROMPT, 0)
        with llm.dense(), pytest.raises(ValueError, match=r"positions 0 to 7 of sequence 0 .* decode them again first"):
            feed(llm, TOKENS[8:9], 8, SKIPPABLE_ROW)
        feed(llm, TOKENS[8:9], 8, SKIPPABLE_ROW)  # the same settings go on


@pytest.mark.parametrize("reuse", ["all", "full"])
def test_nothing_is_in_full_to_go_back_to(model_file, reuse):
    """A second turn builds on the first: what no row runs can't be computed again in full."""
    with ours(model_file("llama"), every_row(), reuse=reuse) as llm:
        text = list(llm.generate(PROMPT, max_tokens=6, **GREEDY))
        assert llm._controller.first_to_repeat(llm.n_tokens) == llm.n_tokens
        more = list(llm.generate([*PROMPT, *text, *TOKENS[:4]], max_tokens=6, **GREEDY))
    with ours(model_file("llama"), every_row()) as llm:
        assert list(llm.generate([*PROMPT, *text, *TOKENS[:4]], max_tokens=6, **GREEDY)) == more


@pytest.mark.parametrize("callback", [False, True])
def test_a_text_does_not_depend_on_what_ran_in_full_before_it(model_file, callback):
    """The same prompt, dense and then with attention left out of every row: none of the rows in full stay."""
    with ours(model_file("llama"), every_row(), callback=callback) as llm:
        alone = list(llm.generate(PROMPT, max_tokens=6, **GREEDY))
        with llm.dense():
            in_full = list(llm.generate(PROMPT, max_tokens=6, **GREEDY))
        assert list(llm.generate(PROMPT, max_tokens=6, **GREEDY)) == alone != in_full


def test_rows_in_full_whose_tokens_are_not_known_are_built_on(model_file):
    """A state without its account, as other programs keep them."""
    with ours(model_file("llama"), None) as llm:
        llm.eval(PROMPT)
        state = llm.save_state()
        del state.account
        llm.skip = every_row()
        llm.load_state(state)
        llm.eval(TOKENS[8:10])
        assert llm._controller.first_to_repeat(llm.n_tokens) == llm.n_tokens


def test_channels_beside_a_set_of_every_row(model_file, without, tmp_path):
    """Channels are each token's own choice: where all are kept, what is left is the set."""
    zeroed = without_ffn(without("llama"), (3,), tmp_path / "both.gguf")
    n_layer = 16
    config = SkipConfig(
        policy="channels", channel_thresholds=[1e-30] * 4 * n_layer, layers=(3,), attention_layers=LEFT_OUT,
        every_row=True, warm_up_index=0,
    )  # fmt: skip
    with plain(zeroed, **F32_CACHE) as expected, ours(model_file("llama"), config, **F32_CACHE) as llm:
        assert bits_equal(feed(llm, PROMPT, 0), feed(expected, PROMPT, 0))
        got = feed_one_by_one(llm, TOKENS[8:], SKIPPABLE_ROW, 8)
        assert typical_difference(got, feed_one_by_one(expected, TOKENS[8:], PROMPT_ROW, 8)) < 1e-4
        read = llm.input_bytes[..., 1]  # [n_layer, (qkv, o, up, down)]
        left_out = read[list(LEFT_OUT), :2].sum() + read[3, 2:].sum()
        assert llm.stats.skip_ratio == pytest.approx(left_out / read.sum())


# --- by tokens that may skip: keys and values are written -------------------------------------------------------------


PATTERNS = {
    "all": lambda n: [SKIPPABLE_ROW] * n,
    "behind_a_prompt": lambda n: [PROMPT_ROW] * 8 + [SKIPPABLE_ROW] * (n - 8),
    "every_other": lambda n: [SKIPPABLE_ROW if i % 2 else PROMPT_ROW for i in range(n)],
}


@pytest.mark.parametrize("kind", ["llama", "phi3", "post_norm", "biased", "demo"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("options", [{}, {"flash_attn": True}], ids=["", "flash"])
def test_tokens_leave_attention_out_on_keys_and_values_of_all(model_file, without, kind, pattern, options, callback):
    """As a model in full and one without attention would, taking turns on one cache."""
    path, kinds = model_file(kind), PATTERNS[pattern](len(TOKENS))
    expected = taking_turns(path, without(kind), kinds, TOKENS, **options)
    with ours(path, per_token(), callback=callback, **options) as llm:
        assert bits_equal(feed_one_by_one(llm, TOKENS, kinds), expected)
        assert (perf(llm).n_reused > 0) == (callback or pattern != "every_other")
        assert llm.stats.attention_skipped == kinds.count(SKIPPABLE_ROW) * len(LEFT_OUT)


def test_tokens_leave_attention_out_as_numpy_has_it(model_file):
    path, kinds = model_file("llama"), PATTERNS["every_other"](len(TOKENS))
    settings = SkipSettings(2.0, 1, 15, 0, layers=(3,), attention_layers=LEFT_OUT)
    expected, _ = ReferenceLlama(path, settings=settings, kv_f16=False).evaluate(
        TOKENS, [kind == SKIPPABLE_ROW for kind in kinds]
    )
    with ours(path, per_token(layers=(3,)), callback=True, **F32_CACHE) as llm:
        for got in (feed_one_by_one(llm, TOKENS, kinds), feed(llm, TOKENS, 0, kinds)):
            assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-4


@pytest.mark.parametrize("kind", ["llama", "phi3", "moe"])
def test_a_mixed_batch_equals_the_same_rows_one_by_one(model_file, kind):
    path = model_file(kind)
    kinds = [SKIPPABLE_ROW if may else PROMPT_ROW for may in np.random.default_rng(1).random(len(TOKENS)) < 0.5]
    with plain(path) as llm:
        allowed = TIMES_PLAIN * typical_difference(feed_one_by_one(llm, TOKENS), feed(llm, TOKENS, 0))
    config = SkipConfig(attention_layers=LEFT_OUT, sim_threshold=0.93, max_skip=2, warm_up_index=0)
    with ours(path, config) as llm:
        with llm.trace() as in_batch:
            batch = feed(llm, TOKENS, 0, kinds)
        with llm.trace() as alone:
            rows = feed_one_by_one(llm, TOKENS, kinds)
        dense = feed(llm, TOKENS, 0)
    assert in_batch.skipped.any()  # Algorithm 1 goes on beside it
    assert (in_batch.attention_skipped == np.isin(np.arange(in_batch.skipped.shape[1]), LEFT_OUT)).all()
    assert np.array_equal(in_batch.attention_skipped, alone.attention_skipped)
    assert typical_difference(batch, rows) <= allowed
    assert typical_difference(batch, dense) > 10 * allowed


def test_a_lora_adapter_of_attention_goes_with_it(model_file, without, tmp_path):
    lora = tiny_models.write_lora(tmp_path / "lora.gguf")
    stems = tuple(f"blk.{il}.attn_output" for il in LEFT_OUT)
    zeroed = with_changed_tensors(
        lora, tmp_path / "zeroed.gguf", lambda name, data: data.fill(0) if name.startswith(stems) else None
    )
    with plain(without("llama"), lora_path=str(zeroed)) as expected:
        want = feed(expected, TOKENS, 0), feed_one_by_one(expected, TOKENS)
    for config in (every_row(), per_token()):
        with ours(model_file("llama"), config, lora_path=str(lora)) as llm:
            assert bits_equal(feed(llm, TOKENS, 0, SKIPPABLE_ROW), want[0])
            assert bits_equal(feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW), want[1])


# --- what is told ----------------------------------------------------------------------------------------------------


def test_bytes_not_read(model_file):
    with ours(model_file("llama"), per_token()) as llm:
        feed_one_by_one(llm, TOKENS[:4], SKIPPABLE_ROW)
        blocks = attention_blocks(llm.blocks)
        # [64, 64] of Q and O, [32, 64] of K and V, and a norm, all float32
        assert {(block.bytes_per_token, block.bytes_of_cache) for block in blocks} == {(49408, 16640)}
        assert llm.stats.attention_bytes_not_read == 4 * len(LEFT_OUT) * (49408 - 16640)
        assert llm.stats.attention_skipped_per_layer.tolist() == [4 if il in LEFT_OUT else 0 for il in range(16)]
        assert llm.stats.attention_total == 4 * 16 and llm.stats.ffn_skipped == 0
        llm.reset_stats()
        with llm.skipping(every_row()):
            feed_one_by_one(llm, TOKENS[:4], SKIPPABLE_ROW)
        assert llm.stats.attention_bytes_not_read == 4 * len(LEFT_OUT) * 49408


@pytest.mark.parametrize("kind", tiny_models.PARALLEL)
def test_parallel_attention_is_refused_by_name_and_the_ffn_is_not(model_file, kind):
    with ours(model_file(kind), None) as llm:
        why = {block.why_not for block in attention_blocks(llm.blocks)[:-1]}
        assert why == {"attention and FFN are parallel: they are added to the residual together"}
        assert llm.skippable[:-1].all()
        with pytest.raises(
            ValueError, match=r"attention_layers: layer 1 has no attention that can be left out: .* parallel"
        ):
            llm.skip = per_token()


def test_a_profile_keeps_it(model_file, tmp_path):
    for config in (per_token(), every_row(), SkipConfig(policy="short_gpt", layers=(2, 3))):
        with ours(model_file("llama"), config) as llm:
            llm.save_profile(tmp_path / "profile.gguf")
        with ours(model_file("llama"), tmp_path / "profile.gguf") as llm:
            assert llm.skip is not None
            kept = ("attention_layers", "every_row", "layers", "max_skip", "label")
            assert all(getattr(llm.skip, name) == getattr(config, name) for name in kept)


def test_llama_pickles_with_it(model_file):
    config = every_row()
    assert SkipConfig(**config.asdict()) == config and isinstance(hash(config), int)
    assert "attention_layers" in repr(config) and issubclass(Llama, llama_cpp.Llama)
