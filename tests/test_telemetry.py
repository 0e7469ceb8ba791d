"""ONNX Runtime's telemetry is off before its first import: in every process, script and image of this project."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def imported(tree):
    """The top-level packages that a file names in import statements, `require` and `importorskip`, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0], node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("require", "importorskip", "import_module", "__import__"):
                yield str(node.args[0].value).partition(".")[0], node.lineno


def switches_off(path, tree):
    """Whether msn_deploy comes first: as the file's package, by tests/conftest.py, or by an import of its own."""
    room = path.relative_to(ROOT).parts[0]
    return room in ("msn_deploy", "tests") or any(
        name == "msn_deploy" for node in tree.body for name, _ in imported(ast.Module([node], []))
    )


def test_whoever_imports_onnx_runtime_imports_msn_deploy_too():
    found = []
    for room in ("msn_deploy", "benchmarks", "tests"):
        for path in sorted((ROOT / room).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if any(name in ("onnxruntime", "onnxslim", "onnxsim") for name, _ in imported(tree)):
                found.append(path.name)
                assert switches_off(path, tree), path
    assert {"ort.py", "graphs_arms.py"} <= set(found)
    assert "import msn_deploy" in (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["Dockerfile.jetson", "msn_deploy/pipeline/bundle_scripts/common.sh"])
def test_images_and_scripts_switch_it_off(name):
    assert re.search(r"\bORT_DISABLE_TELEMETRY=1\b", (ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("first", "writes"), [(", msn_deploy", False), ("", True)])
def test_a_session_leaves_no_telemetry_behind(tmp_path, first, writes):
    """With telemetry on, ONNX Runtime keeps a device's number and what it has not sent yet below the home folder."""
    pytest.importorskip("onnxruntime")
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LD_LIBRARY_PATH")}
    env = {**kept, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": ""}
    if not writes:
        del env["ORT_DISABLE_TELEMETRY"]
    subprocess.run([sys.executable, "-c", SESSION.format(first=first)], env=env, check=True, timeout=60)
    left = [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]
    if writes and not left:
        pytest.skip("this release of ONNX Runtime has no telemetry")
    assert bool(left) == writes
