"""What is in hand is locked; what nobody holds was left by a killed run, and goes; what is held stays."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from msn_deploy.core import artifacts, partials
from msn_deploy.core.artifacts import (
    Artifact,
    atomic_file,
    publish,
    publish_together,
    read_sidecar,
    sidecar_path,
    write_json,
)
from msn_deploy.core.errors import InputError
from msn_deploy.core.partials import claimed, exclusive, is_partial, partial_file, partial_folder, sweep


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _left(folder: Path) -> None:
    """Make what a killed run leaves: a file that is half written, and a folder."""
    (folder / ".msn-ab12cd34.partial").write_bytes(b"half")
    (folder / ".msn-net.engine.partial").write_bytes(b"")
    (folder / ".msn-ab12cd35.partial/deep").mkdir(parents=True)
    (folder / ".msn-ab12cd35.partial/deep/before.onnx").write_bytes(b"half")


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without flock(2)."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(partials.fcntl, "flock", refuse)


def test_what_a_killed_run_left_goes_and_what_is_held_stays(tmp_path: Path) -> None:
    _left(tmp_path)
    kept = [".a.download.partial", ".msn-notes", "movie.partial", "net.onnx"]
    for name in kept:
        (tmp_path / name).write_bytes(b"the user's")
    (tmp_path / ".msn-linked00.partial").symlink_to(tmp_path / "net.onnx")
    os.mkfifo(tmp_path / ".msn-pipe0000.partial")
    with partial_file(tmp_path) as file, partial_folder(tmp_path) as folder, claimed(tmp_path / "x.safetensors"):
        held = [file.name, folder.name, ".msn-x.safetensors.partial"]
        sweep(tmp_path)
        assert _names(tmp_path) == sorted([*kept, *held, ".msn-linked00.partial", ".msn-pipe0000.partial"])
        assert all(is_partial(Path(name)) for name in held)
        assert is_partial(Path("a") / folder.name / "b.onnx")
    assert _names(tmp_path) == sorted([*kept, ".msn-linked00.partial", ".msn-pipe0000.partial"])


@pytest.mark.parametrize("run", ["publish", "write_json", "atomic_file", "partial_folder"])
def test_the_next_run_in_a_folder_sweeps_it(tmp_path: Path, run: str) -> None:
    _left(tmp_path)
    if run in ("publish", "write_json"):
        for _ in range(2):  # each time, however long the process lives
            publish(tmp_path / "a.json", b"{}", kind="result") if run == "publish" else write_json(
                tmp_path / "a.json", {}
            )
            assert _names(tmp_path) == [".msn-deploy", "a.json"][run != "publish" :]
            _left(tmp_path)
        return
    if run == "atomic_file":
        with atomic_file(tmp_path / "a.png") as partial:
            partial.write_bytes(b"png")
        assert _names(tmp_path) == ["a.png"]
        return
    with partial_folder(tmp_path) as folder:
        assert _names(tmp_path) == [folder.name]


def test_files_can_be_published_in_an_unfinished_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partials, "_PATIENCE_S", 0.0)
    with partial_folder(tmp_path) as folder:
        publish(folder / "a.json", b"{}", kind="result")
        sweep(tmp_path)
        assert _names(folder) == [".msn-deploy", "a.json"]
    assert not partials._held


def test_a_folder_that_cannot_be_listed_is_no_fault(tmp_path: Path) -> None:
    sweep(tmp_path / "gone")
    with pytest.raises(InputError, match="TMPDIR"), partial_folder(tmp_path / "gone"):
        pass


def test_a_sweep_between_making_and_locking_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = fcntl.flock, []

    def late(handle: int, how: int) -> None:
        if not seen:
            seen.extend(tmp_path.iterdir())
            for path in seen:
                path.unlink() if path.is_file() else path.rmdir()
        real(handle, how)

    monkeypatch.setattr(partials.fcntl, "flock", late)
    for make in (partial_file, partial_folder):
        with make(tmp_path) as path:
            assert path.exists()
            assert seen != [path]
        assert _names(tmp_path) == []
        seen.clear()


def test_nothing_goes_where_there_are_no_locks(tmp_path: Path, no_locks: None) -> None:
    _left(tmp_path)
    before = _names(tmp_path)
    publish(tmp_path / "a.json", b"{}", kind="result")
    assert _names(tmp_path) == sorted([*before, ".msn-deploy", "a.json"])
    with exclusive(tmp_path) as alone, claimed(tmp_path / "b.onnx"), claimed(tmp_path / "b.onnx"):
        assert not alone


def test_a_claim_is_refused_while_it_is_held_and_taken_over_from_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "_CLAIM_S", 0.0)
    path = tmp_path / "runs" / "net.safetensors"
    with claimed(path), pytest.raises(InputError, match="another process is making") as caught, claimed(path):
        pass
    assert str(path) in str(caught.value)
    assert not path.parent.exists()  # made for the claim, and nothing came of it
    path.parent.mkdir()
    (path.parent / ".msn-net.safetensors.partial").write_bytes(b"")
    with claimed(path):
        path.write_bytes(b"made")
    assert _names(path.parent) == ["net.safetensors"]


def test_a_claim_waits_for_a_sweep_and_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / ".msn-net.onnx.partial"
    mark.write_bytes(b"")
    handle = os.open(mark, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)

    def swept(_: float) -> None:
        mark.unlink()
        os.close(handle)

    monkeypatch.setattr(partials.time, "sleep", swept)
    with claimed(tmp_path / "net.onnx"):
        assert mark.exists()


def test_a_folder_that_is_never_let_go_of_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partials, "_PATIENCE_S", 0.0)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(InputError, match="held by another process"):
            publish(tmp_path / "a.json", b"{}", kind="result")
    finally:
        os.close(handle)
    assert _names(tmp_path) == []


def _beside(
    monkeypatch: pytest.MonkeyPatch, first: Callable[[], object], second: Callable[[], object], *, after: int
) -> list[BaseException]:
    """Let a second writer work after some renames of the first, until it has ended or has to wait."""
    real, renames, waits, failed = os.replace, [0], Event(), []

    def work() -> None:
        try:
            second()
        except InputError as cause:
            failed.append(cause)
        finally:
            waits.set()

    thread = Thread(target=work)

    def replace(source: Path, target: Path) -> None:
        real(source, target)
        renames[0] += 1
        if renames[0] == after:
            thread.start()
            assert waits.wait(60)

    monkeypatch.setattr(artifacts.os, "replace", replace)
    monkeypatch.setattr(partials.time, "sleep", lambda _: waits.set())
    try:
        first()
    except InputError as cause:
        failed.append(cause)
    thread.join()
    return failed


def _writer(folder: Path, content: bytes) -> Callable[[], Any]:
    """Write two files that belong together, the second made from the first."""
    pair = [Artifact(path=folder / name, content=content + name.encode(), kind="onnx") for name in ("a.onnx", "b.json")]
    return lambda: publish_together(*pair)


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_of_two_writers_all_files_are_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    failed = _beside(monkeypatch, _writer(tmp_path, b"1"), _writer(tmp_path, b"2"), after=after)
    assert failed == []
    for name in ("a.onnx", "b.json"):
        assert (tmp_path / name).read_bytes() == b"2" + name.encode()
        assert read_sidecar(tmp_path / name).sha256 == artifacts.sha256_of(tmp_path / name)
    assert _names(tmp_path) == [".msn-deploy", "a.onnx", "a.onnx.json", "b.json"]


def test_a_file_that_another_run_removes_meanwhile_is_no_odd_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "a.json", os.stat

    def stat(target: Any, **options: Any) -> os.stat_result:
        found = real(target, **options)
        if str(target).endswith("a.json.json"):
            os.unlink(target)
        return found

    publish(path, b"1", kind="result")
    monkeypatch.setattr(os, "stat", stat)
    publish(path, b"2", kind="result")
    monkeypatch.undo()
    assert read_sidecar(path).sha256 == artifacts.sha256_of(path)


@pytest.mark.parametrize("after", [1, 2])
def test_without_locks_the_last_of_two_writers_finds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_locks: None, after: int
) -> None:
    path = tmp_path / "a.onnx"
    first, second = (lambda content=content: publish(path, content, kind="onnx") for content in (b"1", b"2"))
    failed = _beside(monkeypatch, first, second, after=after)
    assert path.read_bytes() == b"2"
    if after == 1:  # between the file and its sidecar
        assert ["no locks" in str(cause) for cause in failed] == [True]
        assert not sidecar_path(path).exists()
    else:
        assert read_sidecar(path).sha256 == artifacts.sha256_of(path)


def test_a_thread_that_holds_a_folder_may_hold_it_again(tmp_path: Path) -> None:
    with exclusive(tmp_path) as first, exclusive(tmp_path) as second:
        assert first
        assert second
        publish(tmp_path / "a.json", b"{}", kind="result")
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of
    os.close(handle)


def test_no_file_is_written_to_try_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    tries: list[str] = []
    monkeypatch.setattr(
        "os.open", lambda path, *how, real=os.open, **more: tries.append(path) or real(path, *how, **more)
    )
    with partial_folder() as folder:
        assert _names(tmp_path) == [folder.name]
        assert set(map(str, tries)) == {str(folder)}  # to lock it


@pytest.mark.parametrize("missing", ["gone", "file"])
def test_a_temporary_folder_that_cannot_be_used_gives_way_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path / missing))
    monkeypatch.setenv("TEMP", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with partial_folder() as folder:
        assert folder.parent == tmp_path
