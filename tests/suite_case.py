"""A made-up index of a suite: what is the same graph, faster, slower, invalid, and missing."""

from __future__ import annotations

from typing import Any


def arm(
    row: str, precision: str, median_ms: float, *, ratio: float | None, verdict: str, graph: str, folded: bool
) -> dict[str, Any]:
    """One arm; ratio: to the reference, None for the reference itself."""
    to_reference = None
    if ratio is not None:
        to_reference = {"ratio": ratio, "low": ratio - 0.01, "high": ratio + 0.01, "verdict": verdict}
        to_reference |= {"p_value": 0.01, "rank_p_value": 0.01}
    return {
        "name": f"{row}, {precision.upper()}",
        "row": row,
        "precision": precision,
        "norm": row[:3].strip().lower(),
        "folded": folded,
        "accuracy": 0.9753,
        "bytes": 3 * 1024,
        "graph": graph,
        "median_ms": median_ms,
        "p90_ms": 1.5 * median_ms,
        "p99_ms": None,
        "sha256": "5" * 64,
        "ratio": 0.9,
        "ratio_interval": [0.8, 1.0],
        "verdict": "FASTER",
        "to_reference": to_reference,
        "same_graph": graph == "a" and row != "BN folded",
    }


def case(network: str, batch: int, arms: list[dict[str, Any]], invalid: str = "") -> dict[str, Any]:
    """One case of rows against BN folded."""
    return {
        "case": f"{network}-b{batch}",
        "file": f"{network}-b{batch}.json",
        "network": network,
        "batch": batch,
        "invalid": invalid,
        "baseline": "BN unfolded, FP32",
        "reference": "BN folded",
        "arms": arms,
    }


def index() -> dict[str, Any]:
    """VGG7: one graph folded. A DenseNet: its producer forms, again one graph, are faster, its consumer form is not."""
    vgg7 = [
        arm("BN unfolded", "fp32", 2.5, ratio=1.25, verdict="SLOWER", graph="u", folded=False),
        arm("BN folded", "fp32", 2.0, ratio=None, verdict="", graph="a", folded=True),
        arm("MSN folded", "fp32", 2.001, ratio=1.001, verdict="SAME", graph="a", folded=True),
    ]
    densenet = [
        arm("BN folded", "fp32", 4.0, ratio=None, verdict="", graph="b", folded=False),
        arm("MSN consumer", "fp32", 4.1, ratio=1.02, verdict="AMBIGUOUS", graph="c", folded=True),
        arm("MSN producer", "fp32", 3.2, ratio=0.8, verdict="FASTER", graph="d", folded=True),
        arm("BN producer", "fp32", 3.3, ratio=0.81, verdict="FASTER", graph="d", folded=True),
    ]
    slower = [
        {**each, "to_reference": each["to_reference"] and {**each["to_reference"], "verdict": "SAME"}}
        for each in densenet
    ]
    return {
        "schema": "msn-deploy-suite/1",
        "suite": "paper",
        "title": "Made up",
        "machine": "epyc-2-cores",
        "provider": "cpu",
        "threads": 1,
        "environment": {"cpu": "AMD EPYC", "machine": None, "versions": {"onnxruntime": "1.2.3"}},
        "cases": [
            case("VGG7", 1, vgg7),
            case("VGG7", 32, vgg7, invalid="invalid: 4 of 9 blocks.\nCool it."),
            case("DenseNet", 1, densenet),
            case("DenseNet", 32, slower),
        ],
    }
