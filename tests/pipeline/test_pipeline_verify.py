"""`verify_folder` finds every changed byte, every lost file and every parent that is not the recorded one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from msn_deploy.core.artifacts import Parent, Sidecar, parent_of, publish, sidecar_path
from msn_deploy.core.errors import InputError
from msn_deploy.pipeline import verify
from msn_deploy.pipeline.verify import Entry, first_broken, verify_folder


def _write(path: Path, content: bytes, *parents: Parent) -> Path:
    publish(path, lambda partial: partial.write_bytes(content), kind="onnx", parents=parents)
    return path


def _verdicts(folder: Path) -> dict[str, str]:
    return {finding.file: finding.verdict for finding in verify_folder(folder)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A checkpoint, an ONNX file made from it, and an engine in a folder below."""
    checkpoint = _write(tmp_path / "net.safetensors", b"weights")
    onnx = _write(tmp_path / "net.onnx", b"graph", parent_of(checkpoint, role="checkpoint"))
    _write(tmp_path / "engines" / "net.engine", b"plan", parent_of(onnx, role="onnx"))
    return tmp_path


def test_a_whole_run_is_ok(run: Path) -> None:
    assert _verdicts(run) == {"engines/net.engine": "ok", "net.onnx": "ok", "net.safetensors": "ok"}


@pytest.mark.parametrize("name", ["net.onnx", "engines/net.engine"])
def test_every_flipped_byte_of_a_file_is_found(run: Path, name: str) -> None:
    path = run / name
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert _verdicts(run)[name] == "broken", at
    path.write_bytes(whole)
    assert _verdicts(run)[name] == "ok"


@pytest.mark.parametrize("name", ["net.onnx", "engines/net.engine"])
@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_every_flipped_byte_of_a_sidecar_is_found(run: Path, name: str, flip: int) -> None:
    side = sidecar_path(run / name)
    whole = side.read_bytes()
    for at in range(len(whole)):
        side.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        found = _verdicts(run)
        assert [file for file, verdict in found.items() if verdict == "broken"] == [side.relative_to(run).as_posix()], (
            at
        )
        assert "unknown" not in found.values(), at


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_sidecar_is_found(run: Path, keep: int) -> None:
    side = sidecar_path(run / "net.onnx")
    side.write_bytes(side.read_bytes()[:keep])
    assert _verdicts(run)["net.onnx.json"] == "broken"


def test_a_lost_file_is_found(run: Path) -> None:
    (run / "net.onnx").unlink()
    finding = next(finding for finding in verify_folder(run) if finding.file == "net.onnx")
    assert finding.verdict == "broken"
    assert "gone" in finding.why


def test_a_child_of_an_older_parent_is_found(run: Path) -> None:
    _write(run / "net.safetensors", b"trained once more")
    findings = {finding.file: finding for finding in verify_folder(run)}
    assert findings["net.safetensors"].verdict == "ok"
    assert findings["net.onnx"].verdict == "outdated"
    assert "made from another net.safetensors" in findings["net.onnx"].why
    assert "not finished" not in findings["net.onnx"].why
    assert findings["engines/net.engine"].verdict == "stale"
    assert first_broken(list(findings.values())) == findings["net.onnx"]
    (run / "engines" / "net.engine").write_bytes(b"other")  # what is damaged comes first
    first = first_broken(verify_folder(run))
    assert first is not None
    assert (first.file, first.verdict) == ("engines/net.engine", "broken")


@pytest.mark.parametrize("place", ["", "seed1"])
def test_what_a_training_that_is_not_finished_has_outdated_says_so(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    log = _write(folder / "net.history.jsonl", b"{}")
    _write(folder / "net.curves.png", b"curves", parent_of(log, role="history"))
    _write(log, b"{}{}")
    _write(folder / "net.state.safetensors", b"state")
    found = {Path(finding.file).name: finding for finding in verify_folder(tmp_path)}
    assert {name: finding.verdict for name, finding in found.items()} == {
        "net.curves.png": "outdated",
        "net.history.jsonl": "ok",
        "net.state.safetensors": "ok",
    }
    assert "training that is not finished" in found["net.curves.png"].why
    assert "--resume" in found["net.curves.png"].why


def test_a_parent_that_lies_elsewhere_does_not_matter(run: Path) -> None:
    for path in (run / "net.safetensors", sidecar_path(run / "net.safetensors")):
        path.unlink()
    assert _verdicts(run)["net.onnx"] == "ok"


@pytest.mark.parametrize("source", ["digits", "data/mnist", "../mnist", "/data/mnist", "."])
def test_data_as_a_parent_is_no_file_to_compare(tmp_path: Path, source: str) -> None:
    _write(tmp_path / "net.safetensors", b"weights", Parent(role="data:train", file=source, sha256="0" * 64))
    assert _verdicts(tmp_path) == {"net.safetensors": "ok"}


def test_a_file_without_sidecar_is_unknown(run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    (run / "settings.json").write_text("{}")
    found = _verdicts(run)
    assert (found["notes.txt"], found["settings.json"]) == ("unknown", "unknown")
    assert found["net.onnx"] == "ok"


def test_what_a_killed_run_left_is_passed_over(run: Path) -> None:
    (run / ".net.onnx.abc.partial").write_bytes(b"half")
    (run / "engines" / ".msn-abc.partial").mkdir()
    (run / "engines" / ".msn-abc.partial" / "net.engine").write_bytes(b"half")
    assert len(verify_folder(run)) == 3


def _entry(kind: str, at: int) -> Entry:
    """Return a file of a folder: each made from the one before, or all from one, or from one of many copies, ..."""
    before = at - 1 if kind in ("chain", "outdated") else 0
    digest = {"same bytes": "same"}.get(kind, f"{at}")
    sha256 = {"same bytes": "same", "outdated": "old"}.get(kind, f"{before}")
    parents = (Parent(role="onnx", file=f"{before:05}.onnx", sha256=sha256),) if at else ()
    sidecar = Sidecar(kind="onnx", file=f"{at:05}.onnx", sha256=digest, bytes=1, parents=parents)
    return Entry(name=f"{at:05}.onnx", sha256=digest, sidecar=sidecar)


def _renamed(folder: Path, number: int) -> None:
    """Give sidecars whose files are gone to copies of these."""
    sidecars = {
        folder / f"{at}.onnx.json": Sidecar(kind="onnx", file=f"{at}.onnx", sha256="same", bytes=1)
        for at in range(number)
    }
    sides: dict[Path, Path] = {}
    verify._find_renamed(sidecars, sides, {folder / f"copy{at}": "same" for at in range(number)})
    assert len(sides) == number


@pytest.mark.parametrize("kind", ["chain", "one parent", "same bytes", "outdated", "renamed"])
def test_the_time_grows_with_the_number_of_files_and_not_with_its_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    took = []
    for number in (400, 3200):
        entries = [_entry(kind, at) for at in range(number)]
        monkeypatch.setattr(verify, "read_folder", lambda _, entries=entries: entries)
        times = []
        for _ in range(3):
            began = time.process_time()
            _renamed(tmp_path, number) if kind == "renamed" else verify_folder(tmp_path)
            times.append(time.process_time() - began)
        took.append(min(times))
    assert took[1] < 20 * took[0]  # eight times the files


def test_a_folder_of_no_artifacts_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no artifact"):
        verify_folder(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        verify_folder(tmp_path / "notes.txt")


def test_links_that_lead_nowhere_and_what_is_no_file_are_named(run: Path) -> None:
    (run / "engines" / "gone.onnx").symlink_to("/no/such/file")
    (run / "loop").symlink_to("loop")
    (run / "elsewhere").symlink_to(run.parent)
    os.mkfifo(run / "pipe")
    os.mkfifo(run / "pipe.json")
    found = {each.file: each for each in verify_folder(run)}
    assert (found["engines/gone.onnx"].verdict, found["loop"].verdict) == ("broken", "broken")
    assert found["engines/gone.onnx"].why == "a link to /no/such/file, which is not there"
    assert "which is not looked into" in found["elsewhere"].why
    assert [found[name].verdict for name in ("elsewhere", "pipe", "pipe.json")] == ["unknown"] * 3
    assert len(found) == 8


def test_a_file_replaced_by_a_link_to_nothing_is_named_once(run: Path) -> None:
    (run / "net.onnx").unlink()
    (run / "net.onnx").symlink_to("/no/such/file")
    found = [each for each in verify_folder(run) if each.file == "net.onnx"]
    assert [(each.verdict, "net.onnx.json" in each.why) for each in found] == [("broken", True)]


def test_what_is_too_large_is_neither_read_nor_hashed(run: Path) -> None:
    for name in ("net.onnx.json", "net.safetensors", "other.bin"):
        (run / name).touch()
        os.truncate(run / name, 1 << 40)  # without a block on the disk
    found = {each.file: each.why for each in verify_folder(run)}
    assert "sidecars of up to 16 MiB are read" in found["net.onnx.json"]
    assert found["net.safetensors"] == "it has 1099511627776 bytes, its sidecar recorded 7"
    assert found["other.bin"] == "no sidecar"
