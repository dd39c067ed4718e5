"""The header reader agrees with gguf.GGUFReader on every file, and refuses in one line what is no header."""

from __future__ import annotations

import struct

import gguf
import pytest

from ffnskip_cpp.gguf_file.header import read_header, read_headers
from support.running import split

KINDS = ["llama", "llama_q8_0", "moe", "phi3", "mamba", "bert", "demo"]


def string(text):
    return struct.pack("<Q", len(text)) + text


def header(*entries, tensors=(), version=3, n_entries=None, n_tensors=None, magic=b"GGUF", order="<"):
    """A file of a header alone; entries and tensors are bytes."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(entries) if n_entries is None else n_entries,
    )
    return magic + struct.pack(f"{order}IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)


def entry(key, kind, value):
    return string(key) + struct.pack("<I", kind) + value


def tensor(name, dims, kind=0, offset=0, n_dims=None):
    n_dims = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", n_dims, *dims, kind, offset)


@pytest.mark.parametrize("kind", KINDS)
def test_header_is_what_gguf_reads(kind, model_file):
    path = model_file(kind)
    ours, theirs = read_header(path), gguf.GGUFReader(path)
    metadata = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert repr(dict(ours.metadata)) == repr(metadata)  # NaN is itself
    expected = [
        (t.name, tuple(map(int, t.shape)), int(t.tensor_type), int(t.n_elements), int(t.n_bytes), int(t.data_offset))
        for t in theirs.tensors
    ]
    found = [(t.name, t.dims, t.type, t.n_elements, t.n_bytes, ours.data_offset + t.offset) for t in ours.tensors]
    assert found == expected
    assert [t.type_name for t in ours.tensors] == [t.tensor_type.name.lower() for t in theirs.tensors]
    assert ours.architecture == theirs.fields["general.architecture"].contents()


def test_every_type_of_value_is_read(tmp_path):
    types = gguf.GGUFValueType
    values = {
        types.UINT8: 255, types.INT8: -128, types.UINT16: 65535, types.INT16: -32768, types.UINT32: 2**32 - 1,
        types.INT32: -(2**31), types.FLOAT32: 0.5, types.BOOL: True, types.STRING: "ä\n€", types.UINT64: 2**64 - 1,
        types.INT64: -(2**63), types.FLOAT64: 1e300,
    }  # fmt: skip
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "x")
    for kind, value in values.items():
        writer.add_key_value(f"one.{kind.name}", value, kind)
        writer.add_key_value(f"list.{kind.name}", [value, value], types.ARRAY, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = read_header(tmp_path / "a.gguf").metadata
    for kind, value in values.items():
        assert metadata[f"one.{kind.name}"] == value
        assert metadata[f"list.{kind.name}"] == [value, value]


def test_parts_of_a_split_model(model_file, tmp_path):
    whole = read_header(model_file("llama"))
    parts = split(whole.path, tmp_path / "m.gguf")
    assert sorted(t.name for h in read_headers(parts[0]) for t in h.tensors) == sorted(t.name for t in whole.tensors)
    assert [h.path for h in read_headers(parts[0])] == parts
    assert [h.path for h in read_headers(whole.path)] == [whole.path]
    with pytest.raises(ValueError, match=r"00002-of-00003\.gguf: not the first part of the model; that is m-00001-of"):
        read_headers(parts[1])
    renamed = parts[0].rename(tmp_path / "other.gguf")
    with pytest.raises(ValueError, match=r"other\.gguf: one of 3 parts; its name must end in -00001-of-00003\.gguf"):
        read_headers(renamed)
    renamed.rename(parts[0])
    parts[2].unlink()
    with pytest.raises(ValueError, match=r"m-00001-of.*: one of 3 parts: .*m-00003-of-00003\.gguf: no such file"):
        read_headers(parts[0])


HUGE = [2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
U8, U32, STRING, ARRAY = 0, 4, 8, 9


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", r"not a GGUF file \(it is empty\)"),
        (b"PK\x03\x04" + bytes(99), r"not a GGUF file \(it starts with b'PK"),
        (header()[:23], "truncated GGUF file: 23 bytes"),
        (header(version=1), "GGUF version 1; expected 2 or 3"),
        (header(version=4), "GGUF version 4; expected 2 or 3"),
        (header(order=">"), "a big-endian GGUF file; this machine is little-endian"),
        *((header(n_entries=n), "does not end within its 24 bytes") for n in HUGE),
        *((header(n_tensors=n), "does not end within its 24 bytes") for n in HUGE),
        *((header(struct.pack("<Q", n)), "does not end within") for n in HUGE),
        *((header(entry(b"a", STRING, struct.pack("<Q", n))), "does not end within") for n in HUGE),
        *((header(entry(b"a", ARRAY, struct.pack("<IQ", k, n))), "does not end within") for k in (U8, 8) for n in HUGE),
        *((header(tensors=[tensor(b"t", [], n_dims=n)]), f"'t' has {n} dimensions; 4 at most") for n in (5, 2**32 - 1)),
        (header(entry(b"a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 10**5)), "value of 'a' has lists in lists"),
        (header(entry(b"a", ARRAY, struct.pack("<IQ", 77, 1)) + bytes(99)), "value of 'a' has type 77"),
        (header(entry(b"a", 13, bytes(99))), "value of 'a' has type 13"),
        (header(entry(b"a", U8, b"1"), entry(b"a", U8, b"1")), "the key 'a' comes twice"),
        (header(n_entries=2**63) + bytes(10**6), "an entry of the metadata has no name"),
        (header(n_tensors=2**63) + bytes(10**6), "the tensor '' comes twice"),
        (header(tensors=[tensor(b"t", [4], kind=31)]), "the tensor 't' has type 31, of which nothing is known"),
        *((header(entry(b"general.alignment", U32, struct.pack("<I", n))), f"alignment is {n}; exp") for n in (0, 33)),
        (header(entry(b"general.alignment", STRING, string(b"32"))), "general.alignment is '32'"),
    ],
)  # fmt: skip
def test_what_is_no_header_is_refused_in_one_line_that_names_the_file(tmp_path, data, why):
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=why) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_header_cut_anywhere_is_refused(tmp_path):
    whole = header(
        entry(b"general.alignment", U32, struct.pack("<I", 64)),
        entry(b"a", ARRAY, struct.pack("<IQ", STRING, 2) + string(b"x") + string(b"yz")),
        tensors=[tensor(b"t", [32, 2], kind=8), tensor(b"u", [1, 2, 3, 4], offset=64)],
    )
    path = tmp_path / "a.gguf"
    path.write_bytes(whole)
    assert [t.n_bytes for t in read_header(path).tensors] == [68, 96]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.gguf: "):
            read_header(path)


def test_a_name_that_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.gguf: no such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(ValueError, match="a directory, not a GGUF file"):
        read_header(tmp_path)


def test_a_vocabulary_is_not_decoded_to_reach_what_comes_after_it(tmp_path, monkeypatch):
    """Lists are skipped over: what is asked for is decoded, nothing else."""
    from ffnskip_cpp.gguf_file import header as gguf_header

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "x")
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(10_000)])
    writer.add_uint32("x.context_length", 77)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    decoded = []
    value = gguf_header._Walk.value
    monkeypatch.setattr(gguf_header._Walk, "value", lambda walk, kind: decoded.append(kind) or value(walk, kind))
    assert read_header(tmp_path / "a.gguf").of_architecture("context_length") == 77
    assert len(decoded) < 20
