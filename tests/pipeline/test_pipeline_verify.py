"""`verify_folder` finds every changed byte, every lost file and every parent that is not the recorded one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msn_deploy.core.artifacts import Parent, parent_of, publish, sidecar_path
from msn_deploy.core.errors import InputError
from msn_deploy.pipeline.verify import verify_folder


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
    assert findings["net.onnx"].verdict == "broken"
    assert "made from another net.safetensors" in findings["net.onnx"].why


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
    assert len(verify_folder(run)) == 3


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
    assert [(each.verdict, each.why) for each in found] == [("broken", "the file is gone, its sidecar is still there")]


def test_what_is_too_large_is_neither_read_nor_hashed(run: Path) -> None:
    for name in ("net.onnx.json", "net.safetensors", "other.bin"):
        (run / name).touch()
        os.truncate(run / name, 1 << 40)  # without a block on the disk
    found = {each.file: each.why for each in verify_folder(run)}
    assert "sidecars of up to 16 MiB are read" in found["net.onnx.json"]
    assert found["net.safetensors"] == "it has 1099511627776 bytes, its sidecar recorded 7"
    assert found["other.bin"] == "no sidecar"
