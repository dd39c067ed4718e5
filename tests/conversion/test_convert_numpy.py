"""Conversion of checkpoints made with NumPy alone: names, sizes, and what a converter must not write over."""

from __future__ import annotations

import json
import os

import gguf
import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp.conversion import conversion as converter
from support.numpy_checkpoints import CONFIG, random_tensors, write_checkpoint

TIED = {**CONFIG, "tie_word_embeddings": True}


def convert(model_dir, out, outtype="f32"):
    return converter.convert(model_dir, out, outtype, progress=False).path


@pytest.fixture
def expected(tmp_path):
    """The bytes of the file that the usual names give, tied or not."""
    made = {}
    for tied in (False, True):
        (tmp_path / f"usual-{tied}").mkdir()
        model_dir = write_checkpoint(tmp_path / f"usual-{tied}" / "hf", tie_word_embeddings=tied)
        made[tied] = convert(model_dir, tmp_path / f"usual-{tied}" / "m.gguf").read_bytes()
    return made


def test_every_tensor_is_that_of_the_checkpoint(tmp_path):
    """llama.cpp rotates neighbours: row 2i of a head is row i of the checkpoint's, row 2i + 1 is row i + n/2."""
    path = convert(write_checkpoint(tmp_path / "hf"), tmp_path / "m.gguf")
    found = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    source = random_tensors(CONFIG)
    assert np.array_equal(found["token_embd.weight"], source["model.embed_tokens.weight"])
    assert np.array_equal(found["output.weight"], source["lm_head.weight"])
    assert np.array_equal(found["blk.1.ffn_down.weight"], source["model.layers.1.mlp.down_proj.weight"])
    assert np.array_equal(found["blk.0.attn_norm.weight"], source["model.layers.0.input_layernorm.weight"])
    for name, n_head in (("q", 4), ("k", 2)):
        given, got = source[f"model.layers.1.self_attn.{name}_proj.weight"], found[f"blk.1.attn_{name}.weight"]
        for head in range(n_head):
            for i in range(4):
                assert np.array_equal(got[8 * head + 2 * i], given[8 * head + i])
                assert np.array_equal(got[8 * head + 2 * i + 1], given[8 * head + 4 + i])
    llm = llama_cpp.Llama(str(path), n_ctx=32, n_threads=1, verbose=False)
    assert llm.tokenize("aäth".encode(), add_bos=False) == [97, *"ä".encode(), 256]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "prefix", ["", "transformer.", "language_model.", "model.language_model.", "language_model.model."]
)
def test_names_with_another_prefix_give_the_same_file(tmp_path, expected, prefix, tied):
    config = TIED if tied else CONFIG
    model_dir = write_checkpoint(tmp_path / "hf", random_tensors(config, prefix), tie_word_embeddings=tied)
    assert convert(model_dir, tmp_path / "m.gguf").read_bytes() == expected[tied]


def test_a_base_model_is_its_causal_model(tmp_path, expected):
    """As AutoModel.save_pretrained leaves it."""
    model_dir = write_checkpoint(
        tmp_path / "hf", random_tensors(TIED, ""), architectures=["LlamaModel"], tie_word_embeddings=True
    )
    assert convert(model_dir, tmp_path / "m.gguf").read_bytes() == expected[True]


def test_a_base_model_without_an_output_matrix_is_refused(tmp_path):
    tensors = random_tensors(CONFIG, "")
    del tensors["lm_head.weight"]
    model_dir = write_checkpoint(tmp_path / "hf", tensors, architectures=["LlamaModel"])
    with pytest.raises(ValueError, match=r"'lm_head\.weight' is missing; the model was saved without"):
        convert(model_dir, tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000; expected 512 at most"),
        ("num_hidden_layers", 10**30, "expected 512 at most"),
        ("hidden_size", 2**31 - 2, "hidden_size is 2147483646; expected 262144 at most"),
        ("num_attention_heads", 10**9, "num_attention_heads is 1000000000; expected 262144 at most"),
        ("head_dim", 10**9, "head_dim is 1000000000; expected 65536 at most"),
        ("intermediate_size", 10**9, r"shape \[64, 32\]; config.json calls for \[1000000000, 32\]"),
        ("vocab_size", 2**31 - 1, r"shape \[259, 32\]; config.json calls for \[2147483647, 32\]"),
        ("vocab_size", 2**31, "vocab_size is 2147483648; expected 2147483647 at most"),
        ("max_position_embeddings", 10**12, "max_position_embeddings is 1000000000000; expected"),
    ],
)
def test_sizes_beyond_any_model_are_refused_at_once(tmp_path, key, value, why):
    model_dir = write_checkpoint(tmp_path / "hf", random_tensors(CONFIG), **{key: value})
    with pytest.raises(ValueError, match=why):
        convert(model_dir, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["itself", "symlink", "hard link"])
def test_a_file_of_the_checkpoint_is_not_written_over(tmp_path, name, how):
    model_dir = write_checkpoint(tmp_path / "hf")
    out, before = model_dir / name, (model_dir / name).read_bytes()
    if how != "itself":
        out = tmp_path / "out.gguf"
        (os.symlink if how == "symlink" else os.link)(model_dir / name, out)
    with pytest.raises(ValueError, match="is the input itself; give another name"):
        convert(model_dir, out)
    assert (model_dir / name).read_bytes() == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"\xef\xbb\xbf" + data,  # a byte order mark
        lambda data: data.replace(b"{", b'{"x": "\xff\xfe", ', 1),
        lambda data: data[:-2],
        lambda data: b"[" * 100_000,
        lambda data: b"[1, 2]",
    ],
)
def test_json_that_is_damaged_is_refused_by_name(tmp_path, name, spoil):
    model_dir = write_checkpoint(tmp_path / "hf")
    (model_dir / name).write_bytes(spoil((model_dir / name).read_bytes()))
    with pytest.raises(ValueError, match=name) as caught:
        convert(model_dir, tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)


def test_a_token_that_is_no_text_is_refused_by_name(tmp_path):
    """Half of a surrogate pair: JSON can say it, UTF-8 can't."""
    model_dir = write_checkpoint(tmp_path / "hf")
    tokenizer = json.loads((model_dir / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["content"] = "<\ud800>"
    (model_dir / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"tokenizer\.json: not valid JSON .*surrogates not allowed"):
        convert(model_dir, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("template", [3, True, {"x": 1}, ["x"], [[]], [{"name": "default", "template": 1}]], ids=str)
def test_a_chat_template_that_is_none_is_refused(tmp_path, template):
    model_dir = write_checkpoint(tmp_path / "hf")
    (model_dir / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|stop|>", "chat_template": template}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: chat_template is neither"):
        convert(model_dir, tmp_path / "m.gguf")


def test_a_chat_template_file_that_is_no_text_is_named(tmp_path):
    model_dir = write_checkpoint(tmp_path / "hf")
    (model_dir / "chat_template.jinja").write_bytes(b"{{ x }}\xff")
    with pytest.raises(ValueError, match=r"chat_template\.jinja: not text in UTF-8 \(byte 7 is 0xff\)"):
        convert(model_dir, tmp_path / "m.gguf")
