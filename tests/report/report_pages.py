"""Pages of invented studies and suites."""

from __future__ import annotations

import math
import random
from pathlib import Path

from bench_results import ACCURACY, BYTES, ENVIRONMENT, realistic

from msn_deploy.report.study import LipschitzBounds, Studied, Study, judge_claims, study_html
from msn_deploy.report.suite import SuiteArm, SuiteCase, SuiteIndex, suite_html

LAYERS = ["features.0", "features.3", "features.7.conv"]
BOUNDS = {
    "bn": LipschitzBounds(lower=3.14159, upper=4321.4, upper_by_matrix=8.7654e7, why=""),
    "sn": LipschitzBounds(lower=2.71828, upper=None, upper_by_matrix=None, why="softmax"),
}


def studied(norm: str, *, steps: int = 12) -> Studied:
    """A training whose numbers wobble."""
    rng = random.Random(norm)

    def around(level: float) -> list[float]:
        return [level * math.exp(rng.gauss(0, 0.3)) for _ in LAYERS]

    windows = [
        {
            "step": 20 * at,
            "drift": around(1e-7 if norm == "msn" else 0.3),
            "variance": around(1e-5),
            **{key: around(0.4) for key in ("shifted", "sparsity", "rank", "directions")},
            **{key: [[value, value / 2] for value in around(2.0)] for key in ("singular", "eigenvalues")},
            "sigma": [None if norm == "bn" else 1.001] * len(LAYERS),
        }
        for at in range(steps)
    ]
    history = [{"epoch": at, "test_accuracy": 1 - 0.5 / at, "train_loss": 2.0 / at} for at in range(1, 6)]
    parameters = 1000 + len(norm)
    return Studied(parameters=parameters, layers=LAYERS, windows=windows, history=history, lipschitz=BOUNDS.get(norm))


def study(norms: tuple[str, ...] = ("bn", "sn", "msn"), *, data: str = "digits") -> str:
    """The page of a study."""
    train = {"seed": 0, "epochs": 5, "batch_size": 16, "optimizer": "sgd", "schedule": "cosine", "learning_rate": 0.1}
    found = {norm: studied(norm) for norm in norms}
    return study_html(
        Study(
            recipe={"net": "cnn3", "data": data, "init": "he", "train": train},
            norms=found,
            claims=judge_claims(found),
            page=Path("study.html"),
            result=Path("study.json"),
        )
    )


def suite(*, network: str = "DenseNet") -> str:
    """The page of a suite: a case that was measured, one that is invalid, and one without a result."""
    result = realistic()
    arms = tuple(
        SuiteArm(
            name=arm.name,
            row=arm.name,
            precision="fp32",
            norm="bn",
            folded=index > 0,
            accuracy=ACCURACY[index],
            bytes=BYTES[index],
            graph=None if index == 3 else "ab" * 32,
            sha256="cd" * 32,
            median_ms=arm.median_ms,
            p90_ms=arm.p90_ms,
            p99_ms=None,
            ratio=arm.ratio,
            verdict=arm.verdict,
            ratio_interval=arm.ratio_interval,
            to_reference=arm.against_baseline if index else None,
            same_graph=index == 1,
        )
        for index, arm in enumerate(result.arms)
    )
    cases = [
        SuiteCase(
            case=f"case-{number}",
            file=None,
            network=network,
            batch=number,
            invalid=invalid,
            baseline=result.baseline if invalid != "too slow" else "",
            reference=result.baseline,
            arms=arms if invalid != "too slow" else (),
        )
        for number, invalid in enumerate(("", "invalid: 4 of 9 blocks.\nCool it.", "too slow"))
    ]
    index = SuiteIndex(
        suite="paper",
        title="",
        machine="orin",
        provider="cpu",
        threads=None,
        environment=ENVIRONMENT,
        cases=tuple(cases),
    )
    return suite_html(index)
