"""The similarity that decides is the cosine of the residual before and after the FFN block, whatever the architecture.

Compared with float64 NumPy, on vectors and on residuals that plain llama.cpp shows to a callback of this test's own.
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import SkipConfig, _core
from support import tiny_models
from support.running import SKIPPABLE_ROW, feed_one_by_one, options_of, ours

# float32 sums of up to 5000 products in 16 lanes: the rounding of one lane is 5000 / 16 * 2^-24 at the worst.
FLOAT32_SUM = 2e-5

# What our rows may differ by where plain llama.cpp's own differ, as a batch and single rows do on a GPU: times as much.
OF_THE_DEVICE = 4

# h is not a tensor of a parallel block: h = out - f, which cancels where FFN and residual are large.
RESIDUAL = 1e-5

TOKENS = np.random.default_rng(23).integers(0, 256, 12).tolist()
KINDS = [*tiny_models.SKIPPABLE, "gptneox_sequential"]
CHECK_ALL = SkipConfig(sim_threshold=1.5, cold_s=0, cold_e=7, max_skip=1, warm_up_index=0)


def exact_cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def cosine(a, b):
    """Of a and b: the similarity of a and what has to be added to it."""
    return _core.similarity(a, b - a)


# --- vectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32, 33, 4096, 5000])
@pytest.mark.parametrize("closeness", [0.0, 0.9, 0.999])
def test_cosine_equals_float64(n, closeness):
    rng = np.random.default_rng(n)
    a, noise = rng.standard_normal((2, n)).astype(np.float32)
    b = (closeness * a + (1 - closeness) * noise).astype(np.float32)
    assert cosine(a, b) == pytest.approx(exact_cosine(a, b), abs=FLOAT32_SUM)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 4096, 5000])
def test_cosine_of_a_vector_with_itself_is_exactly_one(n):
    """A block that adds nothing reaches a threshold of 1, and no rounding carries it above."""
    for seed in range(50):
        a = np.random.default_rng([n, seed]).standard_normal(n).astype(np.float32)
        assert cosine(a, a) == 1.0
        assert cosine(a, -a) == -1.0


@pytest.mark.parametrize("n", [1, 16, 17])
def test_cosine_with_zeros_is_zero(n):
    zeros, ones = np.zeros(n, np.float32), np.ones(n, np.float32)
    assert [cosine(*pair) for pair in ((zeros, ones), (ones, zeros), (zeros, zeros))] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30], ids=["nan", "inf", "minus_inf", "overflow"])
@pytest.mark.parametrize("n, at", [(1, 0), (17, 0), (17, 16), (4096, 4095)])
def test_cosine_of_what_float32_cannot_sum_is_nan(value, n, at):
    a, b = np.ones((2, n), np.float32)
    a[at] = value
    assert np.isnan(cosine(a, b)) and np.isnan(cosine(b, a)) and np.isnan(cosine(a, a))


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((2, 2), (2, 2)), ((), ())], ids=str)
def test_cosine_wants_two_vectors_of_one_length(shapes):
    with pytest.raises(ValueError, match="two vectors of one length"):
        _core.similarity(*(np.ones(shape, np.float32) for shape in shapes))


# --- residuals -------------------------------------------------------------------------------------------------------


class Spy(llama_cpp.Llama):
    """Plain llama.cpp that copies the tensors of the last decode whose name starts with `wanted`, in order."""

    def __init__(self, path, wanted, **options):
        self.copies: dict[str, list[np.ndarray]] = {}
        base = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so.0"))
        base.ggml_get_name.restype, base.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        base.ggml_nelements.restype, base.ggml_nelements.argtypes = ctypes.c_int64, [ctypes.c_void_p]
        base.ggml_backend_tensor_get.restype = None
        base.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]

        def look(tensor, ask, _user_data):
            name = base.ggml_get_name(tensor).decode()
            if not ask:
                values = np.empty(base.ggml_nelements(tensor), np.float32)
                base.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
                self.copies.setdefault(name, []).append(values.reshape(-1, 64).astype(np.float64))
            return not ask or name.startswith(wanted)

        self._look = llama_cpp.ggml_backend_sched_eval_callback(look)
        super().__init__(str(path), **options_of(options))

    @property
    def context_params(self):
        return self._params

    @context_params.setter
    def context_params(self, params):
        self._params = params
        params.cb_eval = self._look


def similarity_seen_in_plain_llama_cpp(kind, path, n_rows):
    """Cosine of out - f and out, (n_tokens, 7): out is the layer's output, f what its FFN adds."""
    llm = Spy(path, ("l_out-", "ffn_out-", "ffn_moe_out-", "sa_out-"))
    with contextlib.closing(llm):
        batches = []
        for first in range(0, len(TOKENS), n_rows):
            llm.copies.clear()
            llm.eval(TOKENS[first : first + n_rows])
            batches.append(np.stack([of_layer(kind, llm.copies, il) for il in range(7)], axis=1))
        return np.concatenate(batches)


def of_layer(kind, copies, il):
    out = copies[f"l_out-{il}"][-1]
    if kind == "post_norm":  # the FFN's part goes through a norm: the residual before it is what has a name
        h = copies[f"sa_out-{il}"][-1]
    else:
        h = out - copies.get(f"ffn_out-{il}", copies.get(f"ffn_moe_out-{il}"))[0]
    return exact_cosine(h, out)


@pytest.mark.parametrize("kind", KINDS)
def test_similarity_is_that_of_the_residuals_in_plain_llama_cpp(model_file, kind):
    path = model_file(kind, n_layer=8)
    expected = similarity_seen_in_plain_llama_cpp(kind, path, len(TOKENS))
    assert 0.3 < expected.min() and expected.max() < 0.9999 and expected.std() > 0.01
    with ours(path, CHECK_ALL) as llm:
        with llm.trace() as trace:
            llm.forward(TOKENS)
    assert trace.similarity.dtype == np.float32 and trace.similarity.shape == (len(TOKENS), 8)
    assert np.abs(trace.similarity[:, :7] - expected).max() < RESIDUAL
    assert np.isnan(trace.similarity[:, 7]).all()  # the last layer is never checked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_ubatch", [1, 5])
def test_similarity_of_a_row_does_not_depend_on_how_the_batch_is_cut(model_file, kind, n_ubatch):
    path = model_file(kind, n_layer=8)
    of_batch, of_single = (similarity_seen_in_plain_llama_cpp(kind, path, n_rows) for n_rows in (len(TOKENS), 1))
    tolerance = max(RESIDUAL, OF_THE_DEVICE * np.median(np.abs(of_batch - of_single)))
    with ours(path, CHECK_ALL) as whole, ours(path, CHECK_ALL, n_ubatch=n_ubatch) as cut:
        with whole.trace() as expected, cut.trace() as pieces:
            whole.forward(TOKENS), cut.forward(TOKENS)
        with whole.trace() as alone:
            feed_one_by_one(whole, TOKENS, SKIPPABLE_ROW)
    for trace in (pieces, alone):
        assert np.nanmedian(np.abs(trace.similarity - expected.similarity)) < tolerance


def test_a_block_that_adds_nothing_reaches_a_threshold_of_one(model_file):
    path = model_file("llama", n_layer=8, zero_ffn_layers=(3,))
    config = SkipConfig(sim_threshold=1.0, cold_s=1, cold_e=7, max_skip=2, warm_up_index=0)
    with ours(path, config) as llm, llm.trace() as trace:
        llm.forward(TOKENS)
    assert (trace.similarity[:, 3] == 1.0).all() and (trace.similarity[:, 1:3] < 1.0).all()
    assert [np.flatnonzero(row).tolist() for row in trace.skipped] == [[4, 5]] * len(TOKENS)
