"""What goes wrong with a checkpoint or a disk is told in one line that names tensor and file, and leaves no file."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from ffnskip_cpp import cli
from ffnskip_cpp.conversion import conversion as converter
from ffnskip_cpp.conversion import writer
from support.tiny_checkpoints import SCRIPT, random_model, save_checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

# ruff: noqa: E501 - the table of refusals reads best with one line each
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
TENSOR = "model.layers.1.mlp.down_proj.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({**alphabet, "th": 256}, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|begin|>", "<|stop|>"])
    return tokenizer


@pytest.fixture(scope="module")
def originals(tmp_path_factory, tokenizer):
    """A checkpoint in one file, in shards, and of a mixture of experts."""
    folder = tmp_path_factory.mktemp("originals")
    llama = random_model("LlamaForCausalLM", SIZES)
    moe = random_model("MixtralForCausalLM", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2})
    save_checkpoint(folder / "whole", llama, tokenizer)
    save_checkpoint(folder / "sharded", llama, tokenizer, max_shard_size="60KB")
    save_checkpoint(folder / "moe", moe, tokenizer)
    return folder


@pytest.fixture
def copy_of(originals, tmp_path):
    return lambda name: Path(shutil.copytree(originals / name, tmp_path / "hf"))


def convert(model_dir, outtype="f32", **options):
    return converter.convert(model_dir, model_dir.parent / "out.gguf", outtype, progress=False, **options).path


def assert_refused(model_dir, *parts, error=ValueError, outtype="f32", **options):
    """One line with all of `parts`, and nothing written."""
    with pytest.raises(error) as caught:
        convert(model_dir, outtype, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message
    assert not list(model_dir.parent.glob("*.gguf*")) and not list(model_dir.parent.glob(".*part"))


def shard_of(model_dir, tensor=TENSOR):
    return model_dir / json.loads((model_dir / INDEX).read_text())["weight_map"][tensor]


def change_tensors(path, change):
    tensors = safetensors_numpy.load_file(path)
    change(tensors)
    safetensors_numpy.save_file(tensors, path)


# ----------------------------------------------------------------------------------------------------------------------
# Damaged checkpoints


def test_truncated_shard_names_tensor_and_file(copy_of):
    model_dir = copy_of("sharded")
    shard = shard_of(model_dir)
    shard.write_bytes(shard.read_bytes()[:-1])
    header = header_of(shard)
    last = max(header, key=lambda name: header[name]["data_offsets"][1])
    assert_refused(model_dir, shard.name, repr(last), "truncated")


def header_of(path):
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def test_shard_with_a_damaged_header_is_named(copy_of):
    model_dir = copy_of("sharded")
    shard = shard_of(model_dir)
    data = bytearray(shard.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    shard.write_bytes(data)
    assert_refused(model_dir, shard.name, "damaged safetensors header")


@pytest.mark.parametrize("name", ["whole", "sharded"])
def test_missing_tensor_is_named_with_the_file_it_should_be_in(name, copy_of):
    model_dir = copy_of(name)
    if name == "whole":
        change_tensors(model_dir / "model.safetensors", lambda tensors: tensors.pop(TENSOR))
        assert_refused(model_dir, "model.safetensors", f"{TENSOR!r} is missing")
        return
    shard = shard_of(model_dir)
    change_tensors(shard, lambda tensors: tensors.pop(TENSOR))
    assert_refused(model_dir, shard.name, f"{TENSOR!r} is missing, though the index says it is there")
    index = json.loads((model_dir / INDEX).read_text())
    del index["weight_map"][TENSOR]
    (model_dir / INDEX).write_text(json.dumps(index))
    assert_refused(model_dir, INDEX, f"{TENSOR!r} is missing")


def test_shape_that_contradicts_the_config_names_tensor_file_and_both_shapes(copy_of):
    model_dir = copy_of("sharded")
    shard = shard_of(model_dir)
    change_tensors(shard, lambda tensors: tensors.update({TENSOR: np.zeros((64, 95), np.float32)}))
    assert_refused(model_dir, shard.name, repr(TENSOR), "[64, 95]", "config.json calls for [64, 96]")


def test_index_that_names_an_absent_file_names_it_and_a_tensor_in_it(copy_of):
    model_dir = copy_of("sharded")
    shard = shard_of(model_dir)
    shard.unlink()
    first = next(name for name, file in weight_map_of(model_dir).items() if file == shard.name)
    assert_refused(model_dir, INDEX, repr(shard.name), repr(first), error=FileNotFoundError)


def weight_map_of(model_dir):
    return json.loads((model_dir / INDEX).read_text())["weight_map"]


def test_value_that_is_not_finite_names_the_one_expert_and_its_file(copy_of):
    model_dir = copy_of("moe")
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"

    def spoil(tensors):
        tensors[name][3, 5] = np.inf

    change_tensors(model_dir / "model.safetensors", spoil)
    assert_refused(model_dir, "model.safetensors", repr(name), "holds infinities or NaN")
    assert_refused(model_dir, repr(name), "holds infinities or NaN", outtype="q8_0")


def test_value_beyond_f16_names_the_one_expert(copy_of):
    model_dir = copy_of("moe")
    name = "model.layers.0.block_sparse_moe.experts.3.w2.weight"

    def spoil(tensors):
        tensors[name][0, 0] = 1e6

    change_tensors(model_dir / "model.safetensors", spoil)
    assert_refused(model_dir, repr(name), "holds 1e+06, beyond F16", outtype="f16")
    assert convert(model_dir, "bf16").is_file()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16"])
def test_value_that_is_not_finite_is_found_in_every_type(value, dtype, outtype, copy_of):
    """Also where the bytes are passed on as they are."""
    from safetensors.torch import load_file, save_file

    model_dir = copy_of("whole")
    path = model_dir / "model.safetensors"
    weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(path).items()}
    weights[TENSOR][7, 9] = value
    save_file(weights, path)
    assert_refused(model_dir, path.name, repr(TENSOR), "holds infinities or NaN", outtype=outtype)


def test_missing_expert_is_named(copy_of):
    model_dir = copy_of("moe")
    name = "model.layers.1.block_sparse_moe.experts.3.w3.weight"
    change_tensors(model_dir / "model.safetensors", lambda tensors: tensors.pop(name))
    assert_refused(model_dir, "model.safetensors", f"{name!r} is missing")


# ----------------------------------------------------------------------------------------------------------------------
# Settings that llama.cpp does not follow. Each is refused by the class of its family.

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7}
CONFIGS = {
    "mixtral, too many experts": ("MixtralForCausalLM", {"num_local_experts": 2, "num_experts_per_tok": 3}, "3 experts per"),
    "qwen2moe, dense layers": ("Qwen2MoeForCausalLM", {**EXPERTS, "mlp_only_layers": [0]}, "some layers are dense"),
    "qwen2moe, normalised": (
        "Qwen2MoeForCausalLM",
        {**EXPERTS, "shared_expert_intermediate_size": 8, "norm_topk_prob": True},
        "norm_topk_prob is true",
    ),
    "qwen3moe, not normalised": ("Qwen3MoeForCausalLM", EXPERTS, "norm_topk_prob is false"),
    "gemma2, scale": ("Gemma2ForCausalLM", {**GEMMA, "query_pre_attn_scalar": 9}, "query_pre_attn_scalar 9; .*by 16"),
    "gemma2, untied": ("Gemma2ForCausalLM", {**GEMMA, "tie_word_embeddings": False}, "tie_word_embeddings is false"),
    "gemma2, no cap": ("Gemma2ForCausalLM", {**GEMMA, "attn_logit_softcapping": None}, "attn_logit_softcapping is null"),
    "gemma3, layer types": ("Gemma3ForCausalLM", {**GEMMA, "layer_types": ["full_attention"]}, "1 entries for 2 layers"),
    "gemma3, both ways": ("Gemma3ForCausalLM", {**GEMMA, "use_bidirectional_attention": True}, "no model that generates"),
    "phi3, factors": ("Phi3ForCausalLM", {"rope_scaling": LONGROPE}, "long_factor has 7 entries; expected 8"),
    "phi3, yarn": ("Phi3ForCausalLM", {"rope_scaling": {"type": "yarn", "factor": 2}}, "'yarn'.*known: default, longrope"),
    "olmo2, bias": ("Olmo2ForCausalLM", {"attention_bias": True}, "attention_bias is true; there is none"),
    "falcon, alibi": ("FalconForCausalLM", {"alibi": True}, "alibi is true; positions are rotated"),
    "falcon, sequential": ("FalconForCausalLM", {"parallel_attn": False}, "parallel_attn is false"),
    "gpt2, scale": ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "gptneox, no bias": ("GPTNeoXForCausalLM", {"attention_bias": False}, "attention_bias is false; attention has biases"),
    "gptneox, odd share": ("GPTNeoXForCausalLM", {"rotary_pct": 0.2}, "rotary_pct 0.2 rotates 3 of 16 dimensions"),
    "starcoder2, no bias": ("Starcoder2ForCausalLM", {"use_bias": False}, "use_bias is false"),
    "command-r, norms": ("CohereForCausalLM", {"use_qk_norm": True}, "use_qk_norm is true with 2 layers"),
    "command-r, untied": ("CohereForCausalLM", {"tie_word_embeddings": False}, "has no output matrix"),
    "smollm3, rotation": ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0]}, "leaves out every fourth layer"),
    "stablelm, activation": ("StableLmForCausalLM", {"hidden_act": "gelu"}, "hidden_act 'gelu'; .*computes 'silu'"),
    "granite, scale": ("GraniteForCausalLM", {"logits_scaling": 0}, "logits_scaling is 0; expected a positive number"),
}  # fmt: skip
GPT2_NAMES = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128}


@pytest.mark.parametrize("case", CONFIGS)
def test_setting_that_llama_cpp_does_not_follow_is_refused_by_name(case):
    architecture, options, message = CONFIGS[case]
    config = {"architectures": [architecture], **SIZES, **GPT2_NAMES, **options}
    with pytest.raises(ValueError, match=message):
        family = converter.find_family(config)
        family.add_metadata(gguf.GGUFWriter(None, family.arch))


def test_unknown_architecture_lists_the_known_ones():
    with pytest.raises(ValueError, match="unsupported architecture BertModel") as caught:
        converter.find_family({"architectures": ["BertModel"]})
    assert all(name in str(caught.value) for name in converter.FAMILIES)


# ----------------------------------------------------------------------------------------------------------------------
# Pickled weights


def save_pickled(model_dir, n_files=1):
    """Replaces the safetensors of a checkpoint by .bin files; with an index where there are several."""
    path = model_dir / "model.safetensors"
    tensors = {name: torch.from_numpy(data) for name, data in safetensors_numpy.load_file(path).items()}
    path.unlink()
    names = list(tensors)
    files = [f"pytorch_model-{i + 1:05}-of-{n_files:05}.bin" for i in range(n_files)]
    files = ["pytorch_model.bin"] if n_files == 1 else files
    weight_map = {name: files[i % n_files] for i, name in enumerate(names)}
    for file in files:
        torch.save({name: tensors[name] for name in names if weight_map[name] == file}, model_dir / file)
    if n_files > 1:
        (model_dir / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_pickled_weights_are_refused_with_the_reason_and_the_option(copy_of):
    model_dir = copy_of("whole")
    save_pickled(model_dir)
    assert_refused(model_dir, "pickled", "can run code when opened", "--allow-pickle")
    command = ["convert", str(model_dir), "-o", str(model_dir.parent / "out.gguf"), "--no-progress"]
    assert cli.main(command) == 1
    assert cli.main([*command, "--allow-pickle"]) == 0


@pytest.mark.parametrize("n_files", [1, 3])
@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_pickled_weights_give_the_same_file_where_they_are_allowed(copy_of, n_files, outtype):
    model_dir = copy_of("whole")
    expected = convert(model_dir, outtype).read_bytes()
    save_pickled(model_dir, n_files)
    assert convert(model_dir, outtype, allow_pickle=True).read_bytes() == expected


def test_pickled_bf16_and_f16_are_read(copy_of):
    model_dir = copy_of("whole")
    save_pickled(model_dir)
    path = model_dir / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    half = {name: value.bfloat16() if "mlp" in name else value.half() for name, value in weights.items()}
    torch.save(half, path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(convert(model_dir, allow_pickle=True)).tensors}
    for name, source in (("blk.1.ffn_down.weight", TENSOR), ("token_embd.weight", "model.embed_tokens.weight")):
        assert np.array_equal(tensors[name].data, half[source].float().numpy())


def test_pickle_that_would_run_code_is_refused_though_pickles_are_allowed(copy_of):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(model_dir / "ran"),)

    model_dir = copy_of("whole")
    (model_dir / "model.safetensors").unlink()
    torch.save({"x": Hostile()}, model_dir / "pytorch_model.bin")
    assert_refused(model_dir, "pytorch_model.bin", "does not open it as plain weights", allow_pickle=True)
    assert not (model_dir / "ran").exists()


def test_pickled_weights_without_pytorch_say_what_to_install(copy_of, monkeypatch):
    model_dir = copy_of("whole")
    save_pickled(model_dir)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_refused(model_dir, "pytorch_model.bin", "needs PyTorch; pip install torch", allow_pickle=True)


def test_safetensors_are_converted_without_importing_pytorch(copy_of):
    model_dir = copy_of("whole")
    code = f"""
        import sys
        import sys
        from ffnskip_cpp.conversion.conversion import convert
        convert({str(model_dir)!r}, {str(model_dir.parent / "m.gguf")!r}, progress=False)
        print("torch" in sys.modules, "transformers" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


# ----------------------------------------------------------------------------------------------------------------------
# Interrupts and full disks


def large_checkpoint(folder, tokenizer, n_bytes=3 << 30):
    """A checkpoint of zeros that take no disk space, large enough for its conversion to take a while."""
    n_vocab, n_embd = n_bytes // 2 // 4096 - 64, 4096
    config = {**SIZES, "vocab_size": n_vocab, "hidden_size": n_embd, "tie_word_embeddings": True}
    config.update(architectures=["LlamaForCausalLM"], intermediate_size=8, num_hidden_layers=1)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|stop|>"}))
    header, offset = {}, 0
    for entry in converter.find_family(config).plan():
        size = 2 * int(np.prod(entry.shape))
        header[entry.sources[0]] = {
            "dtype": "BF16",
            "shape": list(entry.source_shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    head = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + offset)
    return folder


def start(model_dir, out, *options, **popen):
    command = [sys.executable, str(SCRIPT), str(model_dir), "-o", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)


def test_interrupted_conversion_leaves_no_file(tmp_path, tokenizer):
    """As Ctrl-C does it, once the first bytes are on the disk."""
    model_dir = large_checkpoint(tmp_path / "hf", tokenizer)
    process = start(model_dir, tmp_path / "out.gguf", "--no-progress", "--outtype", "q8_0")
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 1 << 20 for path in tmp_path.glob(".out.gguf.*part")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (stdout, stderr) == ("", "ffnskip convert: interrupted; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_file_that_outgrows_a_limit_ends_in_one_line(copy_of):
    """As a full disk, but by a limit that needs no disk of its own."""
    model_dir = copy_of("whole")
    out = model_dir.parent / "out.gguf"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = start(model_dir, out, "--no-progress", preexec_fn=limit)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    why = r"it outgrows the limit on the size of a file; it takes \d+ MB; nothing was written"
    assert re.fullmatch(rf"ffnskip convert: .*out\.gguf: {why}\n", stderr)
    assert [path.name for path in model_dir.parent.iterdir()] == ["hf"]


def test_full_disk_ends_in_one_line_and_keeps_the_existing_file(copy_of, monkeypatch, capsys):
    model_dir = copy_of("whole")
    out = model_dir.parent / "out.gguf"
    out.write_bytes(b"precious")

    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer.Encoded, "tofile", no_space)
    assert cli.main(["convert", str(model_dir), "-o", str(out), "--no-progress"]) == 1
    expected = r"ffnskip convert: .*out\.gguf: the disk is full; it takes \d+ MB; nothing was written\n"
    assert re.fullmatch(expected, capsys.readouterr().err)
    assert out.read_bytes() == b"precious"
    assert sorted(path.name for path in model_dir.parent.iterdir()) == ["hf", "out.gguf"]
