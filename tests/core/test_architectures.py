"""Every architecture that llama.cpp runs either skips exactly, or is refused by name and runs dense exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ffnskip_cpp._core import Controller
from support import architectures, expected

DOCS = Path(__file__).parents[2] / "docs" / "architectures.md"

# Why each of these is refused; all others skip.
REFUSED = {
    "arctic": "reads the FFN block after its residual add",  # a dense FFN and, beside it, experts
    "deepseek4": "hc_attn_fn",  # hyper-connections: several residual streams, mixed in each layer
    "glm5-next": "hc_attn_fn",
    "hy_v4": "hc_attn_fn",
    "hrm_text": "reads the FFN block after its residual add",  # the same weights run several times a token
    "dream": "does not generate token by token",
    "llada": "does not generate token by token",
    "llada-moe": "does not generate token by token",
    "rnd1": "does not generate token by token",
    "mamba": "has no FFN block",
    "mamba2": "has no FFN block",
    "rwkv6": "has no FFN block",
}


@pytest.fixture(scope="module")
def outcomes():
    """By architecture and whether it is a mixture of experts; made by a process that has not used OpenMP yet."""
    script = Path(architectures.__file__)
    lines = subprocess.run([sys.executable, script, "--json"], capture_output=True, text=True, check=True).stdout
    made = [architectures.Outcome(**json.loads(line)) for line in lines.splitlines() if line.startswith('{"arch"')]
    return {(outcome.arch, outcome.moe): outcome for outcome in made}


@pytest.mark.parametrize(("arch", "moe"), architectures.MODELS)
def test_architecture_skips_exactly_or_is_refused_by_name(outcomes, arch, moe):
    outcome = outcomes[arch, moe]
    if arch in REFUSED:
        assert outcome.status == "refused"
        assert f"architecture '{arch}'" in outcome.message and REFUSED[arch] in outcome.message
    else:
        assert outcome.status == "exact", outcome.message
        assert len(outcome.skippable) > 1


def test_snapshots_of_recurrent_state_are_refused():
    """With them llama.cpp splits batches in a way of its own."""
    model = architectures.make_model("lfm2", False)
    for n_rs_seq in (0, 2):
        controller = Controller()
        decoder = architectures.Decoder(model, controller, n_rs_seq=n_rs_seq)
        if n_rs_seq == 0:
            controller.probe(decoder.address)
        else:
            with pytest.raises(ValueError, match=r"architecture 'lfm2' with n_rs_seq = 2: .*; use n_rs_seq = 0"):
                controller.probe(decoder.address)


def test_documented_table_is_what_was_found(outcomes):
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| ") and not line.startswith("| arch")]
    assert sorted(rows[1:]) == sorted(architectures.table_row(outcome) for outcome in outcomes.values())


def test_block_maps_are_those_expected(outcomes, request):
    maps = {
        architectures.name_of(outcome): ({"refused": outcome.message} if outcome.status == "refused" else {})
        | {"n_layer": outcome.n_layer, "layers": outcome.layers, "attention": outcome.attention}
        for outcome in outcomes.values()
    }
    expected.compare("block_maps", maps, request.config.getoption("--update-expected"))
