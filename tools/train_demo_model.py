"""Trains the demo model: a small Llama that knows the people of `demo_world`.

    python tools/train_demo_model.py --out DIR [--seed N] [--tokens N]

Writes a Hugging Face checkpoint (safetensors weights, a byte-level BPE tokenizer
made for the world's text, a chat template) to DIR/hf, and an early one to
DIR/hf-partial after 40 % of the tokens. Every step draws its text from a
generator of its own seed, and all schedules count tokens, not time: the same
seed gives the same data however often the training is interrupted. Started again
with the same options it goes on from DIR/checkpoint.pt.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from demo_world import (
    ATTRIBUTES,
    BOS,
    CHAT_MARKERS,
    CHAT_TEMPLATE,
    EOS,
    Part,
    Question,
    World,
    question_parts,
)
from optimizers import make_optimizers

VOCAB_SIZE = 2048
CONTEXT = 512  # tokens
STEP_TOKENS = 4096  # tokens a step, padding included
SHORT_ROW = 256  # tokens a row in most steps
LONG_STEP_EVERY = 5  # every so many steps the rows are CONTEXT long instead
NOT_LEARNT = -100  # label that the loss leaves out

WARM_UP = 0.05  # share of the steps in which the rate rises
PARTIAL_AT = 0.4  # share of the steps after which DIR/hf-partial is written


def train_tokenizer(world: World, seed: int) -> Tokenizer:
    """A byte-level BPE tokenizer with GPT-2's pre-tokenizer: any UTF-8 text encodes, known words are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, *CHAT_MARKERS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(f"tokenizer {seed}")
    texts = ("".join(part.text for part in world.document(rng)) for _ in range(60_000))
    tokenizer.train_from_iterator(texts, trainer)
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[bos]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes what transformers needs; by hand, since its own format of these files changes with its versions."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {key: config[key] for key in ("bos_token", "eos_token", "pad_token")}
    special["additional_special_tokens"] = list(CHAT_MARKERS)
    (directory / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """The untrained model, 5.4 million weights; every row of every matrix is a multiple of 32 long (for Q8_0)."""
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=16,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(EOS),
    )
    return LlamaForCausalLM(config)


def encode_document(tokenizer: Tokenizer, parts: list[Part]) -> tuple[list[int], list[int]]:
    """Token ids of a document and, of equal length, its labels (an id, or NOT_LEARNT)."""
    ids, labels = [tokenizer.token_to_id(BOS)], [NOT_LEARNT]
    for part in parts:
        part_ids = tokenizer.encode(part.text, add_special_tokens=False).ids
        ids += part_ids
        labels += part_ids if part.learnt else [NOT_LEARNT] * len(part_ids)
    eos = tokenizer.token_to_id(EOS)
    return [*ids, eos], [*labels, eos]


def training_batch(world: World, tokenizer: Tokenizer, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of one step, each [rows, tokens]: whole documents end to end, the last of a row cut off."""
    rng = random.Random(f"step {seed} {step}")
    length = CONTEXT if step % LONG_STEP_EVERY == LONG_STEP_EVERY - 1 else SHORT_ROW
    rows, row_labels = [], []
    for _ in range(STEP_TOKENS // length):
        ids, labels = [], []
        while len(ids) < length:
            more_ids, more_labels = encode_document(tokenizer, world.document(rng))
            ids += more_ids
            labels += more_labels
        rows.append(ids[:length])
        row_labels.append(labels[:length])
    return torch.tensor(rows), torch.tensor(row_labels)


def loss_of(model, ids: torch.Tensor, labels: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Mean cross-entropy (nats) of the learnt tokens; `bf16` multiplies matrices in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = model(input_ids=ids, use_cache=False).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=NOT_LEARNT)


@torch.no_grad()
def answered_right(model, tokenizer: Tokenizer, questions: list[Question], batch: int = 64) -> list[bool]:
    """Whether greedy generation gives each answer exactly and then stops.

    Greedy decoding reproduces a text if and only if every token of it is the
    most likely one after those before it, so one pass over prompt and answer tells.
    """
    model.eval()
    right = []
    for start in range(0, len(questions), batch):
        documents = [question_parts(question) for question in questions[start : start + batch]]
        encoded = [encode_document(tokenizer, parts) for parts in documents]
        width = max(len(ids) for ids, _ in encoded)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in encoded])
        labels = torch.tensor([labels + [NOT_LEARNT] * (width - len(labels)) for _, labels in encoded])[:, 1:]
        best = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        right += ((best == labels) | (labels == NOT_LEARNT)).all(dim=1).tolist()
    model.train()
    return right


def accuracy_by_attribute(questions: list[Question], right: list[bool]) -> dict[str, float]:
    """Share of right answers per attribute, and under "all"."""
    shares = {"all": sum(right) / len(right)}
    for attribute in ATTRIBUTES:
        marks = [mark for question, mark in zip(questions, right, strict=True) if question.attribute == attribute]
        shares[attribute] = sum(marks) / len(marks)
    return shares


@torch.no_grad()
def ffn_similarity(model, tokenizer: Tokenizer, world: World, documents: int = 100) -> list[float]:
    """Per layer, the mean cosine of the residual stream before and after the FFN, over biographies."""
    inputs: dict[int, torch.Tensor] = {}
    sums = [0.0] * model.config.num_hidden_layers
    count = 0
    hooks = []
    for index, layer in enumerate(model.model.layers):

        def before(_module, args, index=index):
            inputs[index] = args[0]

        def after(_module, _args, output, index=index):
            h = inputs[index]
            sums[index] += F.cosine_similarity(h, h + output, dim=-1).sum().item()

        # The norm's input is the residual stream that the FFN's output is added to.
        hooks.append(layer.post_attention_layernorm.register_forward_pre_hook(before))
        hooks.append(layer.mlp.register_forward_hook(after))
    rng = random.Random("similarity")
    for _ in range(documents):
        ids, _ = encode_document(tokenizer, world.biography_document(rng))
        model(input_ids=torch.tensor([ids]), use_cache=False)
        count += len(ids)
    for hook in hooks:
        hook.remove()
    return [total / count for total in sums]


def rate_factor(step: int, steps: int) -> float:
    """Learning rate over its peak: up in a line, then down in a line to nearly nothing."""
    warm_up = max(1, int(WARM_UP * steps))
    return min((step + 1) / warm_up, (steps - step) / (steps - warm_up + 1))


def replace_file(path: Path, write) -> None:
    """Lets `write(temporary path)` make a file and puts it in place in one go, so that a kill leaves the old one."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


class Training:
    """The model, its optimizers and how far they are; `step` counts the steps done."""

    def __init__(self, out: Path, seed: int, steps: int, compiled: bool, bf16: bool):
        self.out, self.seed, self.steps, self.step = out, seed, steps, 0
        self.bf16 = bf16
        self.world = World(seed)
        self.tokenizer = self._tokenizer()
        torch.manual_seed(seed)
        self.model = new_model(self.tokenizer)
        self.forward = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.optimizers = make_optimizers(self.model)
        self.seconds = 0.0  # spent so far, interruptions left out
        if (self.out / "checkpoint.pt").exists():
            self._resume()

    def _tokenizer(self) -> Tokenizer:
        path = self.out / "tokenizer.json"
        if not path.exists():
            replace_file(path, lambda temporary: train_tokenizer(self.world, self.seed).save(str(temporary)))
        return Tokenizer.from_file(str(path))

    def _resume(self) -> None:
        state = torch.load(self.out / "checkpoint.pt", weights_only=True)
        for name in ("seed", "steps"):
            if state[name] != getattr(self, name):
                fail(f"{self.out} holds a training with {name} {state[name]}, not {getattr(self, name)}: change --out")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Writes everything that going on needs."""
        state = {
            "seed": self.seed,
            "steps": self.steps,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        replace_file(self.out / "checkpoint.pt", lambda temporary: torch.save(state, temporary))

    def export(self, directory: Path) -> None:
        """Writes a Hugging Face checkpoint."""
        directory.mkdir(parents=True, exist_ok=True)
        stops = [self.tokenizer.token_to_id(EOS), self.tokenizer.token_to_id("<|end|>")]
        self.model.generation_config = GenerationConfig(
            bos_token_id=self.tokenizer.token_to_id(BOS), eos_token_id=stops, pad_token_id=stops[0]
        )
        self.model.save_pretrained(directory)
        save_tokenizer(self.tokenizer, directory)

    def one_step(self) -> float:
        """Trains on one batch; gives its loss."""
        started = time.monotonic()
        factor = rate_factor(self.step, self.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * group["peak"]
        ids, labels = training_batch(self.world, self.tokenizer, self.seed, self.step)
        loss = loss_of(self.forward, ids, labels, self.bf16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seconds += time.monotonic() - started
        return loss.item()

    def run(self, evaluate_every: int, save_every: int) -> None:
        """Trains to the end, or until SIGINT or SIGTERM, which leave a checkpoint."""
        sample = random.Random("sample")
        held_out = sample.sample(self.world.questions(held_out=True), 300)
        trained = sample.sample(self.world.questions(held_out=False), 120)
        stop = StopRequest()
        mean_loss = None
        with tqdm(total=self.steps, initial=self.step, unit="step", mininterval=5, dynamic_ncols=True) as bar:
            while self.step < self.steps:
                loss = self.one_step()
                mean_loss = loss if mean_loss is None else 0.98 * mean_loss + 0.02 * loss
                bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
                bar.update()
                if self.step % evaluate_every == 0:
                    known, extracted = (
                        accuracy_by_attribute(questions, answered_right(self.model, self.tokenizer, questions))
                        for questions in (trained, held_out)
                    )
                    parts = " ".join(f"{name} {share:.2f}" for name, share in extracted.items())
                    bar.write(f"step {self.step} loss {mean_loss:.3f} trained {known['all']:.2f} held out: {parts}")
                if self.step == int(PARTIAL_AT * self.steps):
                    self.export(self.out / "hf-partial")
                if self.step % save_every == 0 or self.step == self.steps or stop.requested:
                    self.save()
                if stop.requested:
                    sys.exit(f"Stopped after step {self.step}; start again with the same options to go on.")


class StopRequest:
    """Turns SIGINT and SIGTERM into a flag that is looked at between steps."""

    def __init__(self):
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, _number, _frame) -> None:
        self.requested = True


def report(training: Training) -> dict:
    """Accuracy on all questions, similarity per layer and what the training took."""
    model, tokenizer, world = training.model, training.tokenizer, training.world
    result = {
        "weights": sum(p.numel() for p in model.parameters()),
        "tokens": training.step * STEP_TOKENS,
        "minutes": round(training.seconds / 60, 1),
        "seed": training.seed,
    }
    for key, held_out in (("held_out", True), ("trained", False)):
        questions = world.questions(held_out)
        shares = accuracy_by_attribute(questions, answered_right(model, tokenizer, questions))
        result[key] = {"questions": len(questions), **{name: round(share, 4) for name, share in shares.items()}}
    result["ffn_similarity"] = [round(value, 4) for value in ffn_similarity(model, tokenizer, world)]
    return result


def fail(message: str) -> None:
    """Ends the program as bad options do."""
    print(f"train_demo_model: {message}", file=sys.stderr)
    sys.exit(2)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; argparse itself exits with 2 where it cannot."""
    parser = argparse.ArgumentParser(description="Train the demo model on the made-up world of demo_world.py.")
    parser.add_argument("--out", type=Path, required=True, help="directory for the checkpoint and the model (DIR/hf)")
    parser.add_argument("--seed", type=int, default=0, help="of the world, the texts and the weights (default 0)")
    parser.add_argument("--tokens", type=float, default=6_553_600, help="tokens to train on (default 6553600)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all)")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile: slower, no compiler needed")
    parser.add_argument(
        "--bf16", action="store_true", help="bfloat16 matrices: faster where the processor has AVX512-BF16 or AMX"
    )
    parser.add_argument("--evaluate-every", type=int, default=100, metavar="STEPS", help="default 100")
    parser.add_argument("--save-every", type=int, default=50, metavar="STEPS", help="default 50")
    options = parser.parse_args(arguments)
    if options.tokens < 20 * STEP_TOKENS:
        fail(f"--tokens must be at least {20 * STEP_TOKENS}, not {options.tokens:.0f}")
    for name in ("threads", "evaluate_every", "save_every"):
        if getattr(options, name) < 1:
            fail(f"--{name.replace('_', '-')} must be at least 1")
    if options.out.exists() and not options.out.is_dir():
        fail(f"--out {options.out} is not a directory")
    return options


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    steps = int(options.tokens // STEP_TOKENS)
    training = Training(options.out, options.seed, steps, not options.no_compile, options.bf16)
    training.run(options.evaluate_every, options.save_every)
    training.export(options.out / "hf")
    result = report(training)
    (options.out / "report.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
