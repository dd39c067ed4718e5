"""Weights by channel are stored when settings want them: once, told of, and not where that was stopped."""

from __future__ import annotations

import contextlib

import pytest

from ffnskip_cpp import SkipConfig, channel_weights
from support.channel_bytes import ffn_bytes
from support.running import ours

CHANNELS = SkipConfig(policy="channels")

pytestmark = pytest.mark.filterwarnings("ignore:skip. channels")  # the values are not calibrated


class Bar:
    """Stands in for the bar on a terminal."""

    def __init__(self, most=100):
        self.n, self.seen, self.most = 0, [], most

    def update(self, n):
        self.n += n
        self.seen.append(self.n)
        if self.n > self.most:
            raise KeyboardInterrupt


@pytest.fixture
def shown(monkeypatch):
    """shown(bar): is what progress bars are from now on."""

    def use(bar):
        monkeypatch.setattr(channel_weights, "progress_bar", lambda *given, **options: contextlib.nullcontext(bar))
        return bar

    return use


@pytest.fixture(scope="module")
def path(model_file):
    return model_file("llama", n_layer=6)


def test_storing_is_told_from_the_beginning_to_the_end_and_happens_once(path, shown):
    bar = shown(Bar())
    with ours(path, None) as llm:
        assert (llm.weights_bytes, bar.seen) == (0, [])
        llm.skip = CHANNELS
        assert llm.weights_bytes > ffn_bytes(path)
        assert bar.seen == sorted(bar.seen) and bar.seen[-1] == 100
        stored, told = llm.weights_bytes, len(bar.seen)
        with llm.dense():
            pass
        llm.skip = CHANNELS.replace(skip_ratio=0.5)
        assert (llm.weights_bytes, len(bar.seen)) == (stored, told)
        llm.skip = CHANNELS.replace(tensors="all")
        assert llm.weights_bytes > stored


def test_what_was_stopped_leaves_everything_as_it_was(path, shown):
    shown(Bar(most=30))
    with ours(path, SkipConfig(skip_ratio=0.25)) as llm:
        with pytest.raises(KeyboardInterrupt):
            llm.skip = CHANNELS
        assert (llm.skip, llm.weights_bytes) == (SkipConfig(skip_ratio=0.25), 0)
        shown(Bar())
        llm.skip = CHANNELS
        assert llm.skip == CHANNELS and llm.weights_bytes > 0


def test_a_closed_model_keeps_no_copies(path):
    with ours(path, CHANNELS) as llm:
        assert llm.weights_bytes > 0
    assert llm.weights_bytes == 0


def test_nothing_is_printed_where_it_does_not_take_long(path, capfd):
    with ours(path, CHANNELS):
        pass
    assert capfd.readouterr().err == ""
