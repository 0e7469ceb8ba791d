"""`verify_folder` follows SHA-256, not names, and names causes, not consequences; forged sidecars do not mislead it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from msn_deploy.core.artifacts import (
    Parent,
    Sidecar,
    _sealed,
    parent_of,
    publish,
    read_sidecar,
    sha256_of,
    sidecar_path,
)
from msn_deploy.core.errors import InputError
from msn_deploy.pipeline.verify import Finding, Link, first_broken, verify_folder

DATA = Parent(role="data:train", file="digits", sha256="d" * 64)


def _write(path: Path, content: bytes, *parents: Parent, kind: str = "onnx") -> Path:
    publish(path, lambda partial: partial.write_bytes(content), kind=kind, parents=parents)
    return path


def _found(folder: Path) -> dict[str, Finding]:
    return {finding.file: finding for finding in verify_folder(folder)}


def _verdicts(folder: Path) -> dict[str, str]:
    return {name: finding.verdict for name, finding in _found(folder).items()}


def _forge(path: Path, *parents: Parent) -> None:
    """Write a sealed sidecar with these parents for a file that is there."""
    side = Sidecar(kind="onnx", file=path.name, sha256=sha256_of(path), bytes=0, parents=parents)
    sidecar_path(path).write_bytes(_sealed(asdict(side)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four generations, the last in a folder below, and a report with two parents."""
    checkpoint = _write(tmp_path / "net.safetensors", b"weights", DATA, kind="checkpoint")
    onnx = _write(tmp_path / "net.onnx", b"graph", parent_of(checkpoint, role="checkpoint"))
    typed = _write(tmp_path / "net.int8.onnx", b"typed", parent_of(onnx, role="onnx"), DATA)
    _write(tmp_path / "engines" / "net.engine", b"plan", parent_of(typed, role="onnx"), kind="engine")
    _write(tmp_path / "bench.json", b'{"arms": []}', *(parent_of(each, role="model") for each in (onnx, typed)))
    return tmp_path


def test_every_link_is_listed_with_its_place(run: Path) -> None:
    found = _found(run)
    digest = sha256_of(run / "net.onnx")[:12]
    assert found["net.int8.onnx"].parents == (
        Link(role="onnx", name="net.onnx", sha256=digest, state="here"),
        Link(role="data:train", name="digits", sha256="d" * 12, state="elsewhere"),
    )
    assert {name: finding.depth for name, finding in found.items()} == {
        "net.safetensors": 0,
        "net.onnx": 1,
        "net.int8.onnx": 2,
        "engines/net.engine": 3,
        "bench.json": 3,
    }
    assert found["engines/net.engine"].kind == "engine"


@pytest.mark.parametrize("name", ["net.safetensors", "net.onnx", "net.int8.onnx", "engines/net.engine", "bench.json"])
@pytest.mark.parametrize("change", ["flip", "flip the sidecar", "delete"])
def test_one_fault_is_one_broken_file_and_the_rest_comes_from_it(run: Path, name: str, change: str) -> None:
    path = sidecar_path(run / name) if "sidecar" in change else run / name
    before = _found(run)
    if change == "delete":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    findings = verify_folder(run)
    broken = path.relative_to(run).as_posix()
    assert [finding.file for finding in findings if finding.verdict == "broken"] == [broken]
    first = first_broken(findings)
    assert first is not None
    assert first.file == broken
    later = {each for each, finding in before.items() if finding.depth > before[name].depth}
    assert {finding.file for finding in findings if finding.verdict == "stale"} == later
    assert all(broken in finding.why for finding in findings if finding.verdict == "stale")


def test_the_first_of_several_faults_is_the_one_nearest_to_the_data(run: Path) -> None:
    for name in ("bench.json", "net.int8.onnx", "net.safetensors"):
        (run / name).write_bytes(b"other")
    first = first_broken(verify_folder(run))
    assert first is not None
    assert first.file == "net.safetensors"
    assert first_broken([]) is None


@pytest.mark.parametrize("place", ["renamed.onnx", "deep/down/net.onnx", "deep/other"])
@pytest.mark.parametrize("sidecar", ["with it", "left behind"])
def test_a_parent_that_moved_is_found_by_its_bytes(run: Path, place: str, sidecar: str) -> None:
    (run / place).parent.mkdir(parents=True, exist_ok=True)
    side = sidecar_path(run / "net.onnx")
    (run / "net.onnx").rename(run / place)
    if sidecar == "with it":
        side.rename(sidecar_path(run / place))
    found = _found(run)
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert (found["net.int8.onnx"].parents[0].name, found["net.int8.onnx"].parents[0].state) == (place, "here")
    renamed = Path(place).name != "net.onnx"
    assert found[place].why == ("recorded as net.onnx" if renamed else "")
    (run / place).write_bytes(b"other")
    broken = [finding.file for finding in verify_folder(run) if finding.verdict == "broken"]
    assert broken == [place if sidecar == "with it" else "net.onnx"]


def test_an_engine_that_was_renamed_with_its_plan_is_still_checked(run: Path) -> None:
    for name in ("engine", "plan.json"):
        (run / "engines" / f"net.{name}").rename(run / "engines" / f"other.{name}")
    assert _found(run)["engines/other.engine"].why == "recorded as net.engine"
    (run / "engines" / "other.engine").write_bytes(b"other")
    assert [name for name, verdict in _verdicts(run).items() if verdict != "ok"] == ["engines/other.engine"]


def test_a_lost_file_is_not_replaced_by_a_copy_that_has_a_sidecar_of_its_own(run: Path) -> None:
    _write(run / "a copy.onnx", b"graph")
    (run / "net.onnx").unlink()
    assert (_verdicts(run)["net.onnx"], _verdicts(run)["a copy.onnx"]) == ("broken", "ok")


def test_of_two_files_of_the_same_bytes_the_one_called_as_recorded_is_the_parent(run: Path) -> None:
    (run / "a copy.onnx").write_bytes((run / "net.onnx").read_bytes())
    found = _found(run)
    assert found["net.int8.onnx"].parents[0].name == "net.onnx"
    assert found["a copy.onnx"].why == "no sidecar"


def test_an_exchanged_child_and_an_exchanged_parent_are_named(
    run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    checkpoint = _write(other / "net.safetensors", b"other weights", DATA)
    child = _write(other / "net.onnx", b"other graph", parent_of(checkpoint, role="checkpoint"))
    for path in (child, sidecar_path(child)):
        path.replace(run / path.name)
    found = _found(run)
    assert found["net.onnx"].verdict == "outdated"
    assert "another net.safetensors than the one here" in found["net.onnx"].why
    assert "another net.onnx than the one here" in found["net.int8.onnx"].why
    first = first_broken(list(found.values()))
    assert first is not None
    assert first.file == "net.onnx"


def test_a_child_in_a_folder_below_is_held_against_what_lies_above_and_not_beside_it(run: Path) -> None:
    parent = Parent(role="onnx", file="net.onnx", sha256="0" * 64)
    _write(run / "engines" / "old.engine", b"old", parent)
    assert "another net.onnx" in _found(run)["engines/old.engine"].why
    _write(run / "seed1" / "cnn3.onnx", b"seed 1")
    _write(run / "seed0" / "cnn3.engine", b"seed 0", Parent(role="onnx", file="cnn3.onnx", sha256="0" * 64))
    assert _found(run)["seed0/cnn3.engine"].parents[0].state == "elsewhere"


def test_a_file_whose_sidecar_is_gone_is_named_with_its_child(run: Path) -> None:
    sidecar_path(run / "net.onnx").unlink()
    finding = _found(run)["net.onnx"]
    assert finding.verdict == "unknown"
    assert "no sidecar" in finding.why
    assert "was made from it" in finding.why
    (run / "net.onnx").write_bytes(b"other")
    assert "another net.onnx" in _found(run)["net.int8.onnx"].why
    sidecar_path(run / "engines" / "net.engine").unlink()
    assert _found(run)["engines/net.engine"].why == "no sidecar"


def test_a_copy_without_a_sidecar_does_not_end_the_chain(run: Path) -> None:
    (run / "engines" / "net.int8.onnx").write_bytes(b"typed")
    (run / "a.onnx").write_bytes(b"graph")
    found = _found(run)
    assert [link.name for link in found["engines/net.engine"].parents] == ["net.int8.onnx"]
    assert [link.name for link in found["net.int8.onnx"].parents if not link.is_data] == ["net.onnx"]


def test_a_folder_of_sidecars_is_not_a_run(run: Path) -> None:
    with pytest.raises(InputError, match="folder above"):
        verify_folder(run / ".msn-deploy")


def test_a_report_that_is_gone_is_told_with_the_place_of_its_sidecar(run: Path) -> None:
    (run / "bench.json").unlink()
    found = _found(run)["bench.json"]
    assert found.verdict == "broken"
    assert ".msn-deploy/bench.json.json" in found.why


@pytest.mark.parametrize("length", [2, 3, 200])
def test_parents_in_a_circle_are_named_and_end(tmp_path: Path, length: int) -> None:
    files = [tmp_path / f"{at:04}.onnx" for at in range(length)]
    for at, path in enumerate(files):
        path.write_bytes(str(at).encode())
    for at, path in enumerate(files):
        _forge(path, parent_of(files[at - 1], role="onnx"))
    child = _write(tmp_path / "x.engine", b"child", parent_of(files[0], role="onnx"))
    found = _found(tmp_path)
    assert {found[path.name].why for path in files} == {"its parents go round in a circle"}
    assert {found[path.name].verdict for path in files} == {"broken"}
    assert found[child.name].verdict == "stale"


def test_a_file_of_the_bytes_of_its_parent_is_no_circle(tmp_path: Path) -> None:
    first = _write(tmp_path / "a.onnx", b"graph", DATA)
    _write(tmp_path / "b.onnx", b"graph", parent_of(first, role="onnx"))
    found = _found(tmp_path)
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert found["b.onnx"].parents[0].name == "a.onnx"
    for path in (first, sidecar_path(first)):
        path.unlink()
    assert _found(tmp_path)["b.onnx"].parents[0].state == "elsewhere"


def test_a_certificate_in_json_is_an_artifact_and_no_sidecar(run: Path) -> None:
    certificate = run / "net.fold.json"
    _write(certificate, b'{"layers": []}', parent_of(run / "net.onnx", role="onnx"), kind="fold-certificate")
    assert _found(run)["net.fold.json"] == Finding(
        file="net.fold.json",
        verdict="ok",
        kind="fold-certificate",
        parents=(Link(role="onnx", name="net.onnx", sha256=sha256_of(run / "net.onnx")[:12], state="here"),),
        depth=2,
    )
    (run / "net.fold").write_bytes(b"a file whose sidecar the certificate might be")
    assert (_verdicts(run)["net.fold.json"], _verdicts(run)["net.fold"]) == ("ok", "unknown")
    side = sidecar_path(certificate)
    side.write_bytes(side.read_bytes()[:-9])
    assert [name for name, verdict in _verdicts(run).items() if verdict == "broken"] == [
        ".msn-deploy/net.fold.json.json"
    ]


def test_a_copy_of_a_sidecar_hides_nothing(run: Path) -> None:
    sidecar_path(run / "copy.onnx").write_bytes(sidecar_path(run / "net.onnx").read_bytes())
    found = _found(run)
    assert found["copy.onnx.json"].verdict == "unknown"
    assert "net.onnx, which has another sidecar" in found["copy.onnx.json"].why
    assert found["net.onnx"].verdict == "ok"
    (run / "net.onnx").write_bytes(b"other")
    assert _found(run)["net.onnx"].verdict == "broken"


@pytest.mark.parametrize("same", [True, False, None])
def test_data_is_asked_for_once_and_is_the_first_broken_link(run: Path, same: bool | None) -> None:
    asked: list[Parent] = []

    def check(parent: Parent) -> bool | None:
        asked.append(parent)
        return same

    findings = verify_folder(run, data=check)
    assert asked == [DATA]
    state = {True: "as recorded", False: "changed", None: "elsewhere"}[same]
    links = [link for finding in findings for link in finding.parents if link.role == "data:train"]
    assert [link.state for link in links] == [state, state]
    first = first_broken(findings)
    assert (first and first.file) == (None if same is not False else "digits")
    own = {finding.verdict for finding in findings if finding.file != "digits"}
    assert own == ({"ok"} if same is not False else {"stale"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file", ".."),
        ("file", ""),
        ("sha256", 5),
        ("kind", None),
        ("parents", [{"role": 1, "file": "a", "sha256": "b"}]),
        ("parents", [{"role": "onnx", "file": ["a"], "sha256": "b"}]),
        ("parents", [{"role": "data", "file": "a", "sha256": "b", "read": 5}]),
        ("parents", 5),
    ],
)
def test_a_forged_value_makes_a_broken_sidecar(run: Path, key: str, value: object) -> None:
    side = sidecar_path(run / "net.onnx")
    content = json.loads(side.read_bytes())
    del content["seal"]
    side.write_bytes(_sealed({**content, key: value}))
    with pytest.raises(InputError, match=r"net\.onnx\.json"):
        read_sidecar(run / "net.onnx")
    assert _verdicts(run)["net.onnx.json"] == "broken"


def test_a_sidecar_of_brackets_is_broken_and_ends(run: Path) -> None:
    sidecar_path(run / "net.onnx").write_bytes(b"[" * 200_000)
    assert _verdicts(run)["net.onnx.json"] == "broken"


@pytest.mark.parametrize("name", ["../../etc/hostname", "/etc/hostname", "a\0b", "x" * 5000])
def test_a_parent_of_a_forged_name_is_not_opened(run: Path, name: str) -> None:
    _forge(run / "net.onnx", Parent(role="checkpoint", file=name, sha256="0" * 64))
    found = _found(run)
    if name.startswith(("a", "x")):  # not a file's name: the sidecar itself is refused
        assert found["net.onnx.json"].verdict == "broken"
    else:
        assert (found["net.onnx"].verdict, found["net.onnx"].parents[0].state) == ("ok", "elsewhere")
