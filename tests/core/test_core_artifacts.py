"""Atomic writes, the order in which an artifact is published, and the seal of a sidecar."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from msn_deploy.core import artifacts
from msn_deploy.core.artifacts import (
    ASIDE,
    Artifact,
    Parent,
    atomic_file,
    parent_of,
    parse_sidecar,
    publish,
    publish_together,
    read_sidecar,
    remove,
    sha256_of,
    sidecar_path,
    unpack,
    write_json,
)
from msn_deploy.core.errors import InputError
from msn_deploy.core.partials import PARTIAL_SUFFIX


def _publish(path: Path, content: bytes) -> artifacts.Sidecar:
    return publish(path, lambda partial: partial.write_bytes(content), kind="onnx")


def test_sha256_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one chunk of reading
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_input_that_cannot_be_read_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    with pytest.raises(InputError, match=str(path)):
        sha256_of(path)


def test_atomic_file_replaces_only_when_the_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.bin"
    with atomic_file(path) as partial:
        partial.write_bytes(b"first")
        assert not path.exists()
        assert partial.parent == path.parent
    assert path.read_bytes() == b"first"

    def fail() -> None:
        with atomic_file(path) as partial:
            partial.write_bytes(b"half of the sec")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == ["out.bin"]


def test_atomic_file_lets_keyboard_interrupts_through_and_cleans_up(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_file(tmp_path / "out.bin"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_path_below_a_file_cannot_be_written(below_a_file: Path) -> None:
    with pytest.raises(InputError, match=r"out\.bin cannot be written") as caught:
        write_json(below_a_file, {})
    assert "--out" in str(caught.value)
    assert below_a_file.parent.read_bytes() == b"in the way"


def test_a_folder_where_the_file_should_go_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    (path / "kept").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written"):
        _publish(path, b"x")
    assert (path / "kept").is_dir()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.bin"]


@pytest.mark.parametrize("length", [252, 300])  # the first is a name, but that of its sidecar is none
def test_a_name_that_is_too_long_is_said_before_anything_changes(tmp_path: Path, length: int) -> None:
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        publish(tmp_path / ("a" * length), b"x", kind="any")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_writing_is_an_input_error(tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left on device"):
        publish(tmp_path / "out.bin", full, kind="onnx")
    assert list(tmp_path.iterdir()) == []


def test_written_files_are_readable_by_others(tmp_path: Path) -> None:
    _publish(tmp_path / "out.bin", b"x")
    for name in ("out.bin", "out.bin.json"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("name", "side"),
    [("m.onnx", "m.onnx.json"), ("m.engine", "m.plan.json"), ("a.b.safetensors", "a.b.safetensors.json")],
)
def test_where_the_sidecar_lies(name: str, side: str) -> None:
    assert sidecar_path(Path("run") / name) == Path("run") / side


def test_publish_records_what_it_was_told_and_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "parent.bin").write_bytes(b"parent")
    parent = parent_of(tmp_path / "parent.bin", role="checkpoint")
    assert parent == Parent(role="checkpoint", file="parent.bin", sha256=hashlib.sha256(b"parent").hexdigest())
    path = tmp_path / "m.onnx"
    written = publish(
        path,
        lambda partial: partial.write_bytes(b"seven!!"),
        kind="onnx",
        parents=[parent],
        versions=("numpy", "no-such-distribution"),
        config={"opset": 17},
        facts={"operators": {"Conv": 3}},
    )
    assert path.read_bytes() == b"seven!!"
    assert (written.kind, written.file, written.bytes) == ("onnx", "m.onnx", 7)
    assert written.sha256 == hashlib.sha256(b"seven!!").hexdigest()
    assert set(written.versions) == {"msn-deploy", "numpy"}
    assert read_sidecar(path) == written


@pytest.mark.parametrize("at", [0, 1], ids=["before-the-file", "between-file-and-sidecar"])
def test_a_crash_between_the_renames_leaves_no_sidecar_of_other_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    path = tmp_path / "m.onnx"
    _publish(path, b"old")
    real, renames = os.replace, []

    def dying(source: Path, target: Path) -> None:
        renames.append(Path(target).name)
        if len(renames) == at + 1:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(artifacts.os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        _publish(path, b"new bytes")
    assert renames == ["m.onnx", "m.onnx.json"][: at + 1]
    assert path.read_bytes() == (b"old", b"new bytes")[at]
    assert not sidecar_path(path).exists()
    assert not list(tmp_path.glob(f"*{PARTIAL_SUFFIX}")) + list(tmp_path.glob(f".*{PARTIAL_SUFFIX}"))


def test_a_failed_write_keeps_the_old_file_and_its_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    old = _publish(path, b"old")

    def fail(partial: Path) -> None:
        partial.write_bytes(b"ha")
        raise RuntimeError("converter")

    with pytest.raises(RuntimeError, match="converter"):
        publish(path, fail, kind="onnx")
    assert path.read_bytes() == b"old"
    assert read_sidecar(path) == old


def test_a_sidecar_edited_by_hand_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    _publish(path, b"old")
    side = sidecar_path(path)
    side.write_text(side.read_text().replace('"bytes": 3', '"bytes": 4'))
    with pytest.raises(InputError, match="seal does not fit"):
        read_sidecar(path)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "is not JSON"),
        (b"\xff{}", "is not text in UTF-8"),
        (b"[]", "has no schema"),
        (b"{}", "has no schema"),
        (b'{"schema": 1}', "seal does not fit"),
        (b'{"schema": 7}', "schema 7"),
    ],
    ids=["empty", "not-utf-8", "list", "no-keys", "few-keys", "schema"],
)
def test_what_is_no_sidecar_says_why(raw: bytes, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        parse_sidecar(Path("m.onnx.json"), raw)
    assert "m.onnx.json" in str(caught.value)


def test_a_sealed_sidecar_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    _publish(tmp_path / "m.onnx", b"old")
    value = json.loads(sidecar_path(tmp_path / "m.onnx").read_bytes())
    del value["seal"]
    value["file"] = "../../etc/passwd"
    with pytest.raises(InputError, match="not the name of a file beside it"):
        parse_sidecar(tmp_path / "m.onnx.json", artifacts._sealed(value))


@pytest.mark.parametrize("filters", [True, False])
def test_a_tar_file_is_unpacked_below_its_folder_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: bool
) -> None:
    if not filters:  # as Python 3.11.2 has none
        plain = tarfile.TarFile.extractall
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
        monkeypatch.setattr(tarfile.TarFile, "extraction_filter", staticmethod(lambda member, _: member), raising=False)
        monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, path: plain(self, path))

    def packed(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarFile:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, 3 * (kind == tarfile.REGTYPE), "/etc/passwd"
            archive.addfile(member, io.BytesIO(b"abc"))
        stream.seek(0)
        return tarfile.open(fileobj=stream)

    folder = tmp_path / "here"
    folder.mkdir()
    with packed("report/a.json") as archive:
        unpack(archive, folder)
    assert (folder / "report" / "a.json").read_bytes() == b"abc"
    for name, kind in (("../b", tarfile.REGTYPE), ("link", tarfile.SYMTYPE), ("pipe", tarfile.FIFOTYPE)):
        with packed(name, kind) as archive, pytest.raises(tarfile.TarError):
            unpack(archive, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert [path.name for path in folder.iterdir()] == ["report"]


def test_a_folder_in_the_place_of_a_sidecar_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"1")
    sidecar_path(path).mkdir()
    with pytest.raises(InputError, match="cannot be removed"):
        remove(path)
    assert sidecar_path(path).is_dir()
    sidecar_path(path).rmdir()
    remove(path)
    assert not path.exists()


def test_a_folder_in_the_place_of_what_publishing_takes_away_is_named(tmp_path: Path) -> None:
    (old := tmp_path / "old.json").mkdir()
    with pytest.raises(InputError, match=r"old\.json cannot be removed"):
        publish_together(Artifact(path=tmp_path / "new.json", content=b"1", kind="result"), without=[old])
    assert old.is_dir()


def test_the_sidecar_of_a_file_to_read_lies_aside(tmp_path: Path) -> None:
    for name in ("net.onnx", "net.fold.json", "report.html", "net.curves.png"):
        _publish(tmp_path / name, name.encode())
        assert read_sidecar(tmp_path / name).sha256 == hashlib.sha256(name.encode()).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(ASIDE, "net.curves.png", "net.fold.json", "net.onnx", "net.onnx.json", "report.html")
    ]
    remove(tmp_path / "report.html")
    assert sorted(path.name for path in (tmp_path / ASIDE).iterdir()) == ["net.curves.png.json", "net.fold.json.json"]


def test_a_sidecar_that_an_earlier_version_wrote_is_read_and_replaced(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    first = _publish(report, b"1")
    beside = sidecar_path(report).rename(tmp_path / "report.html.json")
    assert read_sidecar(report) == first
    second = _publish(report, b"2")
    assert (read_sidecar(report), beside.exists()) == (second, False)
    sidecar_path(report).rename(beside)
    remove(report)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_sidecars_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ASIDE).symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a link or a file"):
        _publish(tmp_path / "run" / "report.html", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [ASIDE]
    (tmp_path / "run" / ASIDE).unlink()
    (tmp_path / "run" / ASIDE).touch()
    with pytest.raises(InputError, match="is a link or a file"):
        _publish(tmp_path / "run" / "report.html", b"1")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [ASIDE]
