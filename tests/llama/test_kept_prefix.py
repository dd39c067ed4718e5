"""What a prefix shares with that of the call before is not evaluated again, and no score hangs on what came before.

The oracle is a Llama that has done nothing else.
"""

from __future__ import annotations

import contextlib

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import SkipConfig
from ffnskip_cpp._core import RowKind
from support.running import F32_CACHE, ours, perf, session_of

pytestmark = pytest.mark.filterwarnings("ignore:skip. ")  # the values are not calibrated

N_LAYER = 6
RNG = np.random.default_rng(8)
TEXT = RNG.integers(0, 250, 60).tolist()
# They begin alike: with 60 tokens, with 40, with 20; the last two are the text itself.
PREFIXES = [
    [*TEXT, *RNG.integers(0, 250, 5).tolist()],
    [*TEXT[:40], *RNG.integers(0, 250, 25).tolist()],
    [*TEXT[:20], *RNG.integers(0, 250, 10).tolist()],
    TEXT,
    TEXT[:35],
]
SKIP_PROMPTS = [None, 0, 12, 30]
CONTINUATIONS = [RNG.integers(0, 250, n).tolist() for n in (1, 6, 3, 20)]
LAYERS = [1, 3]
CONFIGS = {
    "dense": None,
    "layers": SkipConfig(layers=LAYERS, max_skip=0, warm_up_index=3),
    "other layers": SkipConfig(layers=[2, 4], max_skip=0, warm_up_index=15),
    "ffn_skip": SkipConfig(sim_threshold=0.93, max_skip=2, warm_up_index=2, check_interval=3),
    "random": SkipConfig("random", max_skip=3, warm_up_index=0),
    "every row": SkipConfig(layers=LAYERS, max_skip=0, every_row=True),
    "short_gpt": SkipConfig("short_gpt", layers=LAYERS),
    "skip_decode": SkipConfig("skip_decode", min_layers=3, budget_decay=40),
    "channels": SkipConfig("channels", skip_ratio=0.4, warm_up_index=18),
    "thresholds": SkipConfig("channels", channel_thresholds=[0, 0, 0.02, 0.02] * N_LAYER, warm_up_index=3),
    "channels, every row": SkipConfig("channels", skip_ratio=0.4, layers=LAYERS, every_row=True, warm_up_index=18),
}


@pytest.fixture(scope="module")
def path(model_file):
    return model_file("llama", n_layer=N_LAYER)


@pytest.fixture(scope="module")
def expected(path):
    """expected(name, prefix, skip_prompts): the log-likelihoods."""
    known = {}

    def score(name, which, skip_prompts):
        key = name, which, skip_prompts
        if key not in known:
            with ours(path, CONFIGS[name], **F32_CACHE) as llm:
                prefix = PREFIXES[which]
                n_prompt = None if skip_prompts is None else min(skip_prompts, len(prefix))
                known[key] = llm.score(prefix, CONTINUATIONS, skip_prompts=n_prompt).log_likelihood
        return known[key]

    return score


# What a program may do between two scores.
USES = {
    "nothing": lambda llm: None,
    "eval": lambda llm: llm.eval(TEXT[:50]),
    "eval of generated tokens": lambda llm: (llm.eval(TEXT[:12]), llm.eval(TEXT[12:50], generated=True)),
    "generate": lambda llm: list(llm.generate(TEXT[:30], temp=0.0, max_tokens=12)),
    "forward": lambda llm: llm.forward(TEXT),
    "named rows": lambda llm: llm.forward(TEXT, [RowKind.prompt] * 12 + [RowKind.skippable] * 48),
    "generate_batch": lambda llm: list(llm.generate_batch(PREFIXES, max_tokens=4, skip_prompts=12)),
    "state": lambda llm: (llm.eval(TEXT[:30]), llm.load_state(llm.save_state())),
    "turns": lambda llm: (
        llm.eval(TEXT[:12]),
        llm.eval(TEXT[12:25], generated=True),
        llm.eval(TEXT[25:30]),
        llm.eval(TEXT[30:50], generated=True),
    ),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"n_ubatch": 1}], ids=["shared", "one by one"])
def test_no_score_hangs_on_what_came_before(path, expected, seed, options):
    rng = np.random.default_rng(seed)
    done = []
    with ours(path, None, n_batch=32, **options, **F32_CACHE) as llm:
        for _ in range(40):
            name = done[-1][0] if done and rng.random() < 0.5 else str(rng.choice(list(CONFIGS)))
            use = "nothing" if rng.random() < 0.5 else str(rng.choice(list(USES)))
            which = int(rng.integers(len(PREFIXES)))
            skip_prompts = SKIP_PROMPTS[rng.integers(len(SKIP_PROMPTS))]
            if llm.skip != CONFIGS[name]:
                llm.skip = CONFIGS[name]
            other = CONFIGS[str(rng.choice(list(CONFIGS)))]
            with llm.skipping(other) if rng.random() < 0.3 else contextlib.nullcontext():
                llm.reset()
                USES[use](llm)
            done.append((name, use, which, skip_prompts))
            n_prompt = None if skip_prompts is None else min(skip_prompts, len(PREFIXES[which]))
            got = llm.score(PREFIXES[which], CONTINUATIONS, skip_prompts=n_prompt).log_likelihood
            np.testing.assert_allclose(got, expected(name, which, skip_prompts), atol=4e-3, err_msg=str(done[-4:]))


def read(session, begin, end, n_prompt):
    session.prompt(TEXT[begin:end], max(0, n_prompt - begin), 0)


def under(controller, name):
    controller.config = CONFIGS[name] or SkipConfig("dense")


def named(session, controller):
    session.decode(TEXT[:50], 0, [RowKind.prompt] * 12 + [RowKind.skippable] * 38)


def counted_anew(session, controller):
    read(session, 0, 25, 12)
    controller.count_from_here()
    read(session, 25, 50, 12)


def a_second_prompt(session, controller):
    read(session, 0, 25, 12)
    read(session, 25, 30, 30)
    read(session, 30, 50, 30)


def settings_in_the_warm_up(session, controller):
    under(controller, "other layers")  # whose warm-up is 15
    read(session, 0, 25, 12)
    under(controller, "layers")
    read(session, 25, 50, 12)


def settings_of_the_rest(session, controller):
    read(session, 0, 25, 12)
    under(controller, "other layers")
    read(session, 25, 50, 12)
    under(controller, "layers")


def a_prompt_behind_the_warm_up(session, controller):
    read(session, 0, 25, 12)
    read(session, 25, 30, 30)


def settings_of_the_prompt(session, controller):
    under(controller, "every row")
    read(session, 0, 12, 12)
    under(controller, "layers")
    read(session, 12, 14, 12)


def settings_that_came_back(session, controller):
    read(session, 0, 50, 12)
    under(controller, "dense")
    under(controller, "channels")


@pytest.mark.parametrize(
    ("name", "happened", "n_prompt", "most"),
    [
        ("layers", lambda session, _: read(session, 0, 50, 12), 12, 50),
        ("layers", lambda session, _: read(session, 0, 50, 12), 30, 12),
        ("layers", named, 12, 12),
        ("layers", counted_anew, 12, 25),
        ("layers", a_second_prompt, 12, 25),
        ("layers", a_second_prompt, 30, 15),
        ("layers", settings_in_the_warm_up, 12, 12),
        ("layers", settings_of_the_rest, 12, 25),
        ("layers", settings_of_the_prompt, 12, 0),
        ("other layers", a_prompt_behind_the_warm_up, 17, 17),
        ("channels", lambda session, _: read(session, 0, 50, 12), 12, 50),
        ("channels", settings_that_came_back, 12, 12),
        ("dense", lambda session, _: session.decode(TEXT[:50], 0), 50, 50),
    ],
)
def test_no_more_is_kept_than_would_come_out_now(path, name, happened, n_prompt, most):
    """Of 50 tokens, of which a prompt is to run in full up to n_prompt: none from `most` on."""
    with session_of(path, SkipConfig("dense"), n_seq_max=3, kv_unified=True) as (session, controller):
        under(controller, name)
        happened(session, controller)
        kept = session.keep(TEXT, n_prompt)
        assert kept <= most and session.n_used(0) == kept
        if most == 50:
            assert kept == most


def test_what_was_left_behind_makes_room(path):
    endless = llama_cpp.LlamaGrammar.from_string("root ::= [a-z] root", verbose=False)
    prompts, options = [[3] * 40 + [i] * 80 for i in (1, 2)], {"temp": 0.0, "max_tokens": 8, "grammar": endless}
    with ours(path, CONFIGS["layers"], n_ctx=256, **F32_CACHE) as llm:
        one, other = (completion.text for completion in llm.generate_batch(prompts, **options))
        stop = one[1:3]
        assert stop not in other
        next(llm.generate_batch(prompts, stop=[stop], **options))  # and the other one goes on
        assert llm.score([3] * 250, [[1, 2, 3]]).n_tokens.tolist() == [3]


@pytest.mark.parametrize("skip_prompts", SKIP_PROMPTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_what_two_prefixes_share_is_evaluated_once(path, name, skip_prompts):
    with ours(path, CONFIGS[name], **F32_CACHE) as llm:
        n_before = [0]

        def n_evaluated(which):
            llm.score(PREFIXES[which], [[1]], skip_prompts=skip_prompts)
            n_before.append(perf(llm).n_p_eval + perf(llm).n_eval)
            return n_before[-1] - n_before[-2]

        n_evaluated(0), n_evaluated(3)
        assert n_evaluated(3) == 1  # for its output
        # Channels are told by the first 18 generated tokens, all of which have to be shared.
        told = name.startswith("channels") and skip_prompts == 30
        assert n_evaluated(1) == (35 if told else 25)
        assert n_evaluated(0) == (35 if told else 25)
        assert n_evaluated(4) == (5 if told else 1)


@pytest.mark.parametrize(("kind", "options"), [("mamba", {}), ("post_norm", {"sliding_window": 24})])
def test_a_memory_that_forgets_is_read_from_the_start(model_file, kind, options):
    file = model_file(kind, **options)
    with ours(file, None, swa_full=False, n_ubatch=16, **F32_CACHE) as llm:
        for which in (0, 1, 1, 3, 0):
            got = llm.score(PREFIXES[which], CONTINUATIONS).log_likelihood
            with ours(file, None, swa_full=False, n_ubatch=16, **F32_CACHE) as fresh:
                alone = fresh.score(PREFIXES[which], CONTINUATIONS).log_likelihood
            np.testing.assert_allclose(got, alone, atol=4e-3)


def test_prompts_of_two_batches_begin_alike(path):
    prompts = [[*TEXT, i] for i in range(5)]
    with ours(path, CONFIGS["layers"], **F32_CACHE) as llm:
        expected = [completion.tokens for completion in llm.generate_batch(prompts, temp=0.0, max_tokens=1)]
        before = perf(llm).n_p_eval + perf(llm).n_eval
        again = [completion.tokens for completion in llm.generate_batch(prompts, temp=0.0, max_tokens=1)]
        assert again == expected and perf(llm).n_p_eval + perf(llm).n_eval - before == 1 + len(prompts)


def test_the_context_is_empty_afterwards(path):
    with ours(path, CONFIGS["layers"], **F32_CACHE) as llm, ours(path, CONFIGS["layers"], **F32_CACHE) as fresh:
        llm.score(TEXT, CONTINUATIONS, skip_prompts=3)
        assert llm.n_tokens == 0
        for model in (llm, fresh):
            model.eval(TEXT[:9])
        assert list(llm.generate(TEXT[:9], temp=0.0, max_tokens=9)) == list(
            fresh.generate(TEXT[:9], temp=0.0, max_tokens=9)
        )
