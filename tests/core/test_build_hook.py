"""Settings that are static need no callback: what they leave out is left out of graphs when libllama builds them.

test_oracles.py, test_graph_traps.py and test_attention.py run both ways, and show that they compute what they should.
"""

from __future__ import annotations

import numpy as np
import pytest
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from ffnskip_cpp import SkipConfig, UnsupportedModelError
from ffnskip_cpp._core import Controller
from support import tiny_models
from support.running import (
    GREEDY,
    PROMPT_ROW,
    SKIPPABLE_ROW,
    WARM_UP_ROW,
    bits_equal,
    context_of,
    feed,
    last_logits,
    ours,
    perf,
    plain,
)

pytestmark = pytest.mark.filterwarnings("ignore:skip:UserWarning")

PROMPT = list(range(20, 32))
SKIPPED = (1, 2, 5)
FIXED = SkipConfig(policy="fixed", layers=SKIPPED, warm_up_index=4)
LAYERS = SkipConfig(policy="short_gpt", layers=SKIPPED)
TRIPS = SkipConfig(sim_threshold=0.9, max_skip=3, warm_up_index=4)


@pytest.fixture
def path(model_file):
    return model_file("llama", n_layer=8)


def has_callback(llm):
    return bool(llm._context.params.cb_eval)


def generate(llm, n=40):
    return list(llm.generate(PROMPT, max_tokens=n, **GREEDY))


def eval_one_by_one(llm, tokens):
    """As a context made anew computes the output of its last token again, to the same bits."""
    for token in tokens:
        llm.eval([token], generated=False)


@pytest.mark.parametrize(
    ("config", "kind"),
    [(FIXED, kind) for kind in tiny_models.SKIPPABLE]
    + [(LAYERS, kind) for kind in tiny_models.SKIPPABLE if kind not in tiny_models.PARALLEL],
    ids=lambda value: value if isinstance(value, str) else "short_gpt" if value is LAYERS else "fixed",
)
def test_blocks_statistics_and_text_are_those_of_the_callback(model_file, kind, config):
    path = model_file(kind, n_layer=8)
    found = []
    for callback in (False, True):
        with ours(path, config, callback=callback) as llm, llm.trace() as trace:
            assert llm._controller.hooked != has_callback(llm) and has_callback(llm) == callback
            tokens = generate(llm)
            stats = llm.stats
            found.append(
                (
                    tokens,
                    [repr(block) for block in llm.blocks],
                    llm.fingerprint,
                    (stats.tokens, stats.ffn_skipped, stats.attention_skipped, stats.checks),
                    (stats.ffn_bytes_not_read, stats.bytes_left_out, stats.bytes_total),
                    stats.skipped_per_layer.tolist(),
                    llm.save_state().account,
                )
            )
        found[-1] += (trace.skipped.tolist(), trace.attention_skipped.tolist())
    assert found[0] == found[1]
    assert found[0][3][1] > 0


def test_what_no_row_runs_takes_no_graph_more_than_plain_llama_cpp(path):
    with plain(path) as expected, ours(path, LAYERS) as llm:
        for each in (expected, llm):
            feed(each, PROMPT, 0)
            for i in range(100):
                feed(each, [7], len(PROMPT) + i)
        assert llm._controller.hooked
        assert perf(llm).n_reused == perf(expected).n_reused


# --- a context that was made dense -----------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [None, "auto"])
def test_a_dense_context_has_no_callback(path, skip):
    with ours(path, skip) as llm:
        generate(llm)
        assert not has_callback(llm) and not llm._controller.hooked


@pytest.mark.parametrize("options", [{}, {"flash_attn": True}, {"lora": True}], ids=["", "flash_attention", "lora"])
@pytest.mark.parametrize("config", [FIXED, LAYERS, TRIPS], ids=["fixed", "short_gpt", "ffn_skip"])
def test_a_text_begun_dense_goes_on_as_one_of_a_context_made_for_the_settings(path, tmp_path, options, config):
    if options.pop("lora", False):
        options["lora_path"] = str(tiny_models.write_lora(tmp_path / "adapter.gguf", n_layer=8))
    logits = []
    for begun in (None, config):
        with ours(path, begun, **options) as llm:
            with llm.dense():
                eval_one_by_one(llm, PROMPT)
            llm.skip = config
            assert has_callback(llm) == (config is TRIPS)
            logits.append([last_logits(llm)])
            for _ in range(12):
                llm.eval([llm.sample(temp=0.0)])
                logits[-1].append(last_logits(llm))
            assert llm.stats.ffn_skipped > 0
    assert all(bits_equal(got, expected) for got, expected in zip(*logits))


def test_settings_may_change_from_static_to_others_and_back(path):
    with ours(path, FIXED) as llm, ours(path, TRIPS) as other:
        first = generate(llm)
        assert llm._controller.hooked
        llm.skip = TRIPS
        assert has_callback(llm) and not llm._controller.hooked
        assert generate(llm) == generate(other)
        llm.skip = FIXED
        assert generate(llm) == first
        llm.skip = None
        with plain(path) as dense:
            assert generate(llm) == [token for token, _ in zip(dense.generate(PROMPT, **GREEDY), range(40))]


# --- what can't do without the callback ------------------------------------------------------------------------------


def test_rows_that_differ_are_refused_and_nothing_is_decoded(path):
    with ours(path, FIXED) as llm:
        feed(llm, PROMPT, 0)
        with pytest.raises(UnsupportedModelError, match="rows that skip beside rows that don't"):
            feed(llm, [1, 2], len(PROMPT), [WARM_UP_ROW, SKIPPABLE_ROW])
        assert llm.stats.tokens == 0
        with plain(path) as dense:
            feed(dense, PROMPT, 0)
            assert bits_equal(feed(llm, [1, 2], len(PROMPT), PROMPT_ROW), feed(dense, [1, 2], len(PROMPT)))


@pytest.mark.parametrize("way", ["forward", "score", "eval"])
def test_where_rows_of_a_batch_differ_the_context_gets_the_callback_and_keeps_its_text(path, way):
    logits = []
    for callback in (False, True):
        with ours(path, FIXED, callback=callback) as llm:
            eval_one_by_one(llm, PROMPT)
            if way == "forward":
                logits.append(llm.forward([*PROMPT, *PROMPT], keep=len(PROMPT)))
            elif way == "score":
                logits.append(llm.score(PROMPT, [[1, 2, 3, 4, 5, 6], [7, 8]]).log_likelihood)
            else:
                llm.eval([1, 2, 3, 4, 5, 6], generated=True)
                logits.append(last_logits(llm))
            assert has_callback(llm) and llm.stats.ffn_skipped > 0
    assert np.array_equal(*logits)


@pytest.mark.parametrize(
    "options", [{"logits_all": True}, {"draft_model": LlamaPromptLookupDecoding()}], ids=["all", "draft"]
)
def test_logits_of_all_rows_take_the_callback(path, options):
    with ours(path, FIXED, **options) as llm:
        assert has_callback(llm)


def test_a_context_of_several_sequences_is_refused(path):
    with context_of(path, None, n_seq_max=2) as (ctx, _, _):
        controller = Controller()
        with pytest.raises(UnsupportedModelError, match="several sequences"):
            controller.hook(ctx)
        assert not controller.hooked


def test_settings_that_ask_each_token_are_refused(path):
    with ours(path, FIXED) as llm:
        with pytest.raises(UnsupportedModelError, match="policy 'ffn_skip' decides token by token"):
            llm._controller.config = TRIPS
        assert llm.skip == FIXED
