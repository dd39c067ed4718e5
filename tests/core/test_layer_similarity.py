"""How similar what goes into a layer and what comes out of it are, by which policy short_gpt ranks layers."""

from __future__ import annotations

import numpy as np
import pytest

from ffnskip_cpp import Llama
from ffnskip_cpp.measure.similarity import check_everything
from support.reference import ReferenceLlama, cosine
from support.running import ours

TOKENS = [(7 * i * i + 3 * i) % 250 for i in range(24)]


def traced(path, tokens=TOKENS, **options):
    with Llama(str(path), skip=None, n_ctx=256, verbose=False, **options) as llm:
        with llm.skipping(check_everything(llm.n_layer)), llm.trace(layers=True) as trace:
            llm.forward(tokens)
    return trace


class Residuals(ReferenceLlama):
    """Keeps what goes into each layer and what comes out of the last."""

    def _embeddings(self, tokens):
        self.residuals = [super()._embeddings(tokens)]
        return self.residuals[0]

    def _feed_forward(self, il, h):
        f = super()._feed_forward(il, h)
        self.residuals.append(h + f)
        return f


def test_it_is_the_cosine_that_numpy_computes(model_file):
    path = model_file("llama")
    reference = Residuals(path)
    reference.evaluate(TOKENS)
    expected = np.stack([cosine(a, b) for a, b in zip(reference.residuals, reference.residuals[1:])], axis=1)
    trace = traced(path)
    assert trace.layer_similarity.shape == trace.similarity.shape == expected.shape
    assert np.allclose(trace.layer_similarity[:, :-1], expected[:, :-1], atol=2e-3)
    assert np.isnan(trace.layer_similarity[:, -1]).all()
    assert np.std(expected) > 0.02


@pytest.mark.parametrize("kind", ["moe", "phi3", "falcon", "post_norm"])
def test_one_token_at_a_time_is_the_same_as_a_batch(model_file, kind):
    path = model_file(kind)
    with ours(path, check_everything(8), n_batch=16) as llm, llm.trace(layers=True) as single:
        for i in range(len(TOKENS)):
            llm.forward(TOKENS[: i + 1], keep=i)
    batch = traced(path, n_batch=16, n_ubatch=8)
    assert np.allclose(single.layer_similarity[:, :-1], batch.layer_similarity[:, :-1], atol=1e-3)


def test_nothing_is_recorded_that_was_not_asked_for(model_file):
    with Llama(str(model_file("llama")), skip=None, n_ctx=256, verbose=False) as llm:
        with llm.skipping(check_everything(llm.n_layer)), llm.trace() as trace:
            llm.forward(TOKENS)
    assert trace.layer_similarity.shape == (0, 0)
