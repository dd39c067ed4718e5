"""The server of `ffnskip serve` as a Ray Serve deployment: replicas on one machine or many, more while requests wait.

    pip install 'ffnskip_cpp[server]' 'ray[serve]'
    serve run examples.ray_serve:build model=/models/model.gguf profile=/models/model.ffnskip.gguf replicas=2

The model and its profile lie at the same place on every machine. For a second profile: docs/scale.md.
"""

from __future__ import annotations

from typing import Any

from ray import serve

OPTIONS = {
    "model": str,  # GGUF file
    "profile": str,  # skip profile; not given: the one beside or in the model
    "replicas": int,  # not given: from 1 to `max_replicas`, as requests come
    "max_replicas": int,
    "parallel": int,  # answers at once of a replica
    "ctx": int,  # tokens of a prompt and its answer
    "threads": int,  # of a replica, which takes as many processors
    "api_key": str,
}


@serve.deployment
@serve.ingress()
class FfnSkip:
    """One replica: a model in memory, and a thread that decodes."""

    def __init__(
        self, model: str, profile: str | None, parallel: int, ctx: int | None, threads: int, api_key: str | None
    ):
        from ffnskip_cpp.serving.engine import Engine

        # Ray queues what a replica does not take (max_ongoing_requests), and sends it to the one that has the least.
        self._engine = Engine(
            model,
            skip="auto" if profile is None else profile,
            n_parallel=parallel,
            n_ctx=ctx,
            n_threads=threads,
            n_threads_batch=threads,
        )
        self._api_key = api_key

    def __serve_build_asgi_app__(self) -> Any:
        from ffnskip_cpp.serving.app import create_app

        return create_app(self._engine, api_key=self._api_key)

    def check_health(self) -> None:
        """Ray puts another in the place of a replica where this raises."""
        if not self._engine.is_open:
            raise RuntimeError("the engine is closed")

    def __del__(self) -> None:
        self._engine.close(grace=10)


def build(given: dict[str, str]) -> serve.Application:
    """What `serve run` runs, from its NAME=VALUE arguments."""
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown or "model" not in given:
        raise ValueError(
            f"{', '.join(unknown) or 'model'}: give model=FILE, and perhaps {', '.join(list(OPTIONS)[1:])}"
        )
    options = {name: OPTIONS[name](value) for name, value in given.items()}
    parallel, threads = options.get("parallel", 4), options.get("threads", 2)
    deployment = FfnSkip.options(
        max_ongoing_requests=parallel,
        ray_actor_options={"num_cpus": threads},
        **_scale(options, parallel),
    )
    return deployment.bind(
        options["model"], options.get("profile"), parallel, options.get("ctx"), threads, options.get("api_key")
    )


def _scale(options: dict[str, Any], parallel: int) -> dict[str, Any]:
    if "replicas" in options:
        return {"num_replicas": options["replicas"]}
    # Half of a replica's answers under way on average: another begins before requests have to wait.
    return {
        "autoscaling_config": {
            "min_replicas": 1,
            "max_replicas": options.get("max_replicas", 4),
            "target_ongoing_requests": max(1, parallel // 2),
        }
    }
