"""A file is written whole or not at all, and nothing is written over what a user gave to read."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from ffnskip_cpp import SkipConfig, cli
from ffnskip_cpp.files import PART, check_output, whole_file
from ffnskip_cpp.gguf_file.quantization import quantize
from ffnskip_cpp.profile import has_profile
from support.running import ours


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path):
    with whole_file(tmp_path / "a") as part:
        part.write_bytes(b"new")
        assert names(tmp_path) == [part.name]
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_what_was_there_survives_an_error(target, error):
    with pytest.raises(error), whole_file(target) as part:
        part.write_bytes(b"new")
        raise error
    assert names(target.parent) == ["out.bin"] and target.read_bytes() == b"old"


def test_a_link_stays_one_and_the_mode_stays(target, tmp_path):
    target.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(target.name)
    with whole_file(link) as part:
        part.write_bytes(b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_link_to_nothing_gets_its_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/new")
    with whole_file(tmp_path / "link") as part:
        part.write_bytes(b"new")
    assert (tmp_path / "folder" / "new").read_bytes() == b"new" and names(tmp_path / "folder") == ["new"]


def test_a_new_file_has_the_mode_that_any_new_file_gets(tmp_path):
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "ours"):
        pass
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_name_as_long_as_names_get(tmp_path):
    path = tmp_path / ("ä" * 127)
    with whole_file(path) as part:
        part.write_bytes(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("how", ["itself", "symlink", "hard link", "relative"])
def test_an_input_is_not_written_over(target, tmp_path, how, monkeypatch):
    name = tmp_path / "other"
    if how == "symlink":
        name.symlink_to(target)
    elif how == "hard link":
        os.link(target, name)
    else:
        name = target
    if how == "relative":
        monkeypatch.chdir(tmp_path)
        name = Path("out.bin")
    for call in (lambda: check_output(name, [target]), lambda: whole_file(name, [target]).__enter__()):
        with pytest.raises(ValueError, match="is the input itself; give another name"):
            call()
    assert target.read_bytes() == b"old"


def test_places_that_can_not_be_written_are_named(target, tmp_path):
    with pytest.raises(ValueError, match="is a directory; give the name of a file"):
        check_output(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory for the output"):
        check_output(tmp_path / "nowhere" / "a")
    if os.geteuid() != 0:
        target.chmod(0o444)
        with pytest.raises(PermissionError, match=r"out\.bin: is write-protected"):
            check_output(target)


def test_a_device_and_a_pipe_are_written_into_and_stay(tmp_path):
    device = tmp_path / "null"
    device.symlink_to("/dev/null")
    with whole_file(device) as part:
        part.write_bytes(b"new")
    assert device.is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with whole_file(pipe) as part:
        part.write_bytes(b"new")
    reader.join(30)
    assert got == [b"new"] and pipe.is_fifo()


def test_a_full_device_is_said_to_be_full(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="full: the disk is full; it takes 3 MB; nothing was written"):
        with whole_file(tmp_path / "full", size=3_000_000) as part:
            part.write_bytes(bytes(3_000_000))


@pytest.fixture
def limited():
    """Runs code under a limit on the size of files, which is as a full disk but for the words."""

    def run(code):
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
        command = [sys.executable, "-c", textwrap.dedent(code)]
        return subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("write", ["part.write_bytes(bytes(10**6))", "np.zeros(10**6).tofile(part)"])
def test_a_limit_on_files_is_named_whoever_writes(limited, target, write):
    """NumPy's own error has no reason in it."""
    result = limited(f"""
        import numpy as np
        from ffnskip_cpp.files import whole_file
        with whole_file({str(target)!r}) as part:
            {write}
    """)
    assert result.stderr.endswith(
        f"OSError: {target}: it outgrows the limit on the size of a file; nothing was written\n"
    )
    assert names(target.parent) == ["out.bin"] and target.read_bytes() == b"old"


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    code = f"""
        import os, signal
        from ffnskip_cpp.files import whole_file
        with whole_file({str(tmp_path / "a")!r}) as part:
            part.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert [name.endswith(PART) for name in names(tmp_path)] == [True]
    with whole_file(tmp_path / "b"), whole_file(tmp_path / "c"):  # and not what is being written
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == ["b", "c"]


# --- the commands that use it ----------------------------------------------------------------------------------------


@pytest.fixture
def model(model_file, tmp_path):
    return Path(shutil.copy(model_file("llama"), tmp_path / "m.gguf"))


def test_a_profile_takes_the_place_of_a_profile_only(model, tmp_path):
    before = model.read_bytes()
    (tmp_path / "link").symlink_to(model)
    os.link(model, tmp_path / "hard")
    (tmp_path / "notes.txt").write_text("mine")
    with ours(model, SkipConfig(policy="fixed", layers=[3], warm_up_index=0)) as llm:
        for name in ("m.gguf", "link", "hard", "notes.txt"):
            with pytest.raises(ValueError, match="is no skip profile, and is left as it is"):
                llm.save_profile(tmp_path / name)
        assert model.read_bytes() == before and (tmp_path / "notes.txt").read_text() == "mine"
        assert not has_profile(model)
        (tmp_path / "empty").touch()
        for name in ("empty", "empty", "m.ffnskip.gguf", "/dev/null"):
            llm.save_profile(tmp_path / name)
    assert has_profile(model)
    with ours(model, "auto") as llm:
        assert llm.skip.layers == (3,)


def test_an_embedded_profile_is_found_too(model, tmp_path):
    config = SkipConfig(policy="fixed", layers=[3], warm_up_index=0)
    with ours(model, config) as llm:
        llm.save_profile(tmp_path / "p.gguf")
    assert not has_profile(model)
    assert cli.main(["profile", "embed", str(model), "--profile", str(tmp_path / "p.gguf")]) == 0
    assert has_profile(model)


def test_quantize_names_the_limit_and_leaves_nothing(limited, model, tmp_path):
    result = limited(f"""
        from ffnskip_cpp import cli
        cli.main(["quantize", {str(model)!r}, {str(tmp_path / "q.gguf")!r}, "q8_0", "--no-progress"])
    """)
    assert result.stderr == (
        f"ffnskip quantize: {tmp_path / 'q.gguf'}: it outgrows the limit on the size of a file; nothing was written\n"
    )
    assert names(tmp_path) == ["m.gguf"]


def test_quantize_does_not_write_over_any_part_of_its_input(model, tmp_path, capsys):
    os.link(model, tmp_path / "hard.gguf")
    for out in (model, tmp_path / "hard.gguf"):
        assert cli.main(["quantize", str(model), str(out), "q8_0", "--no-progress"]) == 1
        assert "is the input itself; give another name" in capsys.readouterr().err


def test_quantize_into_a_device(model, capsys):
    assert cli.main(["quantize", str(model), "/dev/null", "q8_0", "--no-progress"]) == 0
    assert Path("/dev/null").is_char_device()
    assert cli.main(["quantize", str(model), "/dev/full", "q8_0", "--no-progress"]) == 1
    assert capsys.readouterr().err == "ffnskip quantize: /dev/full: the disk is full; nothing was written\n"


def test_quantize_into_a_pipe_writes_the_model_alone(model, tmp_path):
    command = [sys.executable, "-m", "ffnskip_cpp", "quantize", str(model), "/dev/stdout", "q8_0", "--no-progress"]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120)
    quantize(model, tmp_path / "q.gguf", "q8_0")
    assert result.stdout == (tmp_path / "q.gguf").read_bytes()
