"""The table of INT8 in ONNX Runtime on a CPU, from what `ort_int8.py` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TITLES = {"vgg7": "VGG7, digits", "resnet18": "ResNet-18, digits", "detector": "detector, digits-scenes"}


def block(path: Path) -> str:
    """Return the table: times as a share of FP32's and of the fastest peer file's, SQNR, and the metric."""
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        "| network | threads | FP32, ms | INT8 for a CPU over FP32 | INT8 for TensorRT over FP32 | "
        "over the fastest of `onnxruntime.quantization` | SQNR, dB: ours / theirs | metric, %: FP32 / ours / theirs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network in result["networks"]:
        for threads, measured in network["threads"].items():
            rows.append(_row(network, threads, measured["rows"]))
    environment = result["environment"]
    return "\n".join(
        [
            *rows,
            "",
            "Ratios of times with 95 % intervals, one sample at a time, on "
            f"{environment['cores_usable']} cores of {environment['cpu']} ({', '.join(result['instructions'])}), "
            f"ONNX Runtime {environment['versions']['onnxruntime']}. Each file was opened three times, in turns with "
            "the others. Theirs: the faster of the two fastest files, of all combinations of their formats and types. "
            "Ranges of both come from the same training images. Raw, by "
            f"`python benchmarks/ort_int8.py`: `benchmarks/results/{path.parent.name}/{path.name}`.",
        ]
    )


def _row(network: dict[str, Any], threads: str, rows: dict[str, Any]) -> str:
    (fastest,) = [name for name, row in rows.items() if name.startswith("theirs") and "to_theirs" not in row]
    kept, ours = network["kept"], rows["ours"]
    metric = " / ".join(f"{100 * kept[name]['value']:.2f}" for name in ("fp32", "ours", fastest))
    return (
        f"| {TITLES[network['network']]} ({kept['fp32']['metric']}) | {threads} | {rows['fp32']['median_ms']:.2f} | "
        f"{_ratio(ours['to_fp32'])} | {_ratio(rows['tensorrt']['to_fp32'])} | {_ratio(ours['to_theirs'])} | "
        f"{kept['ours']['sqnr_db']:.1f} / {kept[fastest]['sqnr_db']:.1f} | {metric} |"
    )


def _ratio(value: list[float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*value)
