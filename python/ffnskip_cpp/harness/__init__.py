"""lm-evaluation-harness on a `Llama`: its tasks, with skipping. Importing this registers the model class `ffnskip`.

    import ffnskip_cpp.harness
    lm_eval.simple_evaluate(model="ffnskip", model_args={"pretrained": "model.gguf"}, tasks=["arc_easy"])

In a shell `python -m ffnskip_cpp.harness` is `lm_eval` with that class. docs/harness.md tells more.
"""

from .model import FfnSkipLM

__all__ = ["FfnSkipLM"]
