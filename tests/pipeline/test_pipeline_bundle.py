"""The tarball and its scripts, run with sh below faked roots of devices, with faked trtexec and msn-deploy."""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

import msn_deploy
from msn_deploy.core.artifacts import publish, read_sidecar
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo
from msn_deploy.engine import TARGETS, find_target
from msn_deploy.engine.device import board_words
from msn_deploy.pipeline import wheels
from msn_deploy.pipeline.bundle import bundle
from msn_deploy.pipeline.tarball import write_tarball

ORIN_NANO = find_target("orin-nano")
BOARD = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"


def onnx_bytes(*, norm="msn", half=False, quantised=False) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    np = pytest.importorskip("numpy")
    weight = np.random.default_rng(5).uniform(-0.5, 0.5, (4, 1, 3, 3)).astype(np.float32)
    shapes = [("x", [1, 1, 8, 8]), ("y", [1, 4, 6, 6])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    nodes, inits, image = [], [numpy_helper.from_array(weight.astype(np.float16) if half else weight, "w")], "x"
    if quantised:
        inits += [numpy_helper.from_array(np.float32(1 / 64), "s"), numpy_helper.from_array(np.int8(0), "z")]
        nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                 helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"])]  # fmt: skip
        image = "d"
    if half:
        nodes = [helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16)]
        nodes += [helper.make_node("Conv", ["h", "w"], ["c"]), helper.make_node("Cast", ["c"], ["y"], to=1)]
    else:
        nodes.append(helper.make_node("Conv", [image, "w"], ["y"]))
    graph = helper.make_graph(nodes, "g", [x], [y], inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    info = ModelInfo(net="cnn3", norm=norm, recipe={"net": "cnn3", "norm": norm, "width": 3})
    helper.set_model_props(model, {METADATA_KEY: info.to_json()})
    return model.SerializeToString()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder: MSN in three precisions, BN, a timing cache, and what a device does not need."""
    folder = tmp_path_factory.mktemp("run")
    files = {
        "net.onnx": onnx_bytes(),
        "net.fp16.onnx": onnx_bytes(half=True),
        "net.int8.onnx": onnx_bytes(quantised=True),
        "twin/net_bn.onnx": onnx_bytes(norm="bn"),
    }
    for name, content in files.items():
        publish(folder / name, lambda path, content=content: path.write_bytes(content), kind="onnx")
    for name, kind in (("net.timing", "timing-cache"), ("net.safetensors", "checkpoint"), ("curves.png", "curves")):
        publish(folder / name, lambda path, kind=kind: path.write_bytes(kind.encode()), kind=kind)
    (folder / "notes.txt").write_text("of the user\n")
    return folder


@pytest.fixture
def unpacked(run, tmp_path) -> Path:
    """A bundle for Orin Nano without wheels, unpacked."""
    bundle(run, tmp_path / "b.tar", target=ORIN_NANO, with_wheels=False)
    with tarfile.open(tmp_path / "b.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "b"


def device(root: Path, *, model=BOARD, release="36 4.3", tensorrt="10.3.0", trtexec=0) -> Path:
    """Fake the root of a device; trtexec logs how it was called, writes the engine it was asked for, and exits so."""
    major, _, minor = release.partition(" ")
    files = {"etc/nv_tegra_release": f"# R{major} (release), REVISION: {minor}, GCID: 1\n"}
    if model:
        files["proc/device-tree/model"] = model + "\0"
    if tensorrt:
        files[f"usr/lib/aarch64-linux-gnu/libnvinfer.so.{tensorrt}"] = ""
    files["usr/src/tensorrt/bin/trtexec"] = (
        f'#!/bin/sh\necho "$@" >>{root}/calls\n'
        'for each in "$@"; do case $each in --saveEngine=*) echo plan >"${each#*=}" ;; esac; done\n'
        'echo "GPU Compute Time: min = 1 ms, median = 2 ms"\n'
        f"exit {trtexec}\n"
    )
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "usr/src/tensorrt/bin/trtexec").chmod(0o755)
    return root


def sh(script: Path, *args: str, root: Path | None = None) -> subprocess.CompletedProcess:
    env = {"PATH": os.environ["PATH"], "MSN_DEPLOY_ROOT": str(root or "")}
    return subprocess.run(["sh", str(script), *args], env=env, capture_output=True, text=True, timeout=60)


def calls(root: Path) -> list[str]:
    return (root / "calls").read_text().splitlines() if (root / "calls").exists() else []


def test_it_holds_what_a_device_needs_and_nothing_else(run, unpacked):
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    models = {"net.onnx", "net.fp16.onnx", "net.int8.onnx", "net.timing", "twin/net_bn.onnx"}
    assert {name for name in names if name.startswith("models/")} == {
        f"models/{name}{suffix}" for name in models for suffix in ("", ".json")
    }
    assert {name for name in names if "/" not in name} == {
        *("MANIFEST.json", "README.txt", "SHA256SUMS", "bundle.env", "models.list"),
        *("bench.sh", "build.sh", "common.sh", "install.sh", "verify"),
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


def test_verify_accepts_what_was_packed_and_the_digest_it_printed(run, tmp_path):
    report = bundle(run, tmp_path / "b.tar", target=ORIN_NANO, with_wheels=False)
    with tarfile.open(report.path) as archive:
        archive.extractall(tmp_path, filter="data")
    done = sh(tmp_path / "b/verify", report.digest)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{report.files - 1} files are as packed" in done.stdout
    wrong = sh(tmp_path / "b/verify", "0" * 64)
    assert wrong.returncode == 1
    assert "changed: SHA256SUMS" in wrong.stderr


@pytest.mark.parametrize(
    "name", ["models/net.int8.onnx", "models/twin/net_bn.onnx.json", "recipes/net.json", "verify", "common.sh"]
)
@pytest.mark.parametrize("at", [0.1, 0.9])
def test_a_flipped_byte_is_named(unpacked, name, at):
    path = unpacked / name
    content = bytearray(path.read_bytes())
    place = int(len(content) * at) if name != "verify" else content.index(b"quiet") if b"quiet" in content else 12
    content[place] ^= 1
    path.write_bytes(content)
    script = unpacked / "verify"
    if name == "verify":  # a comment of it, so that it still runs
        assert b"#" in content[:20]
    done = sh(script)
    assert done.returncode == 1
    assert f"changed: {name}" in done.stderr
    assert done.stderr.count("changed") == 1


def test_missing_and_added_files_are_named(unpacked):
    (unpacked / "models/net.timing").unlink()
    (unpacked / "wheels").mkdir()
    (unpacked / "wheels/tensorrt-10.0-py3-none-any.whl").write_bytes(b"")
    (unpacked / "engines").mkdir()
    (unpacked / "engines/net.engine").write_bytes(b"made on the device, no fault")
    done = sh(unpacked / "verify")
    assert done.returncode == 1
    assert "missing: models/net.timing" in done.stderr
    assert "unknown: wheels/tensorrt-10.0-py3-none-any.whl" in done.stderr
    assert "2 of" in done.stderr


@pytest.mark.parametrize("cut", ["half", "empty"])
def test_a_cut_list_of_digests_is_no_clean_bundle(unpacked, cut):
    sums = unpacked / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(lines[: len(lines) // 2]) if cut == "half" else "")
    assert sh(unpacked / "verify").returncode == 1


def test_trtexec_of_tensorrt_10_takes_the_types_of_the_file(unpacked, tmp_path):
    root = device(tmp_path / "root")
    done = sh(unpacked / "build.sh", root=root)
    assert done.returncode == 0, done.stderr
    assert f"{BOARD}, L4T 36.4.3" in done.stdout
    assert "TensorRT 10.3.0" in done.stdout
    engines = {path.name for path in (unpacked / "engines").glob("*.engine")}
    assert engines == {"net.engine", "net.fp16.engine", "net.int8.engine", "net_bn.engine"}
    assert len(calls(root)) == 4
    assert all(call.endswith("--stronglyTyped") for call in calls(root))


def test_trtexec_of_tensorrt_8_takes_flags_and_fp16_from_the_fp32_file(unpacked, tmp_path):
    root = device(tmp_path / "root", release="35 4.1", tensorrt="8.5.2")
    done = sh(unpacked / "build.sh", "fp16", "int8", root=root)
    assert done.returncode == 0, done.stderr
    options = {call.split("--onnx=")[1].split()[0].rpartition("/")[2]: call.split()[2:] for call in calls(root)}
    assert options == {
        "net.onnx": ["--fp16"],
        "net_bn.onnx": ["--fp16"],
        "net.int8.onnx": ["--int8", "--fp16"],
    }
    assert (unpacked / "engines/net.fp16.engine").read_text() == "plan\n"


def test_msn_deploy_builds_where_it_is_installed(unpacked, tmp_path):
    root = device(tmp_path / "root")
    fake = unpacked / ".venv/bin/msn-deploy"
    fake.parent.mkdir(parents=True)
    fake.write_text(f'#!/bin/sh\necho "$@" >>{root}/calls\nwhile [ $# -gt 1 ]; do shift; done\necho plan >"$1"\n')
    fake.chmod(0o755)
    done = sh(unpacked / "build.sh", "int8", root=root)
    assert done.returncode == 0, done.stderr
    (call,) = calls(root)
    assert call.startswith(
        f"build-engine {unpacked}/models/net.int8.onnx --precision int8 --target orin-nano-8gb --out "
    )
    fake.write_text("#!/bin/sh\nexit 0\n")  # as off the device, where a script is written in place of the engine
    assert sh(unpacked / "build.sh", "int8", root=root).returncode == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "NVIDIA Jetson AGX Orin Developer Kit"}, "this is NVIDIA Jetson AGX Orin Developer Kit, L4T 36.4.3"),
        ({"model": "NVIDIA Jetson Nano Developer Kit", "release": "32 7.1"}, "L4T 32.7.1"),
        ({"model": "Raspberry Pi 5 Model B Rev 1.0"}, "Raspberry Pi 5"),
        ({"model": ""}, "/tmp/nv_jetson_model"),
        ({"release": "38 2.0"}, "L4T 38.2.0 is no release for Jetson Orin Nano"),
        ({"tensorrt": ""}, "sudo apt install tensorrt"),
    ],
)
def test_another_device_is_refused_before_anything_is_built(unpacked, tmp_path, options, says):
    root = device(tmp_path / "root", **options)
    done = sh(unpacked / "build.sh", root=root)
    assert done.returncode == 3
    assert says in done.stderr
    assert calls(root) == []
    assert not (unpacked / "engines").exists()


@pytest.mark.parametrize(
    ("target", "release", "own", "other"),
    [("nano", "32 7.1", "NVIDIA Jetson Nano Developer Kit", "NVIDIA Jetson Orin Nano Developer Kit"),
     ("agx-xavier", "35 4.1", "NVIDIA Jetson AGX Xavier Developer Kit", "NVIDIA Jetson Xavier NX Developer Kit"),
     ("tx2", "32 7.1", "quill", "NVIDIA Jetson Nano Developer Kit")],
)  # fmt: skip
def test_boards_whose_names_hold_each_other_are_told_apart(run, tmp_path, target, release, own, other):
    bundle(run, tmp_path / "b.tar", target=find_target(target), with_wheels=False)
    with tarfile.open(tmp_path / "b.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    for model, code in ((own, 0), (other, 3)):
        root = device(tmp_path / str(code), model=model, release=release, tensorrt="8.2.1")
        assert sh(tmp_path / "b/build.sh", "fp32", root=root).returncode == code, model


def test_the_board_is_known_in_a_container_by_the_mounted_copy(unpacked, tmp_path):
    root = device(tmp_path / "root", model="")
    (root / "tmp").mkdir()
    (root / "tmp/nv_jetson_model").write_text(BOARD)
    assert sh(unpacked / "build.sh", root=root).returncode == 0


def test_every_jetson_takes_its_own_bundle_alone(run, tmp_path):
    boards = {
        "orin nano": "NVIDIA Jetson Orin Nano Developer Kit",
        "orin nx": "NVIDIA Orin NX Developer Kit",
        "agx orin": "NVIDIA Jetson AGX Orin Developer Kit",
        "thor": "NVIDIA Jetson AGX Thor Developer Kit",
        "xavier nx": "NVIDIA Jetson Xavier NX Developer Kit",
        "xavier": "Jetson-AGX",
        "tx2": "quill",
        "nano": "NVIDIA Jetson Nano Developer Kit",
    }
    boards["xavier"] = "NVIDIA Jetson AGX Xavier Developer Kit"
    for target in (target for target in TARGETS if target.jetson):
        words = board_words(target)
        fits = {
            name
            for name, text in boards.items()
            if any(word in text.lower() for word in words.mine)
            and not (words.not_mine and words.not_mine in text.lower())
        }
        assert fits == {words.mine[0]}, target.name


def test_a_failed_build_leaves_no_engine_and_shows_the_end_of_the_log(unpacked, tmp_path):
    root = device(tmp_path / "root", trtexec=1)
    done = sh(unpacked / "build.sh", "int8", root=root)
    assert done.returncode == 3
    assert "GPU Compute Time" in done.stderr
    assert not list((unpacked / "engines").glob("*.engine"))


def test_a_changed_bundle_builds_nothing(unpacked, tmp_path):
    (unpacked / "models/net.onnx").write_bytes(b"other")
    root = device(tmp_path / "root")
    assert sh(unpacked / "build.sh", root=root).returncode == 1
    assert calls(root) == []


def test_a_precision_that_is_not_there(unpacked, tmp_path):
    root = device(tmp_path / "root")
    assert "fp32, fp16 and int8, not 'int4'" in sh(unpacked / "build.sh", "int4", root=root).stderr


def test_bench_with_trtexec_fills_a_report(unpacked, tmp_path):
    root = device(tmp_path / "root", release="35 4.1", tensorrt="8.5.2")
    assert "no engines yet" in sh(unpacked / "bench.sh", root=root).stderr
    assert sh(unpacked / "build.sh", "int8", root=root).returncode == 0
    done = sh(unpacked / "bench.sh", root=root)
    assert done.returncode == 0, done.stderr
    assert "net.int8: min = 1 ms, median = 2 ms" in done.stdout
    names = {path.name for path in (unpacked / "report").iterdir()}
    assert names == {"MANIFEST.json", "device.txt", "net.int8.log"}
    assert "TensorRT 8.5.2" in (unpacked / "report/device.txt").read_text()


def test_bench_with_msn_deploy_measures_engines_against_bn(unpacked, tmp_path):
    root = device(tmp_path / "root")
    fake = unpacked / ".venv/bin/msn-deploy"
    fake.parent.mkdir(parents=True)
    fake.write_text(f'#!/bin/sh\necho "$@" >>{root}/calls\n')
    fake.chmod(0o755)
    assert sh(unpacked / "bench.sh", "--seconds", "3", root=root).returncode == 0
    models = "models/net.fp16.onnx models/net.int8.onnx models/net.onnx models/twin/net_bn.onnx"
    options = "--json report/bench.json --html report/bench.html --seconds 3"
    assert calls(root) == ["doctor --json", f"bench {models} --baseline models/twin/net_bn.onnx {options}"]
    (unpacked / "engines").mkdir()
    for name in ("net.int8", "net_bn"):
        (unpacked / f"engines/{name}.engine").write_bytes(b"plan")
    assert sh(unpacked / "bench.sh", root=root).returncode == 0
    assert calls(root)[-1].startswith("bench engines/net.int8.engine engines/net_bn.engine --baseline engines/net_bn.")


def test_install_without_wheels_and_with_an_old_python(unpacked, tmp_path):
    done = sh(unpacked / "install.sh")
    assert done.returncode == 2
    assert "--no-wheels" in done.stderr
    for name in ("python3", "python3.12", "python3.10"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    old = subprocess.run(["sh", unpacked / "install.sh"], env=env, capture_output=True, text=True, timeout=60)
    assert old.returncode == 0
    assert "drive trtexec instead" in old.stdout


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "net.onnx").write_bytes(b"x"), "is broken"),
        (lambda folder: shutil.copy(folder / "net.onnx", folder / "twin/net.onnx"), "net.onnx twice"),
        (lambda folder: shutil.copy(folder / "net.onnx", folder / "a net.onnx"), "quote"),
        (lambda folder: (folder / "out.onnx").symlink_to("/etc/passwd"), "link out of"),
        (lambda folder: [path.unlink() for path in folder.rglob("*.onnx*")], "no ONNX file"),
    ],
)
def test_folders_that_cannot_be_packed(run, tmp_path, spoil, says):
    folder = shutil.copytree(run, tmp_path / "copy")
    spoil(folder)
    with pytest.raises(InputError, match=says):
        bundle(folder, tmp_path / "b.tar", target=ORIN_NANO, with_wheels=False)
    assert not (tmp_path / "b.tar").exists()


def test_only_a_jetson_gets_a_bundle(run, tmp_path):
    with pytest.raises(InputError, match="no Jetson"):
        bundle(run, tmp_path / "b.tar", target=find_target("rtx-sm86"), with_wheels=False)
    with pytest.raises(InputError, match="not a folder"):
        bundle(tmp_path / "gone", tmp_path / "b.tar", target=ORIN_NANO, with_wheels=False)


def wheel(folder: Path, name: str, tag: str = "py3-none-any", needs: tuple[str, ...] = ()) -> None:
    """Write a wheel of nothing but metadata, version 99."""
    stem, info = f"{name}-99", f"{name}-99.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 99", *(f"Requires-Dist: {each}" for each in needs)]
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    """A folder of wheels that holds all of two invented requirements, and msn-deploy itself."""
    folder = tmp_path / "house"
    folder.mkdir()
    wheel(folder, "msn_deploy")
    wheel(folder, "pure", needs=("deeper",))
    wheel(folder, "deeper")
    for python in ("310", "312"):
        wheel(folder, "compiled", f"cp{python}-cp{python}-manylinux_2_28_aarch64")
        wheel(folder, "compiled", f"cp{python}-cp{python}-manylinux_2_28_x86_64")
    monkeypatch.setattr(wheels, "device_requirements", lambda: ["pure", "compiled>=2"])
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def gathered(tmp_path, house, *pythons) -> list[str]:
    folder = tmp_path / "gathered"
    folder.mkdir()
    return [path.name for path in wheels.gather_wheels(folder, source=house, pythons=pythons)]


def test_wheels_are_those_of_the_device(tmp_path, house):
    assert gathered(tmp_path, house, "3.10", "3.12") == [
        "compiled-99-cp310-cp310-manylinux_2_28_aarch64.whl",
        "compiled-99-cp312-cp312-manylinux_2_28_aarch64.whl",
        "deeper-99-py3-none-any.whl",
        "msn_deploy-99-py3-none-any.whl",
        "pure-99-py3-none-any.whl",
    ]


def test_a_wheel_that_is_missing_is_named(tmp_path, house):
    (house / "compiled-99-cp312-cp312-manylinux_2_28_aarch64.whl").unlink()
    with pytest.raises(InputError, match=r"compiled(.|\n)*--no-wheels"):
        gathered(tmp_path, house, "3.12")


@pytest.mark.parametrize("name", ["tensorrt", "torch", "tensorrt_cu12_libs", "nvidia_cuda_runtime"])
def test_no_second_tensorrt_and_no_torch_comes_along(tmp_path, house, name):
    wheel(house, name)
    wheel(house, "deeper", needs=(name,))
    with pytest.raises(InputError, match=f"{name}-99.*must not go to a Jetson"):
        gathered(tmp_path, house, "3.10")


def test_what_is_no_folder_or_no_python(tmp_path, house):
    with pytest.raises(InputError, match="not a folder"):
        wheels.gather_wheels(tmp_path, source=tmp_path / "gone", pythons=("3.10",))
    with pytest.raises(InputError, match=r"--python '3\.x'"):
        wheels.gather_wheels(tmp_path, source=house, pythons=("3.x",))


def test_a_bundle_with_wheels(run, tmp_path, house):
    report = bundle(run, tmp_path / "b.tar", target=ORIN_NANO, wheels=house, pythons=("3.10",))
    assert "wheels/compiled-99-cp310-cp310-manylinux_2_28_aarch64.whl" in [f"wheels/{name}" for name in report.wheels]
    with tarfile.open(report.path) as archive:
        assert "b/wheels/pure-99-py3-none-any.whl" in archive.getnames()


def test_what_the_jetson_extra_needs():
    names = {requirement.split(">")[0].split("<")[0] for requirement in wheels.device_requirements()}
    assert {"numpy", "pillow", "typer", "onnx", "onnxruntime"} <= names
    assert not any(name.startswith(("torch", "tensorrt", "pycuda", "msn-deploy")) for name in names)
    assert Path(msn_deploy.__file__).is_file()
