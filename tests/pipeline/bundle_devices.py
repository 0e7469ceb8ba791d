"""A run folder and wheels to pack, and faked roots of devices on which the scripts of a bundle run."""

import hashlib
import os
import re
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from msn_deploy.core.model_info import METADATA_KEY, ModelInfo
from msn_deploy.engine import find_target

ORIN_NANO = find_target("orin-nano")
BOARD = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"


def onnx_bytes(*, norm="msn", half=False, quantised=False, batch=1) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    np = pytest.importorskip("numpy")
    weight = np.random.default_rng(5).uniform(-0.5, 0.5, (4, 1, 3, 3)).astype(np.float32)
    shapes = [("x", [batch, 1, 8, 8]), ("y", [batch, 4, 6, 6])]
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


def wheel(folder: Path, name: str, tag: str = "py3-none-any", needs: tuple[str, ...] = ()) -> None:
    """Write a wheel of nothing but metadata, version 99."""
    stem, info = f"{name}-99", f"{name}-99.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 99\nProvides-Extra: runtime\nProvides-Extra: train"]
    lines += [f"Requires-Dist: {each}" for each in needs]
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")


def device(root: Path, *, model=BOARD, compatible="", release="36 4.3", tensorrt="10.3.0", trtexec=0, fails="/no"):
    """Fake the root of a device; trtexec logs its words, writes the engine, and exits so; 1 where they hold `fails`."""
    major, _, minor = release.partition(" ")
    files = {"etc/nv_tegra_release": f"# R{major} (release), REVISION: {minor}, GCID: 1\n"}
    if model:
        files["proc/device-tree/model"] = model + "\0"
    if compatible:
        files["proc/device-tree/compatible"] = "".join(f"{each}\0" for each in compatible.split())
    if tensorrt:
        files[f"usr/lib/aarch64-linux-gnu/libnvinfer.so.{tensorrt}"] = ""
    files["usr/src/tensorrt/bin/trtexec"] = (
        f'#!/bin/sh\nif [ "$1" = --help ]; then echo "[TensorRT v{_number(tensorrt)}]"; exit; fi\n'
        f'echo "$@" >>{root}/calls\n'
        'for each in "$@"; do case $each in --saveEngine=*) echo plan >"${each#*=}" ;; esac; done\n'
        f'case "$*" in *{fails}*) echo "out of luck"; exit 1 ;; esac\n'
        'echo "GPU Compute Time: min = 1 ms, median = 2 ms"\n'
        f"exit {trtexec}\n"
    )
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "usr/src/tensorrt/bin/trtexec").chmod(0o755)
    return root


def _number(tensorrt: str) -> str:
    """Write "8.5.2" as trtexec does: 8502, and "10.3.0" 100300."""
    major, minor, patch = (int(part) for part in (tensorrt or "0.0.0").split("."))
    return f"{major}{minor:02}{patch:02}" if major >= 10 else f"{major}{minor}{patch:02}"


def look_below(scripts: Path, root: Path) -> None:
    """Let the scripts of an unpacked bundle look for /proc, /etc and /usr below a root: changed in the copy alone."""
    common, sums = scripts / "common.sh", scripts / "SHA256SUMS"
    before = [_sha256(path) for path in (common, sums)]
    common.write_text(re.sub(r"(?m)^root='[^']*'", f"root='{root}'", common.read_text()))
    sums.write_text(sums.read_text().replace(before[0], _sha256(common)))
    for record in (home_of(scripts) / "bundles").glob("*"):
        record.write_text(record.read_text().replace(before[1], _sha256(sums)))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def home_of(scripts: Path) -> Path:
    """Return where the record of what an unpacked bundle made lies."""
    return scripts.parent / f"home-of-{scripts.name}"


def sh(script: Path, *args: str, root: Path | None = None, shell: Sequence[str] = ("sh",), path: str = ""):
    """Run a script of an unpacked bundle. path: where its programs lie, if not in PATH."""
    if root is not None:
        look_below(script.parent, root)
    env = {"PATH": path or os.environ["PATH"], "MSN_DEPLOY_HOME": str(home_of(script.parent))}
    return subprocess.run([*shell, str(script), *args], env=env, capture_output=True, text=True, timeout=60)


def installed(unpacked: Path, text: str, *, imports: Sequence[str] = ("tensorrt", "pycuda.driver")) -> Path:
    """Fake what install.sh makes: msn-deploy as a script of `text`, a python that can import these."""
    assert sh(unpacked / "verify", "--begin", ".venv").returncode == 0
    folder = unpacked / ".venv/bin"
    folder.mkdir(parents=True, exist_ok=True)
    known = "|".join(f"'import {name}'" for name in imports) or "''"
    for name, content in (("msn-deploy", text), ("python", f'case "$2" in {known}) exit 0;; esac\nexit 1\n')):
        (folder / name).write_text(f"#!/bin/sh\n{content}")
        (folder / name).chmod(0o755)
    assert sh(unpacked / "verify", "--made", ".venv").returncode == 0
    return folder / "msn-deploy"


def built(unpacked: Path, *names: str, content: str = "plan") -> None:
    """Fake engines that build.sh made."""
    assert sh(unpacked / "verify", "--begin", "engines").returncode == 0
    (unpacked / "engines").mkdir(exist_ok=True)
    for name in names:
        (unpacked / f"engines/{name}.engine").write_text(content)
        assert sh(unpacked / "verify", "--add", f"engines/{name}.engine").returncode == 0
    assert sh(unpacked / "verify", "--made", "engines").returncode == 0


def calls(root: Path) -> list[str]:
    return (root / "calls").read_text().splitlines() if (root / "calls").exists() else []
