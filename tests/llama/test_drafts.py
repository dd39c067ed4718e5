"""A Llama whose drafts skip gives llama.cpp's own text, drafts as the skipping model does, and stops where it loses."""

from __future__ import annotations

import itertools
import pickle
from contextlib import ExitStack, closing

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import Llama, SkipConfig, SkippingDraft, UnsupportedModelError, drafts
from ffnskip_cpp.draft_pace import PLAIN, WINDOW, Pace
from support.running import F32_CACHE

PROMPT = "the weather in the north"
OPTIONS = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **F32_CACHE}

SETTINGS = {
    "blocks": SkipConfig(layers=[3, 8], max_skip=0, warm_up_index=0),
    "Algorithm 1": SkipConfig(sim_threshold=0.85, warm_up_index=12, max_skip=4),
    "channels": "channels",
}


@pytest.fixture
def open_models(model_file):
    with ExitStack() as stack:

        def open_one(cls=Llama, kind="llama", **options):
            path = str(model_file(kind, n_layer=12))
            return stack.enter_context(closing(cls(path, **{**OPTIONS, **options})))

        yield open_one


@pytest.fixture
def seconds(monkeypatch):
    """seconds(plain, drafted): what a token without a draft and a round with one take from now on."""
    now = [0.0]

    def take(plain: float, drafted: float) -> None:
        settle = SkippingDraft._settle

        def settled(draft, ids, _):
            now[0] += drafted if draft._drafted else plain
            settle(draft, ids, now[0])

        monkeypatch.setattr(SkippingDraft, "_settle", settled)

    return take


def take(generation, n):
    return list(itertools.islice(generation, n))


# --- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [{"temp": 0.0}, {"temp": 0.9}], ids=str)
@pytest.mark.parametrize("skip", SETTINGS.values(), ids=SETTINGS)
def test_the_text_is_that_of_llama_cpp(open_models, seconds, skip, sampling):
    seconds(plain=1.0, drafted=1.0)  # no draft is slower than none
    plain, llm = open_models(llama_cpp.Llama), open_models(draft_model=SkippingDraft(skip))
    for text in (PROMPT, PROMPT + " and in the south"):
        prompt = plain.tokenize(text.encode())
        for one in (plain, llm):
            one.set_seed(11)
        assert take(llm.generate(prompt, **sampling), 90) == take(plain.generate(prompt, **sampling), 90)
    stats = llm.draft_model.stats
    assert 0 < stats.accepted < stats.drafted and stats.acceptance == stats.accepted / stats.drafted
    assert llm.draft_model.skip_stats.skip_ratio > 0
    assert not llm._context.has_callback and llm.stats.ffn_total == 0, "the model itself is llama.cpp's own"


def test_completions_are_those_of_llama_cpp(open_models, seconds):
    seconds(plain=1.0, drafted=1.0)
    plain, llm = open_models(llama_cpp.Llama), open_models(draft_model=SkippingDraft(SETTINGS["blocks"]))
    asked = {"max_tokens": 60, "temperature": 0.0}
    assert llm(PROMPT, **asked)["choices"] == plain(PROMPT, **asked)["choices"]
    assert llm.draft_model.stats.drafted > 0


def test_drafts_end_with_the_context(open_models, seconds):
    seconds(plain=1.0, drafted=1.0)
    plain, llm = (
        open_models(llama_cpp.Llama, n_ctx=256),
        open_models(draft_model=SkippingDraft(SETTINGS["blocks"], 9), n_ctx=256),
    )
    prompt = plain.tokenize(PROMPT.encode())
    room = 256 - len(prompt)
    assert take(llm.generate(prompt, temp=0.0), room) == take(plain.generate(prompt, temp=0.0), room)


# --- the drafts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [SETTINGS["blocks"], SETTINGS["Algorithm 1"]], ids=["blocks", "Algorithm 1"])
def test_drafts_are_what_the_skipping_model_says(open_models, seconds, monkeypatch, skip):
    """The tokens of each draft, by a Llama that skips and is told what is generated."""
    seconds(plain=1.0, drafted=1.0)
    made, draft = [], SkippingDraft._draft

    def noted(self, session, ids, n_tokens):
        tokens = draft(self, session, ids, n_tokens)
        made.append((ids.tolist(), tokens))
        return tokens

    monkeypatch.setattr(SkippingDraft, "_draft", noted)
    llm, skipping = open_models(draft_model=SkippingDraft(skip)), open_models(skip=skip.replace(warm_up_index=0))
    prompt = llm.tokenize(PROMPT.encode())
    take(llm.generate(prompt, temp=0.0), 60)
    first = len(made[0][0]) - 1
    assert first == len(prompt) + max(PLAIN, skip.warm_up_index)
    assert llm.draft_model.stats.accepted < llm.draft_model.stats.drafted
    for ids, tokens in made:
        said = []
        skipping.reset()
        skipping.eval(ids[:first], generated=False)
        skipping.eval(ids[first:], generated=True)
        for _ in tokens:
            said.append(skipping.sample(temp=0.0))
            skipping.eval([said[-1]], generated=True)
        assert said == tokens


def test_drafts_follow_the_profile_of_the_model_which_runs_in_full(model_file, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(model_file("llama", n_layer=12).read_bytes())
    config = SETTINGS["blocks"]
    with closing(Llama(str(path), skip=config, **OPTIONS)) as llm:
        llm.save_profile(tmp_path / "model.ffnskip.gguf")
    with closing(Llama(str(path), draft_model=SkippingDraft(), **OPTIONS)) as llm:
        assert llm.skip is None
        assert llm.draft_model._controller.config == config
    (tmp_path / "model.ffnskip.gguf").unlink()
    with closing(Llama(str(path), draft_model=SkippingDraft(), **OPTIONS)) as llm:
        assert llm.draft_model._controller.config.policy == "channels"


def test_a_sliding_window_drafts_too(model_file, seconds):
    seconds(plain=1.0, drafted=1.0)
    path = str(model_file("post_norm", n_layer=8))
    options = {**OPTIONS, "n_ctx": 1024}
    with (
        closing(llama_cpp.Llama(path, **options)) as plain,
        closing(Llama(path, draft_model=SkippingDraft(SkipConfig(layers=[3], max_skip=0)), **options)) as llm,
    ):
        prompt = plain.tokenize(PROMPT.encode()) * 12
        for text in (prompt, prompt[:200] + prompt[100:]):
            assert take(llm.generate(text, temp=0.0), 80) == take(plain.generate(text, temp=0.0), 80)
        assert llm.draft_model.stats.drafted > 0


# --- whether they pay -------------------------------------------------------------------------------------------------


def test_drafting_stops_where_it_loses(open_models, seconds):
    seconds(plain=1.0, drafted=6.0)  # more than five tokens, all of which a round may give
    llm = open_models(draft_model=SkippingDraft(SETTINGS["blocks"], 4))
    prompt = llm.tokenize(PROMPT.encode())
    take(llm.generate(prompt, temp=0.0), 150)
    stats = llm.draft_model.stats
    assert (stats.stopped, stats.rounds) == (1, WINDOW)
    assert stats.seconds_plain == 1.0 and stats.seconds_drafted > 1.0
    take(llm.generate(prompt, temp=0.0), 150)
    assert llm.draft_model.stats.stopped == 2, "each generation sees for itself"


def test_pace():
    """Tokens without drafts, then rounds of three tokens; pauses of whoever takes the tokens do not matter."""
    for round_seconds, loses in ((2.9, False), (3.1, True)):
        pace, now = Pace(0), 0.0
        pace.see(0, now, drafted=False)
        for i in range(PLAIN):
            assert not pace.drafts
            now += 60.0 if i == 2 else 1.0
            pace.see(1, now, drafted=False)
        for i in range(WINDOW):
            assert pace.drafts
            now += 60.0 if i == 5 else round_seconds
            pace.see(3, now, drafted=True)
        assert pace.is_lost == loses == (not pace.drafts)
        assert pace.seconds_plain == 1.0


def test_the_warm_up_is_not_drafted():
    pace = Pace(30)
    for i in range(31):
        assert not pace.drafts
        pace.see(1, float(i), drafted=False)
    assert pace.drafts


# --- what can't be ----------------------------------------------------------------------------------------------------


def test_a_draft_that_skips_nothing_is_refused():
    for nothing in (None, SkipConfig(policy="dense")):
        with pytest.raises(ValueError, match="skips nothing"):
            SkippingDraft(nothing)
    for n in (0, 64):
        with pytest.raises(ValueError, match=rf"{n} is outside \[1, 63\]"):
            SkippingDraft("channels", n)
    with pytest.raises(TypeError):
        SkippingDraft("channels", 2.5)


def test_the_model_itself_does_not_skip(open_models):
    with pytest.raises(ValueError, match=r"runs in full; give SkippingDraft\(skip="):
        open_models(skip=0.25, draft_model=SkippingDraft(0.25))
    llm = open_models(skip="auto", draft_model=SkippingDraft(0.25))
    with pytest.raises(ValueError, match="runs in full"):
        llm.skip = 0.25
    with pytest.raises(ValueError, match="runs in full"), llm.skipping(0.25):
        pass
    with llm.dense():
        assert llm.skip is None


def test_a_draft_serves_one_model_at_a_time(model_file):
    path, draft = str(model_file("llama", n_layer=12)), SkippingDraft(SETTINGS["blocks"])
    ids = np.array([104, 105], np.intc)
    with pytest.raises(RuntimeError, match="while that is open"):
        draft(ids)
    with closing(Llama(path, draft_model=draft, **OPTIONS)) as llm:
        with pytest.raises(ValueError, match="drafts for another model"):
            Llama(path, draft_model=draft, **OPTIONS)
        take(llm.generate([104, 105], temp=0.0), 30)
    with pytest.raises(RuntimeError, match="while that is open"):
        draft(ids)
    with closing(Llama(path, draft_model=draft, **OPTIONS)) as llm:
        take(llm.generate([104, 105], temp=0.0), 30)


def test_settings_that_do_not_fit_are_refused(model_file):
    with pytest.raises(ValueError, match="99"):
        Llama(str(model_file("llama", n_layer=12)), draft_model=SkippingDraft(SkipConfig(layers=[99])), **OPTIONS)
    with pytest.raises(UnsupportedModelError):
        Llama(str(model_file("mamba", n_layer=4)), draft_model=SkippingDraft(0.25), **OPTIONS)


def test_a_draft_can_be_copied(open_models):
    draft = SkippingDraft(SETTINGS["blocks"], 3)
    llm = open_models(draft_model=draft)
    again = pickle.loads(pickle.dumps(llm))
    with closing(again):
        assert again.draft_model is not draft and repr(again.draft_model) == repr(draft)
        take(again.generate([104, 105], temp=0.0), 30)
    assert drafts.DraftStats() == pickle.loads(pickle.dumps(draft)).stats
