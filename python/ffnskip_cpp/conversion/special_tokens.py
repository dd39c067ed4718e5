"""Special tokens by role, whether bos and eos go around a text, and the chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import TokenType

from .settings import Json
from .vocabulary import Vocabulary

# Marks that end a turn rather than the text, by the names llama.cpp knows.
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
END_OF_MESSAGE = "<|eom_id|>"


def special_ids(vocab: Vocabulary, settings: Json, config: Json, generation: Json) -> dict[str, int]:
    """Ids by role: named in tokenizer_config.json, else numbered in config.json or generation_config.json."""
    ids = {text: i for i, text in enumerate(vocab.tokens)}
    special = {}
    for role in ("bos", "eos", "unk", "pad"):
        named = settings.get(f"{role}_token")
        text = named.get("content") if isinstance(named, dict) else named
        if text in ids:
            special[role] = ids[text]
        elif numbered := numbered_ids(vocab, role, config, generation):
            special[role] = numbered[0]
    if "eos" not in special:
        raise ValueError("tokenizer_config.json: no eos_token, and config.json has no eos_token_id that is special")
    if END_OF_MESSAGE in ids:
        special["eom"] = ids[END_OF_MESSAGE]
    # Generation also ends at a turn's end, and at what else is listed as eos; llama.cpp has room for eot and eom.
    more_ends = [i for i in numbered_ids(vocab, "eos", generation, config) if i != special["eos"]]
    turns = [ids[text] for text in END_OF_TURN if text in ids] + more_ends
    if turns:
        special["eot"] = turns[0]
    for i in more_ends:
        if i != special["eot"]:
            special.setdefault("eom", i)
    return special


def numbered_ids(vocab: Vocabulary, role: str, *configs: Json) -> list[int]:
    """`role`_token_id of each config, a number or a list, as far as they are special tokens.

    config.json often carries the library's default ids, which in this vocabulary can be ordinary tokens.
    """
    values = [config.get(f"{role}_token_id") for config in configs]
    ids = [i for value in values for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]
    ordinary = (TokenType.NORMAL, TokenType.UNUSED, TokenType.BYTE)
    return [i for i in ids if 0 <= i < len(vocab.tokens) and vocab.types[i] not in ordinary]


def added_around(tokenizer: Json, settings: Json, vocab: Vocabulary) -> tuple[bool, bool]:
    """Whether bos is put before and eos after a text.

    As in transformers: the template of tokenizer.json decides; the flags of tokenizer_config.json only without it.
    """
    if not tokenizer:
        return bool(settings.get("add_bos_token", True)), bool(settings.get("add_eos_token", False))
    before, after = template_ends(tokenizer.get("post_processor"))
    for role, found in (("bos", before), ("eos", after)):
        # a template names bos where tokenizer_config.json does not
        if len(found) > 1 or (found and vocab.special.setdefault(role, found[0]) != found[0]):
            texts = [vocab.tokens[i] for i in found]
            raise ValueError(f"tokenizer.json: its template adds {texts}; llama.cpp can only add the {role} token")
    return bool(before), bool(after)


def template_ends(post: Json | None) -> tuple[list[int], list[int]]:
    """Ids that the post-processor adds before and after a single text."""
    before: list[int] = []
    after: list[int] = []
    kind = post["type"] if post else "ByteLevel"
    if kind == "ByteLevel":  # changes offsets only
        return before, after
    if post and kind == "Sequence":
        for part in post["processors"]:
            for end, ids in zip((before, after), template_ends(part)):
                end.extend(ids)
        return before, after
    if not post or kind != "TemplateProcessing":
        raise ValueError(f"tokenizer.json: unknown post-processor {kind!r}; known: ByteLevel, TemplateProcessing")
    end = before
    for item in post["single"]:
        if "Sequence" in item:
            end = after
        else:
            end.extend(post["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    return before, after


def read_chat_template(model_dir: Path, settings: Json) -> Any:
    """chat_template.jinja, with named ones beside it, comes before tokenizer_config.json, as in transformers."""
    file = model_dir / "chat_template.jinja"
    if not file.is_file():
        template = settings.get("chat_template")
        if not (template is None or isinstance(template, str) or _are_named(template)):
            raise ValueError(
                f"{model_dir / 'tokenizer_config.json'}: chat_template is neither a string nor a list of objects with "
                "a name and a template"
            )
        return template
    template = _read_text(file)
    more = sorted((model_dir / "additional_chat_templates").glob("*.jinja"))
    if not more:
        return template
    named = [{"name": path.stem, "template": _read_text(path)} for path in more]
    return [{"name": "default", "template": template}, *named]


def _are_named(templates: Any) -> bool:
    return isinstance(templates, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
        for entry in templates
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        raise ValueError(f"{path}: not text in UTF-8 (byte {at} is 0x{error.object[at]:02x})") from error
