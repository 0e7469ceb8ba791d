"""Nothing leaves the machine: ONNX Runtime's telemetry is off in every process, and strace sees no command connect."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msn_deploy.cli.app import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
SESSION = """
import sys{first}
import onnxruntime
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""
CHAIN = """
from msn_deploy.cli.app import main
codes = [main(words.split()) for words in (
    "train cnn3_msn --epochs 1 --samples 32 --set width=2 --out run",
    "export run/cnn3_msn.safetensors --out run/net.onnx",
    "eval run/net.onnx --samples 8",
    "bench run/net.onnx --seconds 0.5 --threads 1",
)]
raise SystemExit(any(code not in (0, 4) for code in codes))
"""


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level packages that a file names in import statements, `require`, `importorskip` and the like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("require", "importorskip", "import_module", "__import__"):
                yield str(node.args[0].value).partition(".")[0]


def test_whoever_imports_onnx_runtime_switches_its_telemetry_off_before():
    """msn_deploy does; tests/conftest.py imports it before any test; a file without it says so itself."""
    found = []
    for room in ("msn_deploy", "benchmarks", "tests"):
        for path in sorted((ROOT / room).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            names = {"onnxruntime", "onnxslim", "onnxsim"}
            if not any(name in text for name in names) or not names & set(imported(ast.parse(text))):
                continue
            found.append(path.name)
            own = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
            with_package = room != "benchmarks" or "msn_deploy" in {
                name for node in own for name in imported(ast.Module([node], []))
            }
            assert with_package or 'os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")' in text, path
    assert {"ort.py", "graphs_arms.py", "independent.py"} <= set(found)
    before = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8").partition("\n@pytest")[0]
    assert "\nimport msn_deploy" in before


@pytest.mark.parametrize("name", ["Dockerfile.jetson", "msn_deploy/pipeline/bundle_scripts/common.sh"])
def test_images_and_scripts_switch_it_off(name: str) -> None:
    assert re.search(r"\bORT_DISABLE_TELEMETRY=1\b", (ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("first", "writes"), [(", msn_deploy", False), ("", True)])
def test_a_session_leaves_no_telemetry_behind(tmp_path: Path, first: str, writes: bool) -> None:
    """With telemetry on, ONNX Runtime keeps a device's number and what it has not sent yet below the home folder."""
    pytest.importorskip("onnxruntime")
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LD_LIBRARY_PATH")}
    env = {**kept, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", SESSION.format(first=first)], env=env, check=True, timeout=60)
    left = [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]
    if writes and not left:
        pytest.skip("this release of ONNX Runtime has no telemetry")
    assert bool(left) == writes


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """benchmarks/offline.py, where strace may trace."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt-get install strace")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import offline

    try:
        offline.outgoing(["-c", ""], tmp_path)
    except RuntimeError as cause:
        pytest.skip(str(cause))
    return offline


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket().connect_ex(('127.0.0.1', 9))",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "import socket, contextlib\nwith contextlib.suppress(OSError): socket.getaddrinfo('example.invalid', 80)",
        "import os, socket\nif not os.fork(): socket.socket(socket.AF_INET6).connect_ex(('::1', 9))",
    ],
    ids=["connect", "send", "look-up", "of a child"],
)
def test_what_leaves_the_machine_is_seen(offline: Any, tmp_path: Path, code: str) -> None:
    assert offline.outgoing(["-c", code], tmp_path)[1]


def test_the_script_runs_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import offline

    assert {line.split()[0] for line in offline.LINES} >= set(COMMANDS)


@pytest.mark.slow
def test_no_command_of_a_chain_leaves_the_machine(offline: Any, tmp_path: Path) -> None:
    """All other commands: `make offline`."""
    code, calls, err = offline.outgoing(["-c", CHAIN], tmp_path)
    assert (code, calls) == (0, []), err
    assert offline.left_by_telemetry(tmp_path) == []
