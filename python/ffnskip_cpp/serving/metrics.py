"""Numbers for Prometheus: what the engine has counted, how long requests took, and how they were answered."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .engine import Engine
from .requests import End

__all__ = ["Counted", "Metrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """All metrics of one server, which begin with `ffnskip_`."""

    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        self.requests = Counter(
            "ffnskip_http_requests", "Requests by path and status", ["path", "status"], registry=self._registry
        )
        self._queue = self._histogram("ffnskip_queue_seconds", "Seconds that an answer waited for its turn")
        self._first = self._histogram("ffnskip_first_token_seconds", "Seconds from a request to its first token")
        self._whole = self._histogram("ffnskip_answer_seconds", "Seconds from a request to its end")

    def ended(self, end: End) -> None:
        """An answer has ended."""
        self._queue.observe(end.seconds_queue)
        self._first.observe(end.seconds_first)
        self._whole.observe(end.seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_SECONDS, registry=self._registry)


class _EngineCollector(Collector):
    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        counts = self._engine.counts()
        yield GaugeMetricFamily("ffnskip_answers_running", "Answers being generated", counts.running)
        yield GaugeMetricFamily("ffnskip_answers_waiting", "Answers that wait for their turn", counts.queued)
        ends = CounterMetricFamily("ffnskip_answers", "Answers that ended, by how", labels=["end"])
        for name, value in (("done", counts.done), ("cancelled", counts.cancelled), ("failed", counts.failed)):
            ends.add_metric([name], value)
        yield ends
        sums: tuple[tuple[str, str, float], ...] = (
            ("prompt_tokens", "Tokens of prompts", counts.n_prompt),
            ("cached_tokens", "Tokens of prompts that were in the memory, and not evaluated again", counts.n_cached),
            ("generated_tokens", "Tokens of answers", counts.n_generated),
            ("ffn_blocks", "FFN blocks of generated tokens", counts.ffn_total),
            ("ffn_blocks_skipped", "FFN blocks left out", counts.ffn_skipped),
            ("attention_blocks", "Attention blocks of generated tokens", counts.attention_total),
            ("attention_blocks_skipped", "Attention blocks left out", counts.attention_skipped),
            ("decode_seconds", "Seconds of evaluating and sampling", counts.seconds),
        )
        for name, text, total in sums:
            yield CounterMetricFamily(f"ffnskip_{name}", text, total)
        yield GaugeMetricFamily("ffnskip_skip_ratio", "Share left out of what generated tokens have", counts.skip_ratio)


class Counted:
    """Counts requests; paths that the server does not have are one."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: Collection[str]):
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
