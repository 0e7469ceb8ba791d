"""What a tarball holds, and that it is the same each time."""

import hashlib
import json
import os
import shutil
import tarfile

import pytest
from bundle_devices import ORIN_NANO

from msn_deploy.cli.app import main
from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.core.errors import InputError
from msn_deploy.engine import find_target
from msn_deploy.pipeline.bundle import bundle, write_tarball


def test_it_holds_what_a_device_needs_and_nothing_else(run, unpacked):
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    models = {"net.onnx", "net.fp16.onnx", "net.int8.onnx", "net.timing", "twin/net_bn.onnx"}
    assert {name for name in names if name.startswith("models/")} == {
        f"models/{name}{suffix}" for name in models for suffix in ("", ".json")
    }
    assert {name for name in names if "/" not in name} == {
        *("MANIFEST.json", "README.txt", "SHA256SUMS", "bundle.env", "models.list", "device_build.sh", "options.sh"),
        *("bench.sh", "build.sh", "common.sh", "eval.sh", "install.sh", "step", "verify"),
    }
    assert json.loads((unpacked / "recipes/net.int8.json").read_text())["width"] == 3
    manifest = json.loads((unpacked / "MANIFEST.json").read_text())
    assert {(m["file"], m["precision"], m["norm"]) for m in manifest["models"]} == {
        ("models/net.onnx", "fp32", "msn"),
        ("models/net.fp16.onnx", "fp16", "msn"),
        ("models/net.int8.onnx", "int8", "msn"),
        ("models/twin/net_bn.onnx", "fp32", "bn"),
    }
    for file in manifest["files"]:
        content = (unpacked / file["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    assert {file["path"] for file in manifest["files"]} == names - {"MANIFEST.json", "SHA256SUMS"}
    assert os.access(unpacked / "build.sh", os.X_OK)
    assert not os.access(unpacked / "models.list", os.X_OK)
    assert "BASELINE=net_bn" in (unpacked / "bundle.env").read_text()


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    for at, path in enumerate(sorted(copy.rglob("*"))):
        os.utime(path, (at, 10**9 - at))
        path.chmod(0o700)
    report = bundle(run, tmp_path / "one" / "b.tar", target=ORIN_NANO, with_wheels=False)
    bundle(copy, tmp_path / "two" / "b.tar", target=ORIN_NANO, with_wheels=False)
    assert (tmp_path / "one/b.tar").read_bytes() == (tmp_path / "two/b.tar").read_bytes()
    side = read_sidecar(report.path)
    assert {parent.file for parent in side.parents} == {"net.onnx", "net.fp16.onnx", "net.int8.onnx", "net_bn.onnx"}
    assert side.config["target"] == "orin-nano-8gb"


def test_nothing_unpacks_outside_of_one_folder(run, tmp_path):
    bundle(run, tmp_path / "b.tar", target=ORIN_NANO, with_wheels=False)
    with tarfile.open(tmp_path / "b.tar") as archive:
        members = archive.getmembers()
    assert all(member.isfile() and member.name.startswith("b/") for member in members)
    assert not any(".." in member.name.split("/") for member in members)
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}
    for name, top in (("../x", "b"), ("/etc/x", "b"), ("a/../../x", "b"), ("x", "..")):
        with pytest.raises(ValueError, match="outside"):
            write_tarball(tmp_path / "bad.tar", {name: b""}, top=top, executable=())


def put_outside(path):
    """A sidecar whose content is that of a file elsewhere."""
    path.rename(path.parents[1] / path.name)
    path.symlink_to(path.parents[1] / path.name)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "net.onnx").write_bytes(b"x"), "is broken"),
        (lambda folder: shutil.copy(folder / "net.onnx", folder / "twin/net.onnx"), "net.onnx twice"),
        (lambda folder: shutil.copy(folder / "net.onnx", folder / "a net.onnx"), "quote"),
        (lambda folder: (folder / "out.onnx").symlink_to("/etc/passwd"), "link out of"),
        (lambda folder: shutil.copy(folder / "net.onnx", folder / os.fsdecode(b"n\xff.onnx")), "quote"),
        (lambda folder: shutil.copy(folder / "net.onnx", folder / f"{'n' * 180}.onnx"), "has 185 characters in a name"),
        (lambda folder: put_outside(folder / "net.timing.json"), "link out of"),
        (lambda folder: [path.unlink() for path in folder.rglob("*.onnx*")], "no ONNX file"),
    ],
)
def test_folders_that_cannot_be_packed(run, tmp_path, spoil, says):
    folder = shutil.copytree(run, tmp_path / "copy")
    spoil(folder)
    with pytest.raises(InputError, match=says):
        bundle(folder, tmp_path / "b.tar", target=ORIN_NANO, with_wheels=False)
    assert not (tmp_path / "b.tar").exists()


@pytest.mark.parametrize("name", ["a b.tar", os.fsdecode(b"\xff.tar"), "a:b.tar", f"{'n' * 150}.tar"])
def test_the_tarball_has_a_name_that_its_commands_can_use(run, tmp_path, name):
    with pytest.raises(InputError, match=r"quote|150 characters"):
        bundle(run, tmp_path / name, target=ORIN_NANO, with_wheels=False)
    assert not list(tmp_path.iterdir())


def test_the_command_line_names_it_so_by_itself(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "my runs; one").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", "my runs; one", "--target", "orin-nano", "--no-wheels"]) == 0
    digest = hashlib.sha256((tmp_path / "my-runs-one-orin-nano-8gb.tar").read_bytes()).hexdigest()
    assert f"echo '{digest}  my-runs-one-orin-nano-8gb.tar' | sha256sum -c &&" in capsys.readouterr().out


@pytest.mark.parametrize(("target", "has"), [("nano", False), ("tx2", False), ("agx-xavier", True), ("thor", True)])
def test_models_in_a_precision_that_the_target_lacks_stay_at_home(run, tmp_path, target, has):
    report = bundle(run, tmp_path / "b.tar", target=find_target(target), with_wheels=False)
    assert report.left_out == (() if has else ("models/net.int8.onnx",))
    with tarfile.open(tmp_path / "b.tar") as archive:
        assert any("net.int8" in name for name in archive.getnames()) is has
        assert (b"int8" in archive.extractfile("b/models.list").read()) is has
        assert (b"net.int8" in archive.extractfile("b/options.sh").read()) is has
    assert {each.precision for each in report.models} == ({"fp32", "fp16", "int8"} if has else {"fp32", "fp16"})


def test_a_folder_of_nothing_else_is_refused(run, tmp_path):
    folder = tmp_path / "only"
    folder.mkdir()
    shutil.copy(run / "net.int8.onnx", folder)
    with pytest.raises(InputError, match="has no INT8 in TensorRT"):
        bundle(folder, tmp_path / "b.tar", target=find_target("nano"), with_wheels=False)
    assert not (tmp_path / "b.tar").exists()


def test_only_a_jetson_gets_a_bundle(run, tmp_path):
    with pytest.raises(InputError, match="not a Jetson"):
        bundle(run, tmp_path / "b.tar", target=find_target("rtx-sm86"), with_wheels=False)
    with pytest.raises(InputError, match="not a folder"):
        bundle(tmp_path / "gone", tmp_path / "b.tar", target=ORIN_NANO, with_wheels=False)
