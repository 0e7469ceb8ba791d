"""The comparison with other quantisers: what is counted in a file, and what the table says of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "peers")]
quantisers = pytest.importorskip("quantisers", reason="needs the source tree")
quantisers_text = pytest.importorskip("quantisers_text", reason="needs the source tree")

ENGINE = {"builder": "TensorRT-RTX 1.7", "layers": 4, "heavy": 3, "int8": 2}


def _graph(scale: float, label: str) -> ModelProto:
    """Return x through a Q/DQ pair, and a weight through a DQ, with tensors that `label` names."""
    constants = [
        numpy_helper.from_array(np.float32(scale), f"{label}s"),
        numpy_helper.from_array(np.int8(0), f"{label}z"),
        numpy_helper.from_array(np.arange(4, dtype=np.int8), f"{label}w"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", f"{label}s", f"{label}z"], [f"{label}q"]),
        helper.make_node("DequantizeLinear", [f"{label}q", f"{label}s", f"{label}z"], [f"{label}d"]),
        helper.make_node("DequantizeLinear", [f"{label}w", f"{label}s", f"{label}z"], [f"{label}v"]),
        helper.make_node("Mul", [f"{label}d", f"{label}v"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_q_and_dq_nodes_are_counted_apart() -> None:
    assert quantisers.nodes_of(_graph(0.5, "a")) == {"q": 1, "dq": 2}


def test_two_files_share_bytes_or_scales_or_nothing(tmp_path: Path) -> None:
    files = {"one": (0.5, "a"), "same": (0.5, "a"), "renamed": (0.5, "b"), "other": (0.25, "a")}
    paths = {name: tmp_path / f"{name}.onnx" for name in files}
    for name, made in files.items():
        onnx.save(_graph(*made), str(paths[name]))
    found = {name: quantisers.alike(paths["one"], paths[name]) for name in ("same", "renamed", "other")}
    assert found == {"same": "bytes", "renamed": "scales", "other": "nothing"}


def test_runs_are_kept_in_the_order_of_the_networks() -> None:
    keys = [("unet", "BN", 0), ("cnn3", "MSN", 1), ("gone", "BN", 0), ("cnn3", "MSN", 0)]
    assert quantisers.ordered(keys) == [("cnn3", "MSN", 0), ("cnn3", "MSN", 1), ("unet", "BN", 0)]


def _facts(value: float, sqnr: float, **more: Any) -> dict[str, Any]:
    facts = {"value": value, "sqnr_db": sqnr, "bytes": 32500, "q": 10, "dq": 20, "engine": ENGINE, "seconds": 1.5}
    return {**facts, "cpu_seconds": 0.5, "two_runs": "bytes", **more}


def _text(tmp_path: Path, *seeds: dict[str, Any], **others: dict[str, Any]) -> str:
    tools = {tool: _facts(0.9, 20.0) for tool in quantisers_text.TOOLS}
    runs = [
        {"network": "n", "title": "net", "arm": "BN", "seed": seed, "metric": "accuracy", "images": 364, "layers": 3,
         "fp32": 0.9, "load": 2.0, "tools": {**tools, **others, "msn-deploy": facts}}
        for seed, facts in enumerate(seeds)
    ]  # fmt: skip
    versions = {"packages_of_modelopt": ["nvidia-modelopt==1.2", "onnxruntime==3.4"], "versions": {"onnxruntime": "5"}}
    path = tmp_path / "quantisers.json"
    path.write_text(json.dumps({"samples": 256, "epochs": 2, "runs": runs, **versions}), encoding="utf-8")
    return quantisers_text.text(path)


def test_a_row_is_the_mean_over_the_seeds(tmp_path: Path) -> None:
    lines = _text(tmp_path, _facts(0.88, 30.0), _facts(0.90, 32.0, q=11)).splitlines()
    assert lines[2] == (
        "| net (accuracy), BN, 2 | `calibrate` | 1.00 | 31.0 | 32 | 10 + 20, 11 + 20 | 2 of 3 | 1.5 (0.5) |"
    )
    assert len(lines[3].split("|")) == len(lines[2].split("|")) == len(lines[0].split("|"))


def test_a_better_tool_is_named_and_by_how_much(tmp_path: Path) -> None:
    assert "on 1 of 1 networks." in _text(tmp_path, _facts(0.9, 20.1))
    assert "on 0 of 1 networks. Another tool keeps more on net: Model-Optimizer, max by 1.5 dB." in _text(
        tmp_path, _facts(0.9, 20.1), **{"modelopt-max": _facts(0.9, 21.6)}
    )


def test_files_that_differ_fail_or_are_not_built_are_told(tmp_path: Path) -> None:
    odd = {
        "modelopt": _facts(0.9, 20.0, two_runs="scales"),
        "onnxruntime": _facts(0.9, 20.0, engine={"refused": "no"}),
        "modelopt-max": {"refused": "it broke"},
    }
    text = _text(tmp_path, _facts(0.9, 20.1), **odd)
    assert "Model-Optimizer, entropy: the same scales in 1 of 1" in text
    assert "| ONNX Runtime | 0.00 | 20.0 | 32 | 10 + 20 | does not build |" in text
    assert "TensorRT does not take the files of ONNX Runtime:" in text
    failed = next(line for line in text.splitlines() if "it broke" in line)
    assert len(failed.split("|")) == len(text.splitlines()[0].split("|"))
