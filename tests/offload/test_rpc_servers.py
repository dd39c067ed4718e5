"""A model on two servers behind `add_rpc_servers`: it is as it is alone, and what is left out is not sent.

Needs llama.cpp's RPC: FFNSKIP_TEST_RPC, as support/rpc_device.py says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ffnskip_cpp import SkipConfig
from support import rpc_device
from support.counting_proxy import CountingProxy
from support.running import F32_CACHE, SKIPPABLE_ROW, feed_one_by_one, ours

pytestmark = pytest.mark.filterwarnings("ignore:skip:UserWarning")

N_LAYER = 8
TOKENS = list(range(20, 60))

CONFIGS = {
    "dense": None,
    "fixed": SkipConfig("fixed", layers=[1, 3, 5, 6], warm_up_index=0),
    "ffn_skip": SkipConfig(sim_threshold=0.5, cold_s=1, cold_e=7, max_skip=2, warm_up_index=0),
}

CLIENT = """
import json, sys
import numpy as np
from ffnskip_cpp import add_rpc_servers
from test_rpc_servers import CONFIGS, F32_CACHE, SKIPPABLE_ROW, TOKENS, feed_one_by_one, ours

path, name, to, *servers = sys.argv[1:]
add_rpc_servers(servers)
add_rpc_servers(servers)  # which does nothing
with ours(path, CONFIGS[name], n_gpu_layers=99, **F32_CACHE) as llm:
    print("loaded", flush=True)
    input()
    with llm.trace() as trace:
        np.save(to, feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW))
    print(json.dumps({"skipped": trace.skipped.tolist()}), flush=True)
    input()
"""


@pytest.fixture(scope="module")
def servers():
    return [CountingProxy(rpc_device.serve(os.environ["FFNSKIP_TEST_RPC"])) for _ in range(2)]


@pytest.fixture(scope="module")
def evaluated(model_file, servers, tmp_path_factory):
    """Of each configuration: logits and what was skipped, alone and on the servers; bytes sent and received a token."""
    path, folder = model_file("llama", n_layer=N_LAYER), tmp_path_factory.mktemp("logits")
    found = {}
    for name, config in CONFIGS.items():
        with ours(path, config, n_gpu_layers=0, **F32_CACHE) as llm, llm.trace() as trace:
            alone = feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW)
        to = folder / f"{name}.npy"
        arguments = [str(path), name, str(to), *(server.endpoint for server in servers)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as client:
            assert client.stdout.readline() == "loaded\n"
            before = [(server.sent, server.received) for server in servers]
            client.stdin.write("\n")
            client.stdin.flush()
            skipped = json.loads(client.stdout.readline())["skipped"]
            traffic = np.array([(server.sent, server.received) for server in servers]) - before
            client.communicate("\n")
        found[name] = (alone, trace.skipped.tolist()), (np.load(to), skipped), traffic / len(TOKENS)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_on_two_servers_it_is_as_alone(evaluated, name):
    (alone, skipped_alone), (logits, skipped), traffic = evaluated[name]
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-4)
    assert skipped == skipped_alone and np.any(skipped) == (name != "dense")
    assert (traffic > 0).all()  # both have layers


def test_what_is_left_out_is_not_sent(evaluated):
    """Of nodes that the servers are to compute, those of four FFN blocks of eight are missing."""
    sent = {name: traffic[:, 0].sum() for name, (_, _, traffic) in evaluated.items()}
    assert sent["fixed"] < 0.95 * sent["dense"]
