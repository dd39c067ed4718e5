"""Tools: what the model is told of them, calls it is held to, and calls found in what it writes."""

from __future__ import annotations

import json

import jinja2
import openai
import pytest

from ffnskip_cpp import demo_model
from ffnskip_cpp.serving.bodies import Message, Tool
from ffnskip_cpp.serving.chat import chat_prompt
from ffnskip_cpp.serving.tools import ToolReader
from support.api_server import api_server
from support.running import plain, with_chat_template

TEMPLATE = """\
{{ bos_token }}{% if tools %}<|system|>
{{ tools | tojson }}<|end|>
{% endif %}{% for message in messages %}{{ '<|' + message['role'] + '|>
' + message['content'] }}{% for call in message.tool_calls %}<tool_call>{{ call.function.name }}\
 {{ call.function.arguments.city }}</tool_call>{% endfor %}<|end|>
{% endfor %}<|assistant|>
"""
CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "required": ["city"]}
CITY["$defs"] = {"City": {"enum": ["Stunburg", "Kilddale"]}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
ASKED = [{"role": "user", "content": "What is the weather in Stunburg?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(with_chat_template(demo_model(), tmp_path_factory.mktemp("tools") / "tools.gguf", TEMPLATE))


@pytest.fixture(scope="module")
def client(model):
    with api_server(model, n_parallel=2, skip=None) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            yield client


def ask(client, **fields):
    return client.chat.completions.create(
        model="", messages=ASKED, tools=TOOLS, seed=1, **{"max_tokens": 150, **fields}
    )


def test_a_tool_that_must_be_called_is_called_by_its_schema(client):
    for choice, names in (
        ("required", {"weather", "now"}),
        ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
    ):
        got = ask(client, tool_choice=choice).choices[0]
        assert got.finish_reason == "tool_calls"
        assert got.message.content is None
        (call,) = got.message.tool_calls
        assert call.type == "function" and call.function.name in names
        if call.function.name == "weather":
            assert json.loads(call.function.arguments)["city"] in ("Stunburg", "Kilddale")


def test_a_stream_has_the_same_call(client):
    choice = {"type": "function", "function": {"name": "weather"}}
    whole = ask(client, tool_choice=choice).choices[0].message.tool_calls[0].function
    chunks = list(ask(client, tool_choice=choice, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert "".join(call.function.name or "" for call in calls) == whole.name
    assert "".join(call.function.arguments for call in calls) == whole.arguments
    assert all(not chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_without_a_call_it_is_a_text(client):
    fields = {"temperature": 0, "logit_bias": {"1": -100, "5": -100}, "max_tokens": 12}
    got = ask(client, **fields).choices[0]
    assert got.message.content and got.message.tool_calls is None and got.finish_reason == "length"
    streamed = [chunk.choices[0].delta.content or "" for chunk in ask(client, **fields, stream=True)]
    assert "".join(streamed) == got.message.content
    without = client.chat.completions.create(model="", messages=ASKED, **fields)
    none = ask(client, **fields, tool_choice="none")
    assert none.choices[0].message.content == without.choices[0].message.content


def test_tools_that_do_not_exist_are_not_called(client):
    for choice in ({"type": "function", "function": {"name": "other"}}, {"type": "function"}, "always"):
        with pytest.raises(openai.BadRequestError) as refusal:
            ask(client, tool_choice=choice)
        assert refusal.value.param == "tool_choice" or refusal.value.param.startswith("tool_choice.")


def test_the_template_gets_tools_calls_and_results(model):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kilddale"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    tools = [{**tool, "function": {"description": "", "parameters": {}, **tool["function"]}} for tool in TOOLS]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json.dumps
    seen = [{"role": "system", "content": "Be brief."}, *ASKED, {**messages[2], "content": ""}, messages[3]]
    seen[2]["tool_calls"] = [{"function": {"name": "weather", "arguments": {"city": "Kilddale"}}}]
    with plain(model, n_ctx=512) as llm:
        ids, _ = chat_prompt(llm, [Message(**message) for message in messages], [Tool(**tool) for tool in tools])
        said = llm.detokenize(list(ids), special=True).decode()
        expected = environment.from_string(TEMPLATE).render(
            messages=seen, tools=json.loads(json.dumps([Tool(**tool).model_dump() for tool in tools])), bos_token=""
        )
    assert "<tool_call>weather Kilddale</tool_call>" in said and "Be brief." in said
    assert said.endswith(expected)


CALL = '{"name": "weather", "arguments": {"city": "Kilddale"}}'


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("It rains.", "It rains.", []),
        (CALL, "", ["weather"]),
        (f"  [{CALL}, {CALL}]", "", ["weather", "weather"]),
        (CALL.replace("arguments", "parameters"), "", ["weather"]),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", ["weather"]),
        (f"I look.\n<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "I look.\n", ["weather", "weather"]),
        ("a < b and <tool", "a < b and <tool", []),
        ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', []),
        ("[1] is a source", "[1] is a source", []),
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", []),
        ('{"name": "weather", "arguments": "Kilddale"}', '{"name": "weather", "arguments": "Kilddale"}', []),
    ],
)
def test_calls_are_found_however_the_text_comes(text, said, calls):
    for size in (1, 2, 5, len(text)):
        reader = ToolReader(["weather"], several=True)
        begun = "".join(reader.add(text[i : i + size]) for i in range(0, len(text), size))
        rest, found = reader.end()
        assert begun + rest == said
        assert [call["function"]["name"] for call in found] == calls
        assert all(json.loads(call["function"]["arguments"]) == {"city": "Kilddale"} for call in found)
    reader = ToolReader(["weather"], several=False)
    reader.add(text)
    assert len(reader.end()[1]) == min(len(calls), 1)
