"""What editors and type checkers are told of llama_cpp's arguments is what llama_cpp takes."""

from __future__ import annotations

import inspect
import sys
import typing

import llama_cpp
import pytest

from ffnskip_cpp import Block, BlockWeight, Llama, ResolvedConfig, Score, arguments


def described(hint):
    """The same for what is written in other ways, such as Optional[int] and int | None."""
    origin = typing.get_origin(hint)
    if origin is None:
        return hint
    kind = typing.Union if type(hint).__name__ == "UnionType" else origin
    return kind, frozenset(described(argument) for argument in typing.get_args(hint))


@pytest.mark.parametrize(
    ("table", "function", "left_out"),
    [
        (arguments.LlamaArguments, llama_cpp.Llama.__init__, {"model_path"}),
        (arguments.SamplingOptions, llama_cpp.Llama.generate, {"tokens"}),
    ],
    ids=["Llama", "generate"],
)
def test_the_tables_of_arguments_are_llama_cpps(table, function, left_out):
    names = inspect.signature(function).parameters.keys() - {"self", "kwargs", *left_out}
    assert table.__annotations__.keys() == names
    if sys.version_info >= (3, 10):  # which can evaluate the table's annotations
        theirs, ours = typing.get_type_hints(function), typing.get_type_hints(table)
        assert {name: described(ours[name]) for name in names} == {name: described(theirs[name]) for name in names}


def test_methods_that_take_llama_cpps_arguments_say_which():
    names = ("create_completion", "create_chat_completion", "embed", "tokenize", "detokenize", "sample")
    for name in names:
        assert inspect.signature(getattr(Llama, name)) == inspect.signature(getattr(llama_cpp.Llama, name))
        assert getattr(Llama, name) is not getattr(llama_cpp.Llama, name)


def test_arguments_by_position_are_llama_cpps():
    """What a call gives by position must not become something else."""
    for name in ("__init__", "tokenize", "detokenize", "eval", "save_state", "load_state", "reset"):
        theirs = inspect.signature(getattr(llama_cpp.Llama, name)).parameters.values()
        ours = list(inspect.signature(getattr(Llama, name)).parameters.values())
        positional = [p.name for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
        given = [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional[: len(given)] == given
        assert len(given) == len(positional) or any(p.kind is p.VAR_POSITIONAL for p in ours)


def test_types_of_results_can_be_imported(model_file):
    """To annotate one's own code with."""
    with Llama(str(model_file("llama")), skip=None, n_ctx=64, verbose=False) as llm:
        assert isinstance(llm.blocks[0], Block)
        assert isinstance(llm.blocks[0].weights[0], BlockWeight)
        assert isinstance(llm.score([1], [[2]]), Score)
        assert llm.resolved.keys() == ResolvedConfig.__annotations__.keys()
