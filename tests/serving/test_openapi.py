"""Requests made up from the OpenAPI document, right and wrong ones: none is too much for the server."""

from __future__ import annotations

import pytest

pytest.importorskip("schemathesis")

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode

from ffnskip_cpp import demo_model
from support.api_server import api_server

MADE_UP = settings(
    max_examples=10,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def server():
    with api_server(str(demo_model()), n_parallel=4, n_ctx=64, skip=None) as server:
        yield server


@pytest.fixture(scope="module")
def api(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_no_request_is_too_much(server, api, path, mode):
    statuses = []

    @seed(1)
    @MADE_UP
    @given(api[path]["POST"].as_strategy(generation_mode=mode))
    def ask(case):
        sent = case.as_transport_kwargs(base_url=server.url)
        response = server.http.request(
            sent["method"], sent["url"], headers=sent["headers"], content=sent.get("data"), json=sent.get("json")
        )
        statuses.append(response.status_code)
        assert response.status_code < 500
        if response.status_code >= 400:
            assert response.json()["error"]["message"]

    ask()
    assert len(statuses) >= 10


def test_the_document_has_openais_statuses_alone(server):
    document = server.http.get("/openapi.json").json()
    statuses = {status for path in document["paths"].values() for of in path.values() for status in of["responses"]}
    assert statuses == {"200", "default"}
    answers = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/skip", "/health", "/metrics"}
    assert answers <= set(document["paths"])
