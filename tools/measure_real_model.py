"""What leaving weights out costs a real model and what it saves: the tables, pictures and texts of docs/real-models.md.

    python tools/measure_real_model.py quality smollm2.gguf smollm2.json --text c4.txt --from 400000
    python tools/measure_real_model.py texts smollm2.json --prompts mt_bench.jsonl
    python tools/measure_real_model.py speed smollm2.json gemma3.json -t 1 2
    python tools/measure_real_model.py render smollm2.json --picture curve-smollm2.png

Each adds to the JSON file what it measures. `quality` measures the settings that are not in the file yet: blocks and
channels, both, and smaller quantisations, which it makes from the model's file. It is teacher-forced, past the warm-up.
Speed is measured in one process, all in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ffnskip_cpp import Llama, SkipConfig, inspect, quantize, read_profile, style
from ffnskip_cpp.benchmark.in_turn import TURN, Speed, measure_speed
from ffnskip_cpp.blocks import ffn_blocks
from ffnskip_cpp.files import whole_file
from ffnskip_cpp.gguf_file.weights import read_weight_bytes
from ffnskip_cpp.inspection.report import Weight
from ffnskip_cpp.measure.chat import Chat
from ffnskip_cpp.measure.model import open_model
from ffnskip_cpp.measure.text import Chunk, chunks_of_text, read_texts
from ffnskip_cpp.table import markdown
from ffnskip_cpp.trial.quality import Measured, measure_quality
from ffnskip_cpp.trial.texts import chat_prompt, is_end

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WARM_UP = 30
N_CTX = 256  # tokens of a chunk
N_CTX_OF_TEXTS = 1024
Row = dict[str, Any]

BLOCKS, CHANNELS, CALIBRATED, ATTENTION, BOTH, SMALLER = GROUPS = (
    "blocks",
    "channels",
    "channels, calibrated",
    "channels of attention too",
    "a block and channels",
    "smaller quantisation",
)
OTHERS = "other blocks"  # in the table alone
STYLES = {
    BLOCKS: (style.BLUE, "o"),
    CHANNELS: (style.GREEN, "D"),
    CALIBRATED: (style.DARK_RED, "v"),
    ATTENTION: (style.ORANGE, "s"),
    BOTH: (style.GREY, "P"),
    SMALLER: (style.VERMILION, "^"),
}


def main() -> None:
    args = arguments()
    args.run(args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("quality", help="measure what settings cost")
    command.set_defaults(run=quality)
    command.add_argument("model", metavar="MODEL.gguf")
    command.add_argument("results", type=Path, metavar="RESULTS.json")
    command.add_argument("--text", required=True, metavar="FILE", help="plain text")
    command.add_argument("--from", dest="first", type=int, default=0, metavar="N", help="character it begins at")
    command.add_argument("--chunks", type=int, default=16, metavar="N", help=f"of {N_CTX} tokens")
    command.add_argument("--blocks", type=layers, nargs="*", default=[], metavar="I,J,...", help="sets of FFN blocks")
    command.add_argument("--weights", type=float, nargs="*", default=[], metavar="R", help="of the FFN, by channels")
    command.add_argument("--bytes", type=float, nargs="*", default=[], metavar="R", help="the same with scales")
    command.add_argument("--all", type=float, nargs="*", default=[], metavar="R", help="weights, attention's too")
    command.add_argument("--both", type=layers, metavar="I,J,...", help="FFN blocks beside channels of --weights")
    command.add_argument("--profiles", nargs="*", default=[], metavar="FILE")
    command.add_argument("--paper", type=float, nargs="*", default=[], metavar="R", help="Algorithm 1, its baseline")
    command.add_argument("--types", nargs="*", default=[], help="smaller quantisations")
    command.add_argument("-t", "--threads", type=int, default=2, metavar="N")

    command = commands.add_parser("texts", help="generate greedily: dense, and by settings of the file")
    command.set_defaults(run=texts)
    command.add_argument("results", type=Path, metavar="RESULTS.json")
    command.add_argument("--settings", nargs="+", required=True, metavar="LABEL")
    command.add_argument("--prompts", metavar="FILE.jsonl", help="the first turn of each")
    command.add_argument("--prompt", nargs="*", default=[], help="more of them")
    command.add_argument("-n", type=int, default=8, help="prompts of the file")
    command.add_argument("--tokens", type=int, default=120, metavar="N")
    command.add_argument("--warm-up", type=int, default=0, metavar="N", help="that run in full")
    command.add_argument("-t", "--threads", type=int, default=2, metavar="N")

    command = commands.add_parser("speed", help="measure what settings save")
    command.set_defaults(run=speed)
    command.add_argument("results", type=Path, nargs="+", metavar="RESULTS.json")
    command.add_argument("--tokens", type=int, default=60, metavar="N", help="timed in turn")
    command.add_argument("-t", "--threads", type=int, nargs="+", default=[1, 2], metavar="N")

    command = commands.add_parser("render", help="print the tables, draw the curve")
    command.set_defaults(run=render)
    command.add_argument("results", type=Path, metavar="RESULTS.json")
    command.add_argument("--settings", nargs="*", metavar="LABEL", help="in the table (default: all)")
    command.add_argument("--name", default="", help="of the model; in a column of its own, and in the picture")
    command.add_argument("--picture", type=Path, metavar="FILE.png")
    command.add_argument("-t", "--threads", type=int, default=1, metavar="N", help="whose speed is drawn")
    return parser.parse_args()


def layers(text: str) -> list[int]:
    return [int(layer) for layer in text.split(",")]


# ---- what is measured ----


def quality(args: argparse.Namespace) -> None:
    results = read(args.results)
    model_bytes = read_weight_bytes(args.model).total
    weights = {tensors: weights_of(args.model, tensors) for tensors in ("ffn", "all")}
    coded = {tensors: codes(of_these) for tensors, of_these in weights.items()}
    with opened(args.model, args.threads) as llm, contextlib.ExitStack() as stack:
        known = {row["label"] for row in results["rows"] if row["n_rows"] >= args.chunks * (N_CTX - WARM_UP - 1)}
        rows = [row for row in wanted(args, len(ffn_blocks(llm.blocks)), coded) if row["label"] not in known]
        subjects = [subject(stack, row, args.model, args.threads) for row in rows]
        chunks = chunks_of(llm, args)
        for measured in tqdm(measure_quality(llm, subjects, chunks, WARM_UP), "quality", total=len(chunks)):
            for row, of_row in zip(rows, measured):
                add_quality(row, of_row, model_bytes, weights)
            dense = {"perplexity": measured[0].quality.perplexity_dense}
            text = [chunk.tokens for chunk in chunks]
            add(args.results, rows, dense=dense, model=str(args.model), model_bytes=model_bytes, text=text)


def wanted(args: argparse.Namespace, n_ffn: int, coded: dict[str, float]) -> Iterator[Row]:
    """The settings asked for, each with its label and its group."""
    for chosen in args.blocks:
        ratio = len(chosen) / n_ffn
        yield of_config(BLOCKS, f"blocks, {ratio:.0%}", SkipConfig(layers=chosen, max_skip=0))
    for share in args.weights:
        yield of_config(CHANNELS, f"channels, {share:.0%} of the weights", channels(share * coded["ffn"]))
    for ratio in args.bytes:
        yield of_config(CHANNELS, f"channels, {ratio:.0%} of the bytes", channels(ratio))
    for share in args.all:
        config = channels(share * coded["all"], tensors="all")
        yield of_config(ATTENTION, f"attention's channels too, {share:.0%} of the weights", config)
    if args.both:
        for share in args.weights:
            config = channels(share * coded["ffn"], layers=args.both)
            numbers = ",".join(map(str, args.both))
            yield of_config(BOTH, f"block {numbers} and channels, {share:.0%} of the weights", config)
    for path in args.profiles:
        config = read_profile(path).config
        group = BLOCKS if config.policy != "channels" else BOTH if config.layers else CALIBRATED
        yield of_config(group, Path(path).name.removesuffix(".ffnskip.gguf"), config)
    for ratio in args.paper:
        yield of_config(OTHERS, f"Algorithm 1, the paper's values, {ratio:.0%}", SkipConfig(skip_ratio=ratio))
        yield of_config(OTHERS, f"random blocks, {ratio:.0%}", SkipConfig("random", skip_ratio=ratio))
    for name in args.types:
        yield {"label": name.upper(), "group": SMALLER, "type": name}


def channels(ratio: float, **changes: Any) -> SkipConfig:
    return SkipConfig("channels", skip_ratio=ratio, **changes)


def of_config(group: str, label: str, config: SkipConfig) -> Row:
    default = SkipConfig().asdict()
    changed = {name: value for name, value in config.asdict().items() if value != default[name]}
    return {"label": label, "group": group, "config": changed}


def weights_of(model: str, tensors: str) -> list[Weight]:
    """Those that channels can be left out of."""
    return [weight for read in inspect(model).inputs if tensors == "all" or read.of_ffn for weight in read.weights]


def codes(weights: Sequence[Weight]) -> float:
    """Of their bytes, what is not scales: all that a channel left out saves."""
    return sum(weight.n_elements * bits(weight.type) / 8 for weight in weights) / sum(w.bytes for w in weights)


def bits(type_name: str) -> int:
    """ "q4_k": 4; "bf16": 16"""
    return int(type_name.lstrip("bfq").split("_")[0])


@contextlib.contextmanager
def opened(model: str | Path, threads: int, n_ctx: int = N_CTX) -> Iterator[Llama]:
    with open_model(model, n_ctx, n_threads=threads, n_gpu_layers=0) as llm:
        yield llm


def subject(stack: contextlib.ExitStack, row: Row, model: str, threads: int) -> SkipConfig | Llama:
    if "type" not in row:
        return SkipConfig(**row["config"])
    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"{row['type']}.gguf"
    quantize(model, path, row["type"], allow_requantize=True, n_threads=threads, progress=False)
    row["size"] = path.stat().st_size / Path(model).stat().st_size
    row["model_bytes"] = read_weight_bytes(path).total
    return stack.enter_context(opened(path, threads))


def chunks_of(llm: Llama, args: argparse.Namespace) -> list[Chunk]:
    (text,) = read_texts([args.text])
    if isinstance(text, Chat):
        raise SystemExit(f"{args.text}: plain text is needed")
    return chunks_of_text(llm, [text[args.first :]], N_CTX, max_tokens=args.chunks * N_CTX, min_tokens=N_CTX)


def add_quality(row: Row, measured: Measured, model_bytes: int, weights: dict[str, list[Weight]]) -> None:
    found = measured.quality
    row.update(
        kl=found.kl,
        kl_error=found.kl_error,
        perplexity=found.perplexity_ratio,
        same_top=found.top1_agreement,
        n_rows=found.n_rows,
        saved=measured.n_skipped / found.n_rows,
    )
    if "config" in row:
        of_these = weights[row["config"].get("tensors", "ffn")]
        row["model_bytes"] = model_bytes - row["saved"] * sum(weight.bytes for weight in of_these)


def speed(args: argparse.Namespace) -> None:
    for path in args.results:
        results = read(path)
        tokens = [token for chunk in results["text"] for token in chunk]
        prompt, timed = tokens[:WARM_UP], tokens[WARM_UP : WARM_UP + args.tokens]
        with contextlib.ExitStack() as stack:
            llm = stack.enter_context(opened(results["model"], max(args.threads)))
            subjects = [subject(stack, row, results["model"], max(args.threads)) for row in results["rows"]]
            for threads in args.threads:
                in_turn = measure_speed(llm, [None, *subjects], prompt, timed, threads)
                for found in tqdm(in_turn, f"{path.stem}, {threads} threads", total=len(timed) // TURN):
                    speeds: list[Speed] = found
                for row, of_row in zip(results["rows"], speeds[1:]):
                    row.setdefault("speed", {})[str(threads)] = dataclasses.asdict(of_row)
                results["dense"][f"tokens_per_second_{threads}"] = speeds[0].tokens_per_second
        found = [{"label": row["label"], "speed": row["speed"]} for row in results["rows"]]
        add(path, found, dense=results["dense"])


def texts(args: argparse.Namespace) -> None:
    results = read(args.results)
    rows = [row for row in results["rows"] if row["label"] in args.settings]
    configs = {row["label"]: SkipConfig(**{**row["config"], "warm_up_index": args.warm_up}) for row in rows}
    prompts = list(args.prompt)
    if args.prompts:
        chats = [chat for chat in read_texts([args.prompts]) if isinstance(chat, Chat)]
        prompts += [chat.messages[0]["content"] for chat in chats[: args.n]]
    written: dict[str, dict[str, Row]] = {}
    with opened(results["model"], args.threads, N_CTX_OF_TEXTS) as llm:
        for prompt in tqdm(prompts, "texts"):
            written[prompt] = {}
            for label in ("dense", *args.settings):
                with llm.dense() if label == "dense" else llm.skipping(configs[label]):
                    written[prompt][label] = answer(llm, prompt, args.tokens)
    add(args.results, [], texts=written)


def answer(llm: Llama, prompt: str, n: int) -> Row:
    tokens: list[int] = []
    ended = False
    for token in llm.generate(chat_prompt(llm, prompt), max_tokens=n, temp=0):
        ended = is_end(llm, token)
        if ended:
            break
        tokens.append(token)
    return {"text": llm.detokenize(tokens).decode("utf-8", "replace"), "tokens": tokens, "ended": ended}


# ---- what is shown ----


def render(args: argparse.Namespace) -> None:
    results = read(args.results)
    rows = results["rows"]
    if args.settings:
        rows = [row for label in args.settings for row in rows if row["label"] == label]
    compared = sorted({row["n_rows"] for row in rows})
    print(
        f"{' or '.join(map(str, compared))} tokens compared; perplexity of dense {results['dense']['perplexity']:.2f}\n"
    )
    print(table(results, rows, args.name))
    if results["texts"]:
        print(collapse(results["texts"]))
        print(side_by_side(results["texts"]))
    if args.picture:
        draw(results, args)


def table(results: Row, rows: Sequence[Row], name: str) -> str:
    columns = ["", "not read", "speed-up, 1 thread", "2 threads", "bytes allow"]
    columns += ["KL divergence", "perplexity", "same top token"]
    cells = [["dense", "", "1.00", "1.00", "1.00", "0", "x1.00", "100%"]]
    cells += [line(results, row) for row in sorted(rows, key=order)]
    if name:
        columns.insert(0, "model")
        cells = [[name if i == 0 else "", *of_row] for i, of_row in enumerate(cells)]
    return markdown(columns, cells, left=("model", ""))


def order(row: Row) -> tuple[int, float]:
    return ((*GROUPS, OTHERS).index(row["group"]), row["kl"])


def line(results: Row, row: Row) -> list[str]:
    return [
        row["label"],
        f"{row['saved']:.1%}" if "config" in row else f"{1 - row['size']:.0%} of file",
        *(speed_cell(row, threads) for threads in ("1", "2")),
        f"{results['model_bytes'] / row['model_bytes']:.2f}",
        f"{row['kl']:.3g} ± {row['kl_error']:.2g}",
        f"x{row['perplexity']:.2f}",
        f"{row['same_top']:.0%}",
    ]


def speed_cell(row: Row, threads: str) -> str:
    if threads not in row.get("speed", {}):
        return ""
    median, lower, upper = row["speed"][threads]["speed_up"]
    return f"{median:.2f} [{lower:.2f}, {upper:.2f}]"


def collapse(written: dict[str, dict[str, Row]]) -> str:
    """How far texts repeat themselves, over all prompts."""
    labels = list(next(iter(written.values())))
    rows = []
    for label in labels:
        answers = [of_prompt[label] for of_prompt in written.values() if label in of_prompt]
        found = [repeated(one["tokens"]) for one in answers]
        fours, twos = (sum(column) / len(found) for column in zip(*found))
        unfinished = sum(not one["ended"] for one in answers)
        rows.append([label, f"{fours:.0%}", f"{twos:.0%}", f"{unfinished} of {len(answers)}"])
    columns = ["", "repeated 4-grams", "distinct 2-grams", "unfinished"]
    return "\n" + markdown(columns, rows, left=columns[:1])


def repeated(tokens: Sequence[int]) -> tuple[float, float]:
    """Of the 4-grams the share that was there before, and of the 2-grams the share that are distinct."""
    return 1 - distinct(tokens, 4), distinct(tokens, 2)


def distinct(tokens: Sequence[int], n: int) -> float:
    grams = list(zip(*(tokens[i:] for i in range(n))))
    return len(set(grams)) / max(1, len(grams))


def side_by_side(written: dict[str, dict[str, Row]]) -> str:
    parts = []
    for prompt, answers in written.items():
        parts.append(f"\n> {prompt}\n")
        parts += [f"- **{label}**: {' '.join(one['text'].split())}" for label, one in answers.items()]
    return "\n".join(parts)


def draw(results: Row, args: argparse.Namespace) -> None:
    """KL divergence against speed-up; the lower right is where one wants to be."""
    threads = str(args.threads)
    rows = [row for row in results["rows"] if row["group"] in STYLES and threads in row.get("speed", {})]
    with style.drawing(6.4, 4.2) as (figure, axes):
        ax: Axes = axes[0, 0]
        for group, (color, marker) in STYLES.items():
            points = sorted((row["speed"][threads]["speed_up"][0], row["kl"]) for row in rows if row["group"] == group)
            if points:
                linestyle = "none" if group == SMALLER else "-"
                ax.plot(*zip(*points), color=color, marker=marker, markersize=4.5, linestyle=linestyle, label=group)
        for row in rows:
            if row["group"] == SMALLER:
                point = row["speed"][threads]["speed_up"][0], row["kl"]
                style.label(ax, point, row["label"], style.DARK_RED, 6, ha="right")
        ax.set_yscale("log")
        ax.set_xlabel(f"speed-up over dense, {threads} thread{'' if threads == '1' else 's'}")
        ax.set_ylabel("KL divergence, nats per token")
        ax.legend(frameon=False)
        style.add_title(figure, args.name or Path(results["model"]).name)
    args.picture.write_bytes(style.png_bytes(figure))


# ---- the file ----


def read(path: Path) -> Row:
    if not path.exists():
        return {"rows": [], "dense": {}, "texts": {}}
    found: Row = json.loads(path.read_text(encoding="utf-8"))
    return found


def add(path: Path, rows: Sequence[Row], **changes: Any) -> None:
    """To what is in the file by now: another command may be adding to it."""
    results = read(path)
    known = {row["label"]: row for row in results["rows"]}
    for row in rows:
        known.setdefault(row["label"], {}).update(row)
    results["rows"] = list(known.values())
    for name, value in changes.items():
        results[name] = {**results[name], **value} if isinstance(value, dict) else value
    with whole_file(path) as file:
        file.write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
