"""Reads the tokenizer of a checkpoint directory, in whichever of its forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .byte_bpe import bpe_from_json
from .sentence_piece import read_sentencepiece_directory, spm_from_json, unigram_from_json
from .settings import Json, read_json
from .special_tokens import added_around, read_chat_template, special_ids
from .vocabulary import AddedToken, BaseVocabulary, Vocabulary, added_token, complete


def read_vocabulary(model_dir: Path, config: Json, n_vocab: int) -> Vocabulary:
    """Read the tokenizer of `model_dir` and pad it to the `n_vocab` rows of the embedding.

    Raises:
        FileNotFoundError: There is no tokenizer.
        ValueError: llama.cpp would give other token ids, or the files contradict each other.
    """
    settings = read_json(model_dir / "tokenizer_config.json")
    tokenizer = read_json(model_dir / "tokenizer.json")
    sentencepiece = model_dir / "tokenizer.model"
    if tokenizer:
        base, added = read_tokenizer_json(tokenizer, sentencepiece)
    elif sentencepiece.is_file():
        base, added = read_sentencepiece_directory(sentencepiece, settings)
    else:
        raise FileNotFoundError(f"{model_dir}: no tokenizer; expected tokenizer.json or tokenizer.model")
    vocab = complete(base, added, n_vocab)
    generation = read_json(model_dir / "generation_config.json")
    vocab.special = special_ids(vocab, settings, config, generation)
    vocab.add_bos, vocab.add_eos = added_around(tokenizer, settings, vocab)
    # Without this key llama.cpp assumes a fixed id, which here may be an ordinary token.
    vocab.special.setdefault("bos", vocab.special["eos"])
    vocab.chat_template = read_chat_template(model_dir, settings)
    return vocab


def read_tokenizer_json(tokenizer: Json, sentencepiece: Path) -> tuple[BaseVocabulary, dict[int, AddedToken]]:
    model = tokenizer.get("model") or {}
    added = {entry["id"]: added_token(entry) for entry in tokenizer.get("added_tokens") or []}
    if model.get("type") == "Unigram":
        return unigram_from_json(tokenizer, sentencepiece), added
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise ValueError(f"tokenizer.json: model type {model.get('type')!r}; expected BPE or Unigram")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise ValueError(f"tokenizer.json: {key} {model[key]!r} has no counterpart in llama.cpp")
    merges: list[Any] = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]
    ]
    # An added token keeps its id when the vocabulary lists it too, and is never the result of a merge.
    added_texts = {token.text for token in added.values()}
    ids = {text: i for text, i in model["vocab"].items() if text not in added_texts or i not in added}
    if model.get("byte_fallback"):
        return spm_from_json(tokenizer, ids, merges, added_texts, sentencepiece), added
    return bpe_from_json(tokenizer, ids, merges), added
