"""What skipping costs the demo model: facts it still knows, per policy and skip ratio.

Two measures, both from teacher-forced evaluation of the skipping model. A fact is known if every token of it is the
most likely one; for greedy decoding that is the same as generating it.

  answers  Questions about held-out people. The question's last tokens and the answer may skip, without warm-up: answers
           are shorter than any warm-up, and what matters happens at the end of the question.
  text     Biographies in running text of some 220 tokens, as if generated from their first token, with a warm-up.

    python tools/evaluate_demo_model.py --skip-ratios 0.1,0.25,0.5 --profiles 10.ffnskip.gguf 25.ffnskip.gguf

Text to calibrate profiles on, a register of people per line, comes from --write-registers; questions for `ffnskip eval
--task demo` from --write-questions.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
from demo_world import ATTRIBUTES, Question, World
from ffnskip_cpp import Llama, SkipConfig, demo_model, read_profile
from ffnskip_cpp.table import markdown

POLICIES = (SkipConfig(), SkipConfig("random", region="adaptive"), SkipConfig("random"))
RATIOS = (0.1, 0.2, 0.25, 0.3, 0.5)


class Fact:
    """Tokens [first, last) of `tokens` state something the model should know."""

    def __init__(self, tokens: list[int], first: int, last: int, eligible: list[bool] | None):
        self.tokens, self.first, self.last, self.eligible = tokens, first, last, eligible

    def known(self, logits: np.ndarray) -> bool:
        predicted = logits[self.first - 1 : self.last - 1].argmax(axis=1)
        return bool((predicted == self.tokens[self.first : self.last]).all())


def held_out_questions(world: World, n: int) -> list[Question]:
    return random.Random(0).sample(world.questions(held_out=True), n)


def question_facts(llm: Llama, world: World, n: int, tail: int) -> list[list[Fact]]:
    facts = []
    for question in held_out_questions(world, n):
        prompt = llm.tokenize(question.prompt.encode("utf-8"))
        whole = llm.tokenize(f"{question.prompt} {question.answer}".encode())
        eligible = [i >= len(prompt) - tail for i in range(len(whole))]
        facts.append([Fact(whole, len(prompt), len(whole), eligible)])
    return facts


def text_facts(llm: Llama, world: World, n: int) -> list[list[Fact]]:
    rng = random.Random(0)
    return [facts_in(llm, world, world.register_document(rng)[0].text) for _ in range(n)]


def facts_in(llm: Llama, world: World, text: str) -> list[Fact]:
    """Every value a text states after the words that ask for it, so not at the start of a sentence."""
    tokens = llm.tokenize(text.encode("utf-8"))
    ends = list(accumulate(len(llm.detokenize([token])) for token in tokens))  # the text is ASCII: bytes are characters
    facts = []
    for paragraph in text.split("\n\n")[1:]:
        start = text.index(paragraph)
        person = next(person for person in world.people if paragraph.startswith(person.name))
        for attribute in ATTRIBUTES:
            value = getattr(person, attribute)
            at = paragraph.find(value)
            if at > 1 and paragraph[at - 2] != ".":
                first = next(i for i, end in enumerate(ends) if end > start + at)
                last = next(i for i, end in enumerate(ends) if end >= start + at + len(value)) + 1
                facts.append(Fact(tokens, first, last, None))
    return facts


def share_known(llm: Llama, documents: list[list[Fact]]) -> float:
    known = total = 0
    for facts in documents:
        if facts:
            logits = llm.forward(facts[0].tokens, facts[0].eligible)
            known += sum(fact.known(logits) for fact in facts)
            total += len(facts)
    return known / total


def evaluate(llm: Llama, documents: list[list[Fact]], config: SkipConfig | None) -> tuple[float, float]:
    """Share of facts known, and the share of FFN blocks skipped over the tokens that count as generated."""
    llm.skip = config
    llm.reset_stats()
    return share_known(llm, documents), llm.stats.skip_ratio


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", help="GGUF file (default: the demo model)")
    parser.add_argument("--world-seed", type=int, default=0, help="seed of the world the model was trained on")
    parser.add_argument("--questions", type=int, default=1000, help="questions about held-out people (default 1000)")
    parser.add_argument("--texts", type=int, default=60, help="texts of 3 to 5 biographies (default 60)")
    parser.add_argument("--tail", type=int, default=4, help="tokens of each question that may skip (default 4)")
    parser.add_argument("--warm-up", type=int, default=30, help="warm_up_index for the texts (default 30)")
    parser.add_argument("--skip-ratios", default=",".join(map(str, RATIOS)), help="comma-separated, in [0, 1]")
    parser.add_argument("--profiles", nargs="*", default=[], metavar="FILE", help="calibrated settings to evaluate too")
    parser.add_argument("--write-registers", type=int, metavar="N", help="print N registers as JSON lines, and end")
    parser.add_argument("--write-questions", metavar="N", type=int, help="print N questions as JSON lines, and end")
    parser.add_argument("-o", "--format", choices=("md", "json"), default="md", help="of what is printed (default md)")
    args = parser.parse_args(argv)

    world = World(args.world_seed)
    if args.write_registers is not None:
        rng = random.Random("calibration")
        for _ in range(args.write_registers):
            print(json.dumps({"text": world.register_document(rng)[0].text}))
        return 0
    if args.write_questions is not None:
        for question in held_out_questions(world, args.write_questions):
            print(json.dumps({"question": question.asked, "answer": question.answer}))
        return 0
    settings: list[tuple[str, SkipConfig | None]] = [("dense", None)]
    settings += [
        (f"calibrated: {profile.config.label}", profile.config) for profile in map(read_profile, args.profiles)
    ]
    ratios = [float(ratio) for ratio in args.skip_ratios.split(",")]
    settings += [(policy.label, policy.replace(skip_ratio=ratio)) for policy in POLICIES for ratio in ratios]
    rows = []
    with Llama(args.model or demo_model(), n_ctx=512, skip=None, verbose=False) as llm:
        questions = question_facts(llm, world, args.questions, args.tail)
        texts = text_facts(llm, world, args.texts)
        for policy, setting in tqdm(settings, unit="setting", file=sys.stderr):
            row: dict[str, Any] = {"policy": policy}
            for name, documents, warm_up in (("answers", questions, 0), ("text", texts, args.warm_up)):
                config = None if setting is None else setting.replace(warm_up_index=warm_up)
                row[name], row[f"{name}_skip_ratio"] = evaluate(llm, documents, config)
            rows.append(row)
    print(json.dumps(rows, indent=1) if args.format == "json" else table(rows))
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    shares = ("answers", "answers_skip_ratio", "text", "text_skip_ratio")
    cells = [[row["policy"], *(f"{row[name]:.1%}" for name in shares)] for row in rows]
    return markdown(("policy", "answers known", "skipped", "facts in text known", "skipped"), cells, left=("policy",))


if __name__ == "__main__":
    sys.exit(main())
