"""The Hugging Face to GGUF converter; `conversion` joins its parts.

settings     config.json and its neighbours, read with a clear error for what does not fit
checkpoint   which tensors there are and where, from the headers of the safetensors files
pickled      the same for .bin files, through PyTorch, where the user allows it
families     one class per architecture: its hyperparameters, its tensors, its metadata
rope         rotary position settings, in both spellings of config.json
plan         one tensor of the GGUF, and how it is made from tensors of the checkpoint
tokenizer    the tokenizer in whichever form it is there; byte_bpe and sentence_piece read the two kinds
vocabulary   tokens by id with their types; special_tokens adds roles, bos and eos, and the chat template
writer       the GGUF file, written tensor by tensor in pieces
"""

from __future__ import annotations

from .conversion import convert

__all__ = ["convert"]
