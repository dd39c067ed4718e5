"""OpenAI's own client, over a real connection: what it gets is what llama_cpp gives to the same prompt."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import llama_cpp
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

import page_server
from ffnskip_cpp import Llama, SkipConfig, demo_model
from support.api_server import NO_END, api_server
from support.running import F32_CACHE
from support.tiny_models import EOS

pytestmark = pytest.mark.filterwarnings("ignore:skip")  # the values are not calibrated

OPTIONS = {"n_threads": 1, "n_threads_batch": 1, **F32_CACHE}
ASKED = [{"role": "user", "content": "Tell me about Stosus Stansen."}]
PROMPT = "Question: Where was Stosus Stansen born?\nAnswer:"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer"},
        "alive": {"type": "boolean"},
    },
    "required": ["name", "age", "alive"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server():
    with api_server(str(demo_model()), n_parallel=4, skip=None, **F32_CACHE) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def plain():
    """llama_cpp's own, with the logits of every token, which its logprobs need."""
    with closing(llama_cpp.Llama(str(demo_model()), n_ctx=512, logits_all=True, verbose=False, **OPTIONS)) as llm:
        yield llm


def skipping_text(config, prompt, n):
    with closing(Llama(str(demo_model()), skip=config, n_ctx=512, verbose=False, **OPTIONS)) as llm:
        asked = {"temperature": 0.0, "repeat_penalty": 1.0, "logit_bias": {1: -100.0, 5: -100.0}}
        return llm.create_completion(prompt, max_tokens=n, **asked)["choices"][0]["text"]


# ---- chats ----


def test_chat_is_llama_cpps(client, plain):
    expected = plain.create_chat_completion(ASKED, temperature=0, max_tokens=40, repeat_penalty=1.0)
    got = client.chat.completions.create(model="any", messages=ASKED, temperature=0, max_tokens=40)
    assert got.choices[0].message.content == expected["choices"][0]["message"]["content"] != ""
    assert got.choices[0].finish_reason == expected["choices"][0]["finish_reason"]
    assert got.choices[0].message.role == "assistant"
    assert got.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    assert got.usage.completion_tokens == expected["usage"]["completion_tokens"]
    assert got.model == "demo-q8_0"


def test_stream_is_the_same_text_and_ends_with_the_usage(client):
    asked = {"model": "", "messages": ASKED, "temperature": 0, "max_completion_tokens": 30}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert len([text for text in texts if text]) > 10
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 30
    assert len({chunk.id for chunk in chunks}) == 1


def test_messages_may_have_parts_and_what_a_client_got_before(client, plain):
    first = client.chat.completions.create(model="", messages=ASKED, temperature=0, max_tokens=10)
    parts = [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "about Stosus Stansen."}]
    messages = [
        {"role": "user", "content": parts},
        first.choices[0].message,
        {"role": "user", "content": "Where was Stosus Stansen born?"},
    ]
    said = {"role": "assistant", "content": first.choices[0].message.content}
    expected = plain.create_chat_completion(
        [*ASKED, said, messages[2]], temperature=0, max_tokens=12, repeat_penalty=1.0
    )
    got = client.chat.completions.create(model="", messages=messages, temperature=0, max_tokens=12)
    assert got.choices[0].message.content == expected["choices"][0]["message"]["content"]


def test_json_schema_holds_the_answer_to_it(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    for seed in range(3):
        got = client.chat.completions.create(
            model="", messages=ASKED, seed=seed, max_tokens=200, response_format=wanted
        )
        assert got.choices[0].finish_reason == "stop"
        person = json.loads(got.choices[0].message.content)
        assert set(person) == {"name", "age", "alive"}
        assert type(person["name"]) is str and type(person["age"]) is int and type(person["alive"]) is bool


def test_json_object_is_held_to_json(client):
    got = client.chat.completions.create(
        model="", messages=ASKED, seed=2, max_tokens=30, response_format={"type": "json_object"}
    )
    assert got.choices[0].message.content.lstrip().startswith("{")


def test_several_answers_are_those_of_the_seeds_that_follow(client):
    several = client.chat.completions.create(model="", messages=ASKED, seed=5, n=3, max_tokens=12, temperature=2)
    alone = [
        client.chat.completions.create(model="", messages=ASKED, seed=5 + i, max_tokens=12, temperature=2)
        for i in range(3)
    ]
    texts = [choice.message.content for choice in several.choices]
    assert texts == [one.choices[0].message.content for one in alone]
    assert len(set(texts)) == 3
    assert several.usage.prompt_tokens == alone[0].usage.prompt_tokens


def test_logprobs_of_a_chat(client, plain):
    expected = plain.create_chat_completion(
        ASKED, temperature=0, max_tokens=8, repeat_penalty=1.0, logprobs=True, top_logprobs=3
    )["choices"][0]["logprobs"]["content"]
    asked = {"model": "", "messages": ASKED, "temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    streamed = [
        token
        for chunk in client.chat.completions.create(**asked, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in whole]
    assert len(whole) == len(expected) == 8
    for got, wanted in zip(whole, expected):
        assert got.token == wanted["token"] == bytes(got.bytes).decode()
        assert got.logprob == pytest.approx(wanted["logprob"], abs=2e-3)
        assert [top.token for top in got.top_logprobs] == [top["token"] for top in wanted["top_logprobs"]][:3]


# ---- texts ----


def test_text_is_llama_cpps_with_its_logprobs(client, plain):
    asked = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8, "logprobs": 2}
    expected = plain.create_completion(**asked, repeat_penalty=1.0, logit_bias={1: -100.0, 5: -100.0})["choices"][0]
    got = client.completions.create(model="", **asked, logit_bias=NO_END).choices[0]
    assert got.text == expected["text"] != ""
    wanted = expected["logprobs"]
    assert got.logprobs.tokens == wanted["tokens"]
    assert got.logprobs.token_logprobs == pytest.approx(wanted["token_logprobs"], abs=2e-3)
    assert [set(top) for top in got.logprobs.top_logprobs] == [set(list(top)[:2]) for top in wanted["top_logprobs"]]
    for token, offset in zip(got.logprobs.tokens, got.logprobs.text_offset):
        assert got.text[offset:].startswith(token)


def test_prompts_as_text_and_ids_alone_and_together(client, plain):
    ids = plain.tokenize(PROMPT.encode(), special=True)
    asked = {"model": "", "temperature": 0, "max_tokens": 6}
    text = client.completions.create(**asked, prompt=PROMPT).choices[0].text
    assert client.completions.create(**asked, prompt=ids).choices[0].text == text
    both = client.completions.create(**asked, prompt=[ids, [*ids, *ids]])
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == text
    assert both.usage.prompt_tokens == 3 * len(ids)
    echoed = client.completions.create(**asked, prompt=[PROMPT, "The"], echo=True)
    assert echoed.choices[0].text == PROMPT + text
    assert echoed.choices[1].text.startswith("The")
    streamed = client.completions.create(**asked, prompt=PROMPT, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == PROMPT + text


def test_stop_texts_end_it_and_are_no_part_of_it(client):
    asked = {"model": "", "prompt": PROMPT, "temperature": 0, "max_tokens": 40}
    whole = client.completions.create(**asked, logit_bias=NO_END).choices[0].text
    middle = whole[len(whole) // 2 :][:4]
    for stop in (middle, ["never said", middle]):
        got = client.completions.create(**asked, logit_bias=NO_END, stop=stop).choices[0]
        assert got.text == whole[: whole.index(middle)]
        assert got.finish_reason == "stop"


def test_sixteen_at_once_get_what_each_gets_alone(model_file):
    """In single precision, where it is nothing to a row how many there are beside it."""
    tiny = str(model_file("llama", n_layer=12))
    with api_server(tiny, n_parallel=4, n_ctx=200, skip=None, **F32_CACHE) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:

            def text(i):
                skip = {} if i % 2 else {"sim_threshold": 0.85, "warm_up_index": 3, "max_skip": 4}
                asked = {"prompt": f"{i} times", "temperature": 0, "max_tokens": 5 + i, "logit_bias": {str(EOS): -100}}
                return client.completions.create(model="", **asked, extra_body={"skip": skip}).choices[0].text

            alone = [text(i) for i in range(16)]
            with ThreadPoolExecutor(16) as pool:
                assert list(pool.map(text, range(16))) == alone
    assert len(set(alone)) > 8


# ---- what is skipped ----


def test_a_request_has_its_own_settings_and_no_other_has_them(client):
    settings = {"sim_threshold": 0.95, "warm_up_index": 2, "max_skip": 6}
    asked = {"model": "", "prompt": PROMPT, "temperature": 0, "max_tokens": 24, "logit_bias": NO_END}
    dense = client.completions.create(**asked).choices[0].text
    skipping = client.completions.create(**asked, extra_body={"skip": settings}).choices[0].text
    assert skipping == skipping_text(SkipConfig(**settings), PROMPT, 24) != dense
    assert client.completions.create(**asked).choices[0].text == dense
    assert client.completions.create(**asked, extra_body={"skip": {"policy": "dense"}}).choices[0].text == dense


@pytest.mark.parametrize("is_chat", [True, False])
def test_traced_tokens_say_what_they_skipped(client, server, is_chat):
    skip = {"sim_threshold": 0.9, "warm_up_index": 3, "max_skip": 4, "trace": True}
    asked = {"model": "", "temperature": 0, "max_tokens": 12, "logit_bias": NO_END, "extra_body": {"skip": skip}}
    create = client.chat.completions.create if is_chat else client.completions.create
    asked |= {"messages": ASKED} if is_chat else {"prompt": PROMPT}
    chunks = list(create(**asked, stream=True))
    traces = [choice.skip for chunk in chunks for choice in chunk.choices if "layers" in getattr(choice, "skip", {})]
    assert len(traces) == 12
    assert [trace["may_skip"] for trace in traces] == [False] * 4 + [True] * 8
    assert all(trace["layers"] == [] for trace in traces[:4])
    assert all(len(trace["layers"]) == 4 and trace["attention"] == [] for trace in traces[4:])
    totals = chunks[-1].choices[0].skip["totals"]
    n_rows = 11  # the first token is the prompt's
    assert totals["skip_ratio"] == pytest.approx(8 * 4 / (n_rows * server.engine.llm.n_layer))
    assert totals["n_generated"] == 12 and totals["seconds"] >= totals["seconds_first"] > 0
    whole = create(**asked).choices[0].skip
    assert [token["layers"] for token in whole["tokens"]] == [trace["layers"] for trace in traces]


def test_nothing_is_traced_where_that_is_not_asked_for(client):
    got = client.completions.create(model="", prompt=PROMPT, max_tokens=3, extra_body={"skip": {"skip_ratio": 0.2}})
    assert not hasattr(got.choices[0], "skip")


def test_the_server_says_what_it_skips_and_takes_what_it_offers(client, server):
    said = server.http.get("/v1/skip").json()
    assert (said["model"], said["n_layer"], said["policy"], said["settings"]) == ("demo-q8_0", 16, "dense", None)
    assert set(said["policies"]) == {"dense", "ffn_skip", "random", "skip_decode"}  # channels were not stored
    for policy, ranges in said["policies"].items():
        for end in ("minimum", "maximum", "default"):
            values = {name: value[end] for name, value in ranges.items() if end in value}
            skip = {"policy": policy, **values}
            assert client.completions.create(model="", prompt="The", max_tokens=2, extra_body={"skip": skip}).choices


# ---- clients that leave, and numbers ----


def test_a_stream_closed_in_the_middle_ends_the_answer(client, server):
    before = server.engine.counts().cancelled
    with client.completions.create(model="", prompt="The", max_tokens=500, stream=True, logit_bias=NO_END) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 10
    while server.engine.counts().running and time.monotonic() < deadline:
        time.sleep(0.01)
    counts = server.engine.counts()
    assert (counts.running, counts.cancelled) == (0, before + 1)


def test_values_that_llama_cpps_clients_send(client, server):
    asked = {"model": "", "messages": ASKED, "temperature": 0, "max_tokens": 200, "seed": -1}
    usual = client.chat.completions.create(**{**asked, "seed": 1})
    got = client.chat.completions.create(
        **{**asked, "max_tokens": -1}, modalities=["text"], extra_body={"cache_prompt": False}
    )
    assert got.choices[0].message.content == usual.choices[0].message.content
    assert got.choices[0].finish_reason == "stop"
    response_format = {"type": "json_object", "schema": PERSON}
    said = server.http.post("/v1/chat/completions", json={**asked, "response_format": response_format}).json()
    assert set(json.loads(said["choices"][0]["message"]["content"])) == set(PERSON["required"])


def test_models_and_health(client, server):
    assert [model.id for model in client.models.list()] == ["demo-q8_0"]
    assert client.models.retrieve("demo-q8_0").object == "model"
    with pytest.raises(openai.NotFoundError, match="demo-q8_0"):
        client.models.retrieve("other")
    assert server.http.get("/health").json() == {"status": "ok"}


def test_metrics_are_what_the_engine_counted(client, server):
    client.completions.create(model="", prompt="The", max_tokens=3)
    text = server.http.get("/metrics").text
    samples = {
        (sample.name, sample.labels.get("end") or sample.labels.get("path")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    counts = server.engine.counts()
    assert samples["ffnskip_answers_total", "done"] == counts.done > 0
    assert samples["ffnskip_generated_tokens_total", None] == counts.n_generated > 0
    assert samples["ffnskip_first_token_seconds_count", None] == counts.done
    assert samples["ffnskip_http_requests_total", "/v1/completions"] > 0


def test_the_pages_stand_in_speaks_as_the_server_does(server):
    """What the page was driven with has the same fields."""

    def said(url):
        asked = {"messages": ASKED, "max_tokens": 3, "temperature": 0, "stream": True, "skip": {"trace": True}}
        lines = httpx.post(f"{url}/v1/chat/completions", json=asked).text.splitlines()
        return httpx.get(f"{url}/v1/skip").json(), [
            json.loads(line[6:]) for line in lines if line.startswith("data: {")
        ]

    with page_server.serving(seconds=0.0) as stand_in:
        skips, chunks = said(stand_in.url.rstrip("/"))
    real_skips, real_chunks = said(server.url)
    assert set(skips) <= set(real_skips)
    for policy, ranges in real_skips["policies"].items():
        for name, range_ in skips["policies"].get(policy, {}).items():
            assert set(ranges.get(name, range_)) >= set(range_)
    assert len(chunks) == len(real_chunks) == 5  # the role, three tokens, the totals
    for chunk, real in zip(chunks, real_chunks):
        assert set(chunk["choices"][0]) <= set(real["choices"][0])
        assert set(chunk["choices"][0]["delta"]) <= set(real["choices"][0]["delta"])
        assert set(chunk["choices"][0].get("skip", {})) == set(real["choices"][0].get("skip", {}))
    assert set(chunks[-1]["choices"][0]["skip"]["totals"]) == set(real_chunks[-1]["choices"][0]["skip"]["totals"])


def test_fields_that_mean_nothing_here_are_taken(client):
    more = {"user": "Olm", "store": False, "service_tier": "auto", "reasoning_effort": "low", "verbosity": "low"}
    answer = client.chat.completions.create(model="any", messages=ASKED, max_tokens=2, **more)
    assert answer.usage.completion_tokens == 2
