"""Answers that are generated at once are those that `Llama` gives to each request alone, and what one does is nothing
to the others: settings, cancelling, failing, reading slowly."""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import closing

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import Llama, SkipConfig, _core
from ffnskip_cpp.serving.engine import Engine
from ffnskip_cpp.serving.requests import Closed, QueueFull, Request, Sampling, Token
from ffnskip_cpp.serving.slots import Slots
from support.running import F32_CACHE
from support.tiny_models import EOS

pytestmark = pytest.mark.filterwarnings("ignore:skip")  # the values are not calibrated

OPTIONS = {"n_threads": 1, "n_threads_batch": 1, "n_ubatch": 32, "flash_attn": False, **F32_CACHE}
NO_END = {EOS: -100.0}
GREEDY = Sampling(temperature=0.0, logit_bias=NO_END)

CONFIGS = [
    "default",
    None,
    SkipConfig(sim_threshold=0.85, warm_up_index=3, max_skip=4),
    SkipConfig(sim_threshold=0.8, warm_up_index=0, max_skip=5, cold_s=1, cold_e=11),
    SkipConfig(policy="random", warm_up_index=1, max_skip=4),
    SkipConfig(policy="fixed", layers=[0, 4, 5], warm_up_index=2),
    SkipConfig(policy="short_gpt", layers=[5]),
    SkipConfig(policy="skip_decode", budget_decay=30),
]
DEFAULT = SkipConfig(sim_threshold=0.85, warm_up_index=5, max_skip=3, check_interval=2, attention_layers=[6])


@pytest.fixture(scope="module")
def tiny(model_file):
    return str(model_file("llama", n_layer=12))


@pytest.fixture
def engine(tiny):
    with closing(Engine(tiny, n_parallel=3, n_ctx=200, skip=DEFAULT, **OPTIONS)) as engine:
        yield engine


def tokens_of(text):
    return tuple(text.encode())


async def read(stream):
    return [item async for item in stream]


def answers(engine, *requests):
    """Items of each, which all begin in the same turn and are read at once."""

    async def all_of_them():
        with engine._state:
            streams = [engine.submit(request) for request in requests]
        return await asyncio.gather(*map(read, streams))

    return asyncio.run(asyncio.wait_for(all_of_them(), 60))


def ids(items):
    return [item.id for item in items[:-1]]


def text(items):
    return "".join(item.text for item in items[:-1])


class NoEnd(llama_cpp.LogitsProcessorList):
    """llama_cpp's way of NO_END."""

    def __init__(self):
        super().__init__([self._without])

    @staticmethod
    def _without(input_ids, scores):
        scores = np.copy(scores)
        scores[EOS] -= 100.0
        return scores


def alone(path, request, default=DEFAULT):
    """Of a `Llama` that has nothing else to do: ids, layers whose FFN and attention each row left out, and the share of
    weights that it read."""
    skip, sampling = default if request.skip == "default" else request.skip, request.sampling
    options = {**OPTIONS, "n_ubatch": 512, "swa_full": True}
    with closing(Llama(path, skip=skip, n_ctx=512, verbose=False, **options)) as llm, llm.trace() as trace:
        llm.set_seed(sampling.seed or 0)
        steps = llm.generate(
            list(request.prompt),
            max_tokens=request.max_tokens,
            temp=sampling.temperature,
            top_k=sampling.top_k,
            repeat_penalty=sampling.repeat_penalty,
            logits_processor=NoEnd(),
        )
        found = list(steps)
        bytes_of = llm.input_bytes.astype(float)
    layers = [[tuple(np.flatnonzero(row)) for row in rows] for rows in (trace.skipped, trace.attention_skipped)]
    least, most = bytes_of[..., 0], bytes_of[..., 1]
    read = [(least + (most - least) * np.nan_to_num(shares)).sum() / most.sum() for shares in trace.kept]
    return found, *layers, read


def test_who_wants_the_whole_answer_is_woken_once(engine, monkeypatch):
    request = Request(tokens_of("the weather"), 20, GREEDY)
    expected = answers(engine, request)[0]
    wakes = []

    async def whole():
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (wakes.append(args), call(*args)))
        return await engine.submit(request).rest()

    tokens, end = asyncio.run(asyncio.wait_for(whole(), 60))
    assert len(wakes) == 1
    assert (list(tokens), end.reason) == (expected[:-1], expected[-1].reason)


@pytest.mark.parametrize(
    ("given", "wanted"), [({}, "AUTO"), ({"flash_attn": True}, "ENABLED"), ({"flash_attn": False}, "DISABLED")]
)
def test_llama_cpp_decides_about_flash_attention(tiny, given, wanted):
    with closing(Engine(tiny, n_parallel=2, n_ctx=64, skip=None, **given)) as engine:
        assert engine.llm.context_params.flash_attn_type == getattr(llama_cpp, f"LLAMA_FLASH_ATTN_TYPE_{wanted}")


def test_each_answer_is_the_one_it_gets_alone(tiny):
    texts = ["north", "th" * 60, "the weather in the south, and what it was like", "a"]
    requests = []
    for i, (prompt, skip) in enumerate(itertools.islice(itertools.product(texts, CONFIGS), 32)):
        sampling = GREEDY if i % 3 else Sampling(temperature=1.2, top_k=30, seed=i, logit_bias=NO_END)
        requests.append(Request(tokens_of(f"{i} {prompt}"), 10 + i % 5, sampling, skip=skip, client=str(i % 4)))
    with closing(Engine(tiny, n_parallel=16, n_ctx=200, skip=DEFAULT, **OPTIONS)) as engine:
        found = answers(engine, *requests)
        counts = engine.counts()
    assert counts.done == 32 and counts.running == counts.queued == counts.failed == counts.cancelled == 0
    n_skipping = 0
    for request, items in zip(requests, found):
        expected, ffn, attention, _ = alone(tiny, request)
        assert ids(items) == expected, request
        # The row that gives the first token is the prompt's; the trace has those of generated tokens.
        assert [item.skipped for item in items[1:-1]] == ffn[: len(items) - 2], request
        assert [item.attention_skipped for item in items[1:-1]] == attention[: len(items) - 2], request
        n_skipping += any(item.skipped for item in items[1:-1])
    assert n_skipping > 20


def test_channels_are_found_for_each_answer(tiny):
    channels = SkipConfig(policy="channels", skip_ratio=0.4, warm_up_index=0)
    configs = [channels, channels.replace(skip_ratio=0.2), None, CONFIGS[2], channels.replace(layers=[3])]
    requests = [Request(tokens_of(f"{i} the weather"), 24, GREEDY, skip=config) for i, config in enumerate(configs * 3)]
    with closing(Engine(tiny, n_parallel=7, n_ctx=64, skip=channels, **OPTIONS)) as engine:
        found = answers(engine, *requests)
    for request, items in zip(requests, found):
        expected, _, _, kept = alone(tiny, request)
        assert ids(items) == expected
        if request.skip is not None and request.skip.policy == "channels":
            assert [item.kept for item in items[1:-1]] == pytest.approx(kept[:23], abs=1e-6)
            assert kept[15] == 1.0 and kept[16] < 0.9
            assert items[-1].skip_ratio == pytest.approx(1 - np.mean(kept[:23]), abs=1e-6)
        else:
            assert all(item.kept is None for item in items[:-1])


@pytest.mark.parametrize("swa_full", [True, False])
def test_a_sliding_window_is_no_matter(model_file, swa_full):
    path = str(model_file("post_norm", n_layer=6, sliding_window=24))
    config = SkipConfig(layers=[2, 4], max_skip=0, warm_up_index=2)
    first = Request(tokens_of("the weather in the north, " * 18), 30, GREEDY)  # a window's memory has 256 cells
    options = {"n_ctx": 600, "swa_full": swa_full, **OPTIONS}
    with closing(Engine(path, n_parallel=3, skip=config, **options)) as engine:
        requests = [first, Request(tokens_of("south"), 40, GREEDY), Request(tokens_of("a" * 200), 9, GREEDY, skip=None)]
        found = answers(engine, *requests)
        requests.append(Request(first.prompt + tuple(ids(found[0]))[:20] + tokens_of("!"), 9, GREEDY))
        found += answers(engine, requests[-1])
        requests.append(Request(first.prompt[:50] + tokens_of("!"), 9, GREEDY))
        found += answers(engine, requests[-1])
    assert [items[-1].n_cached for items in found[3:]] == [len(first.prompt) + 2, 50 if swa_full else 0]
    for request, items in zip(requests, found):
        assert ids(items) == alone(path, request, config)[0]


def test_an_answer_does_not_depend_on_what_a_slot_held(tiny, engine):
    """The same prompts again and again, each going on from what the one before left, under other settings."""
    first = Request(tokens_of("the weather in the north"), 20, GREEDY)
    [items] = answers(engine, first)
    chat = first.prompt + tuple(ids(items)) + tokens_of(" and")
    cached = []
    every_row = CONFIGS[6]  # prompts too: what others wrote is nothing to it, nor what it writes to them
    for skip in ("default", None, CONFIGS[2], "default", every_row, None, None):
        request = Request(chat, 12, GREEDY, skip=skip)
        [items] = answers(engine, request)
        assert ids(items) == alone(tiny, request)[0], skip
        cached.append(items[-1].n_cached > 0)
    assert cached == [True, True, True, True, False, False, True]


def test_what_is_there_already_is_not_evaluated_again(engine):
    prompt = tokens_of("the weather in the north, " * 3)
    for request, n_cached in [
        (Request(prompt, 4, GREEDY, skip=None), 0),
        (Request(prompt, 4, GREEDY, skip=None), len(prompt) - 1),
        (Request(prompt, 4, GREEDY, skip=None, reuses=False), 0),
        (Request(prompt[:30] + tokens_of("!"), 4, GREEDY, skip=None), 30),
        (Request(tokens_of("south"), 4, GREEDY, skip=None), 0),
        (Request(prompt[:20], 4, GREEDY), 19),
    ]:
        [items] = answers(engine, request)
        assert items[-1].n_cached == n_cached
        assert items[-1].n_prompt == len(request.prompt)
    assert engine.counts().n_cached == len(prompt) - 1 + 30 + 19


def test_what_is_there_is_evaluated_again_where_that_is_asked_for(tiny):
    request = Request(tokens_of("the weather"), 4, GREEDY, reuses=False)
    with closing(Engine(tiny, n_parallel=1, n_ctx=100, skip=None, **OPTIONS)) as engine:
        first, again = (answers(engine, request)[0] for _ in range(2))
    assert (again[-1].n_cached, ids(again)) == (0, ids(first))


def test_tokens_that_skipped_are_evaluated_again_unless_reuse_says_otherwise(tiny):
    for reuse, n_cached in (("full", lambda n: n + 5), ("all", lambda n: n + 19)):
        with closing(Engine(tiny, n_parallel=2, n_ctx=200, skip=CONFIGS[5], reuse=reuse, **OPTIONS)) as engine:
            prompt = tokens_of("the weather")
            [items] = answers(engine, Request(prompt, 20, GREEDY))
            chat = prompt + tuple(ids(items)) + tokens_of(" and")
            [items] = answers(engine, Request(chat, 4, GREEDY))
            assert items[-1].n_cached == n_cached(len(prompt)) - (3 if reuse == "full" else 0)


def test_a_long_prompt_does_not_stop_the_others(engine, monkeypatch):
    batches, choose = [], _core.Session.choose

    def counted(session, rows, generated):
        batches.append((generated, len(rows)))
        return choose(session, rows, generated)

    monkeypatch.setattr(_core.Session, "choose", counted)
    answers(
        engine,
        Request(tokens_of("a"), 20, GREEDY),
        Request(tokens_of("long " * 38), 2, GREEDY),
        Request(tokens_of("b"), 20, GREEDY),
    )
    prompts = [i for i, (generated, _) in enumerate(batches) if not generated]
    assert sum(n for generated, n in batches if not generated) == 192
    assert all(n <= 32 for generated, n in batches if not generated) and len(prompts) >= 6
    assert all(b - a > 1 for a, b in zip(prompts[1:], prompts[2:])), "generated tokens come between its parts"
    assert (True, 3) in batches, "generated tokens share a batch"


def test_likelihoods_are_those_of_the_model(tiny, engine):
    request = Request(tokens_of("the weather"), 6, GREEDY, n_logprobs=3, skip=None)
    [items] = answers(engine, request)
    with closing(llama_cpp.Llama(tiny, logits_all=True, n_ctx=256, verbose=False, **OPTIONS)) as llm:
        llm.eval([*request.prompt, *ids(items)])
        expected = llama_cpp.Llama.logits_to_logprobs(llm.scores[: llm.n_tokens])
    for item, row in zip(items[:-1], expected[len(request.prompt) - 1 :]):
        assert item.logprob == pytest.approx(row[item.id], abs=1e-4)
        best = np.argsort(-row)[:3]
        assert [token for token, _, _ in item.top] == list(best)
        assert [likelihood for _, _, likelihood in item.top] == pytest.approx(list(row[best]), abs=1e-4)
        assert [piece for _, piece, _ in item.top] == [llm_text(engine, token) for token in best]
    [items] = answers(engine, Request(tokens_of("the weather"), 2, GREEDY))
    assert items[0].logprob is None and items[0].top == ()


def llm_text(engine, token):
    return engine.llm.detokenize([int(token)]).decode("utf-8", errors="replace")


def test_the_last_message_counts(tiny, engine):
    request = Request(tokens_of("the weather"), 30, GREEDY, skip=CONFIGS[5])
    [items] = answers(engine, request)
    end = items[-1]
    assert (end.reason, end.n_prompt, end.n_generated, len(items)) == ("length", 11, 30, 31)
    assert end.skip_ratio == pytest.approx(27 * 3 / (29 * 12))
    assert 0 <= end.seconds_queue <= end.seconds_first <= end.seconds
    assert [item.may_skip for item in items[:-1]] == [False] * 3 + [True] * 27
    stats = engine.llm.stats
    assert (stats.tokens, stats.ffn_skipped) == (29, 81)


def test_grammars_seeds_and_biases(engine):
    grammar = 'root ::= "é€" ("x" | "y") "🦙."'
    [items] = answers(engine, Request(tokens_of("a"), None, Sampling(temperature=0.0, grammar=grammar)))
    assert text(items) in ("é€x🦙.", "é€y🦙.") and items[-1].reason == "stop"
    assert all(item.text == "" or (item.text.isprintable() and "�" not in item.text) for item in items[:-1])

    seeded = [Request(tokens_of("a"), 8, Sampling(temperature=1.5, seed=seed)) for seed in (1, 2, 1)]
    one, two, again = answers(engine, *seeded)
    assert ids(one) == ids(again) != ids(two)
    unseeded = answers(engine, *[Request(tokens_of("a"), 16, Sampling(temperature=1.5))] * 2)
    assert ids(unseeded[0]) != ids(unseeded[1])

    biased = Sampling(temperature=0.0, logit_bias={ord("q"): 1000.0})
    assert text(answers(engine, Request(tokens_of("a"), 3, biased))[0]) == "qqq"
    with pytest.raises(ValueError, match="grammar"):
        engine.submit(Request(tokens_of("a"), 3, Sampling(grammar="root ::= (")))
    with pytest.raises(ValueError, match="logit_bias: token 999"):
        engine.submit(Request(tokens_of("a"), 3, Sampling(logit_bias={999: 1.0})))


def test_stop_texts_are_no_part_of_the_answer(engine):
    grammar = Sampling(temperature=0.0, grammar='root ::= "one, two, three"')
    for stop, expected, reason in [
        ((), "one, two, three", "stop"),
        (("two",), "one, ", "stop"),
        (("three!", "e, "), "on", "stop"),
        (("four", "reef"), "one, two, three", "stop"),
    ]:
        [items] = answers(engine, Request(tokens_of("a"), 40, grammar, stop=stop))
        assert (text(items), items[-1].reason) == (expected, reason)
    [items] = answers(engine, Request(tokens_of("a"), 4, grammar, stop=("one, two",)))
    assert (text(items), items[-1].reason) == ("one,", "length"), (
        "what might have become a stop text is told at the end"
    )


def test_an_end_token_ends_it(engine):
    end = Sampling(temperature=0.0, logit_bias={EOS: 1000.0})
    [items] = answers(engine, Request(tokens_of("a"), 8, end))
    assert len(items) == 1 and (items[0].reason, items[0].n_generated) == ("stop", 0)


def test_the_context_is_full(tiny, engine):
    prompt = tokens_of("a" * 190)
    long, other = answers(engine, Request(prompt, None, GREEDY), Request(tokens_of("b"), 20, GREEDY))
    assert (long[-1].reason, long[-1].n_generated) == ("length", 11), "the last token need not fit"
    assert other[-1].n_generated == 20
    with pytest.raises(ValueError, match="prompt: it has 201 tokens, more than the 200"):
        engine.submit(Request(tokens_of("a" * 201)))
    with pytest.raises(ValueError, match="prompt: token ids must be in"):
        engine.submit(Request((1, 5000)))


def test_settings_of_a_request(engine):
    assert engine.skip == DEFAULT
    assert engine.skip_of({"skip_ratio": 0.25}) == SkipConfig(skip_ratio=0.25)
    assert engine.skip_of({"policy": "dense"}) is None
    for options, message in [
        ({"ratio": 0.25}, "skip: 'ratio' is not known"),
        ({"skip_ratio": "much"}, "skip_ratio"),
        ({"skip_ratio": 2.0}, "skip_ratio: 2 is outside"),
        ({"layers": [40], "max_skip": 0}, "layers: 40"),
        ({"policy": "channels"}, "started with it"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.skip_of(options)
    with pytest.raises(ValueError, match="layers: 40"):
        engine.submit(Request((1,), skip=SkipConfig(layers=[40], max_skip=0)))


# ---- one is nothing to the others ----


def test_cancelling_frees_the_slot(tiny):
    async def run(engine):
        begun = [engine.submit(Request(tokens_of("a"), None, GREEDY)) for _ in range(2)]
        waits = engine.submit(Request(tokens_of("b"), 5, GREEDY))
        gone = engine.submit(Request(tokens_of("c"), 5, GREEDY))
        gone.cancel()
        gone = await read(gone)
        for stream in begun:
            assert isinstance(await stream.__anext__(), Token)
        begun[0].cancel()
        first, waited = await read(begun[0]), await read(waits)
        begun[1].cancel()
        return gone, first, waited, await read(begun[1])

    with closing(Engine(tiny, n_parallel=2, n_ctx=5000, skip=None, **OPTIONS)) as engine:
        gone, first, waited, second = asyncio.run(asyncio.wait_for(run(engine), 60))
        counts = engine.counts()
    assert len(gone) == 1 and gone[0].reason == first[-1].reason == second[-1].reason == "cancelled"
    assert 0 < first[-1].n_generated < 4000
    assert (waited[-1].reason, waited[-1].n_generated) == ("length", 5)
    assert (counts.cancelled, counts.done, counts.running, counts.queued) == (3, 1, 0, 0)


def test_clients_take_turns(tiny, monkeypatch):
    begun, begin = [], Slots.begin
    monkeypatch.setattr(Slots, "begin", lambda self, job: (begun.append(job.request.client), begin(self, job)))

    async def run(engine):
        streams = [engine.submit(Request(tokens_of("a"), None, GREEDY, client="a"))]
        await streams[0].__anext__()
        for client in "aaabbc":
            streams.append(engine.submit(Request(tokens_of(client), 2, GREEDY, client=client)))
        streams[0].cancel()
        await asyncio.gather(*map(read, streams))

    with closing(Engine(tiny, n_parallel=1, n_ctx=5000, skip=None, **OPTIONS)) as engine:
        asyncio.run(asyncio.wait_for(run(engine), 60))
    assert "".join(begun) == "aabcaba"


def test_a_full_queue(tiny):
    with closing(Engine(tiny, n_parallel=1, n_ctx=5000, skip=None, max_queue=2, **OPTIONS)) as engine:
        request = Request(tokens_of("a"), None, GREEDY)
        streams = [engine.submit(request) for _ in range(3)]
        with pytest.raises(QueueFull):
            engine.submit(request)
        streams[1].cancel()
        asyncio.run(read(streams[1]))
        engine.submit(request)
        assert engine.counts().queued == 2


def test_who_reads_slowly_holds_nothing_up(tiny, engine):
    request = Request(tokens_of("the weather"), 30, GREEDY)
    unread = [engine.submit(request) for _ in range(6)]
    [items] = answers(engine, request)
    assert len(items) == 31 and engine.counts().done >= 4
    expected = alone(tiny, request)[0]

    async def later():
        return [await read(stream) for stream in unread]

    assert all(ids(items) == expected for items in asyncio.run(later()))


def test_a_failure_is_that_of_its_request(tiny, engine, monkeypatch):
    choose = _core.Session.choose

    def fails(session, rows, generated):
        if generated and any(seq == failing for _, seq, _, _ in rows):
            raise RuntimeError("no more")
        return choose(session, rows, generated)

    failing = 1
    monkeypatch.setattr(_core.Session, "choose", fails)
    requests = [Request(tokens_of(c * 9), 8, GREEDY, skip=skip) for c, skip in zip("abc", (None, *CONFIGS[2:4]))]
    found = answers(engine, *requests)
    assert [items[-1].reason for items in found] == ["length", "error", "length"]
    assert found[1][-1].message == "no more" and engine.counts().failed == 1
    failing = -1
    for request, items in zip(requests, answers(engine, *requests)):
        assert ids(items) == alone(tiny, request)[0]


def test_a_sampler_that_fails_is_that_of_its_request(tiny, engine, monkeypatch):
    choose = _core.Session.choose

    def fails(session, rows, generated):
        choices = choose(session, rows, generated)
        return ["the grammar fits nothing", *choices[1:]] if generated and len(rows) == 3 else choices

    monkeypatch.setattr(_core.Session, "choose", fails)
    requests = [Request(tokens_of(c), 8, GREEDY) for c in "abc"]
    found = answers(engine, *requests)
    assert [items[-1].reason for items in found] == ["error", "length", "length"]
    assert ids(found[1]) == alone(tiny, requests[1])[0]


def test_what_nobody_expects_ends_the_answers_and_not_the_engine(tiny, engine, monkeypatch):
    turn, n = Slots.turn, itertools.count()

    def fails(slots):
        if next(n) == 3:
            raise KeyError("surprise")
        turn(slots)

    monkeypatch.setattr(Slots, "turn", fails)
    requests = [Request(tokens_of(c), 8, GREEDY) for c in "abcdef"]
    found = answers(engine, *requests)
    assert [items[-1].reason for items in found] == ["error"] * 3 + ["length"] * 3
    assert found[0][-1].message == "KeyError: 'surprise'" and engine.counts().failed == 3
    assert ids(found[4]) == alone(tiny, requests[4])[0]


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_closing(tiny, grace):
    engine = Engine(tiny, n_parallel=1, n_ctx=3000, skip=None, **OPTIONS)
    streams = [engine.submit(Request(tokens_of("a"), 400, GREEDY)) for _ in range(2)]
    asyncio.run(streams[0].__anext__())
    closing_thread = threading.Thread(target=engine.close, args=(grace,))
    closing_thread.start()
    closing_thread.join()
    with pytest.raises(Closed):
        engine.submit(Request((1,)))
    reasons = [asyncio.run(read(stream))[-1].reason for stream in streams]
    assert reasons == (["length"] * 2 if grace else ["cancelled"] * 2)
    engine.close()


def test_nobody_else_decodes(engine):
    with pytest.raises(RuntimeError, match="at work in another thread"):
        engine.llm.eval([1, 2])
    assert engine.llm.tokenize(b"the") and engine.llm.fingerprint and engine.llm.n_layer == 12


def test_options_that_are_not_for_a_server(tiny):
    for options, message in [
        ({"n_parallel": 0}, "n_parallel: 0 is outside"),
        ({"n_parallel": 33}, "n_parallel: 33 is outside"),
        ({"n_ctx": 0}, "n_ctx: 0"),
        ({"max_queue": -1}, "max_queue: -1"),
        ({"logits_all": True}, "logits_all"),
        ({"skip": 7.0}, "skip_ratio: 7"),
    ]:
        with pytest.raises(ValueError, match=message):
            Engine(tiny, **{**OPTIONS, **options})


def test_models_that_cannot_skip_run_dense(model_file):
    path = str(model_file("mamba", n_layer=2))
    with closing(Engine(path, n_parallel=2, n_ctx=100, n_threads=1)) as engine:
        with pytest.raises(ValueError, match="mamba"):
            engine.skip_of({"skip_ratio": 0.25})
        requests = [Request(tokens_of(c * 5), 8, GREEDY) for c in "abab"]
        found = answers(engine, *requests)
        assert ids(found[0]) == ids(found[2]) and len(found[0]) == 9
