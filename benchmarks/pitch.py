"""The first screen of the README: why one would want it, what one types, and the one table of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import accuracy
import step_text
import tiny_text

from msn_deploy.core.reader import tomllib
from msn_deploy.report.suite import SuiteArm, index_from

ROOT = Path(__file__).resolve().parent.parent
_ROWS = {  # shown as: table of accuracy, network of train-step.json, network of the suite
    "cnn3": ("mnist-cnn3", "", "cnn3"),
    "VGG7": ("fashion-vgg7", "vgg7", "VGG7"),
    "DenseNet-BC": ("fashion-densenet-bc-22", "densenet_bc", "DenseNet-BC, 22 layers"),
    "ResNet-18": ("", "resnet18", ""),
    "MobileNetV2": ("", "mobilenet_v2", ""),
    "U-Net": ("", "unet", ""),
}
_PRODUCER = "MSN folded, producer"


def why(recorded: Path, suite: Path) -> str:
    """Return four measured sentences. recorded: the folder of train-step.json; suite: that of the suite `paper`."""
    differences, seeds = [], []
    for path in sorted(accuracy.RESULTS.glob("*.json")):
        if not path.stem.startswith(("gap-", "scenes-")):
            row = _msn(path.stem)
            differences.append(row.difference[0])
            seeds.append(row.seeds)
    tiny = json.loads((ROOT / "benchmarks" / "results" / "tiny-batches.json").read_text(encoding="utf-8"))
    arms = _folded(suite)
    same = [arm.to_reference.ratio for arm in arms if arm.same_graph and arm.norm == "msn" and arm.row != _PRODUCER]
    return "\n".join(
        [
            f"- **Accuracy.** MSN ends {-min(differences):.2f} points below to {max(differences):.2f} points above "
            "BatchNorm (cnn3, VGG7 and a small DenseNet-BC on digits, MNIST and Fashion-MNIST; means over "
            f"{min(seeds)} to {max(seeds)} seeds).",
            f"- **Training memory.** {step_text.summary(recorded)}",
            f"- **Tiny batches.** {tiny_text.why(tiny)}",
            "- **Deployment.** Folded, MSN and BatchNorm are the same plain convolutions with the same latency "
            f"(ratio {min(same):.3f} to {max(same):.3f}, ONNX Runtime, CPU, FP32).",
        ]
    )


def table(recorded: Path, suite: Path) -> str:
    """Return MSN over BatchNorm per network: accuracy, a training step, its memory, latency once folded."""
    result = json.loads((recorded / "train-step.json").read_text(encoding="utf-8"))
    steps = {
        case["net"]: case["rows"]
        for case in result["cases"]
        if (case["form"], case["dtype"], case["layout"]) == ("eager", "float32", "contiguous")
    }
    rows = [
        "| MSN over BatchNorm | test accuracy, % | difference, points (95 %) | training step | training memory "
        "| latency, folded |",
        "|---|---|---|---|---|---|",
    ]
    for shown, (trained, net, network) in _ROWS.items():
        cells = ["", "", "", "", ""]
        if trained:
            row, base = _msn(trained), _arm(trained, accuracy.BASELINE)
            data = str(row.recipe["data"])
            cells[0] = f"{row.accuracy:.2f} over {base.accuracy:.2f} ({data})"
            cells[1] = "{:+.2f} ({:+.2f} to {:+.2f})".format(*row.difference)
        if net:
            msn, bn = steps[net]["msn"], steps[net]["bn"]
            cells[2] = "{:.2f} ({:.2f} to {:.2f})".format(*msn["to_bn"])
            cells[3] = f"{msn['saved_mib'] / bn['saved_mib']:.2f}"
        if network:
            cells[4] = "; ".join(_latency(arm) for arm in _folded(suite, network=network, batch=1) if arm.norm == "msn")
        rows.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(
        [
            *rows,
            "",
            "Ratios below 1 favour MSN; in brackets 95 % intervals. On CPUs: torch "
            f"{result['torch'].partition('+')[0]} for training (float32, DenseNet-BC with 100 layers), "
            "ONNX Runtime for latency (FP32, batch 1, DenseNet-BC with 22 layers). Producer form: norm and ReLU "
            "where a feature is made, from which BatchNorm gains as much. Empty: not measured.",
        ]
    )


def _latency(arm: SuiteArm) -> str:
    assert arm.to_reference is not None
    form = "producer form " if arm.row == _PRODUCER else "same graph, "
    return f"{form}{arm.to_reference.ratio:.3f} {arm.to_reference.verdict}"


def _folded(suite: Path, *, network: str = "", batch: int = 0) -> list[SuiteArm]:
    """Return the FP32 arms that are compared with BN folded, of one network and batch or of all."""
    index = index_from(json.loads((suite / "paper" / "suite.json").read_text(encoding="utf-8")))
    return [
        arm
        for case in index.cases
        if network in ("", case.network) and batch in (0, case.batch)
        for arm in case.arms
        if arm.precision == "fp32" and arm.folded and arm.to_reference
    ]


def _msn(name: str) -> Any:
    return _arm(name, "MSN")


def _arm(name: str, arm: str) -> Any:
    result = accuracy.read(name)
    assert result is not None
    (row,) = [row for row in accuracy.rows_of(result) if row.arm == arm]
    return row


def stages(demo: Path) -> str:
    """Return the table of `make demo` alone: a line per network and stage."""
    lines = demo.read_text(encoding="utf-8").splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("network "))
    last = next(at for at, line in enumerate(lines) if at > first and not line.strip())
    return "\n".join(["```text", *(line.rstrip() for line in lines[first:last]), "```"])


def clone() -> str:
    """Return the lines that bring the checkout here: the address is the one of pyproject.toml, once it has one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository", "ADDRESS_OF_THIS_REPOSITORY")
    lines = (f"git clone {address} msn-deploy && cd msn-deploy", "make demo")
    return "\n".join(["<!-- not run: needs the network -->", "```sh", *lines, "```"])
