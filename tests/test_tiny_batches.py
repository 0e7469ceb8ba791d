"""The trainings with tiny batches: which there are, by which rule, and what the page says of those that are done."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    import tiny_batches
    import tiny_text

    yield type("Scripts", (), {"batches": tiny_batches, "text": tiny_text})
    sys.path.remove(str(BENCHMARKS))


def test_every_run_has_a_file_of_its_own_and_seeds_come_one_after_the_other(scripts: Any) -> None:
    runs = scripts.batches.runs()
    assert len({run.key for run in runs}) == len(runs)
    assert [stage for stage in scripts.batches.STAGES if any(run.stage == stage for run in runs)] == list(
        dict.fromkeys(run.stage for run in runs)
    )
    for stage, seeds in (("screen", 2), ("field", 5), ("whole", 5)):
        order = [run.seed for run in runs if run.stage == stage]
        assert order == sorted(order)
        assert set(order) == set(range(seeds))


def test_all_norms_follow_one_rule(scripts: Any, tmp_path: Path) -> None:
    for run in scripts.batches.runs():
        recipe = scripts.batches.recipe_of(run, 0.003, tmp_path)
        rule = 0.003 * math.sqrt(run.batch / 64) / (10 if run.stage == "field" else 1)
        assert recipe.train.learning_rate == pytest.approx(run.rate or rule)
        assert (recipe.norm, recipe.train.freeze) == scripts.batches.ARMS[run.arm]
        assert (recipe.width, recipe.train.batch_size, recipe.train.seed) == (16, run.batch, run.seed)


def test_the_base_is_the_best_rate_in_the_mean_and_diverging_counts_as_nothing(scripts: Any) -> None:
    norms, rates = scripts.batches.NORMS, scripts.batches.RATES
    runs = [
        {"stage": "rate", "arm": arm, "learning_rate": rate, "test_accuracy": 0.8 + rate}
        for rate in rates
        for arm in norms
    ]
    assert scripts.batches.base_rate(runs) == 0.01
    assert scripts.batches.base_rate([*runs[:-1], {**runs[-1], "test_accuracy": None}]) == 0.003
    with pytest.raises(SystemExit, match="not finished"):
        scripts.batches.base_rate(runs[:-1])


def test_the_page_pairs_seeds_and_names_what_diverged(scripts: Any) -> None:
    accuracies = {"bn": (0.80, 0.82, 0.84), "msn": (0.81, 0.84, None), "gn": (0.81, 0.82, 0.86)}
    runs = [
        {"stage": "whole", "arm": arm, "batch": 1, "seed": seed, "test_accuracy": value}
        | ({} if value is not None else {"diverged": "the training diverged"})
        for arm, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    text = "\n".join(scripts.text._stage({"whole": runs}, "whole"))
    assert "| BatchNorm | 82.00 ± 2.00 (3) |" in text
    assert "| MSN | 82.50 ± 2.12 (2) |" in text  # two pairs are too few for an interval
    assert "| GroupNorm | 83.00 ± 2.65 (3) +1.00 (-1.48 to +3.48) |" in text
    assert "Diverged, and left out of the means: MSN at batch 1, seed 2." in text


def test_what_msn_has_over_another_norm_is_of_pairs_of_seeds(scripts: Any) -> None:
    accuracies = {"bn": (0.80, 0.82, 0.84), "gn": (0.86, 0.85, 0.84), "msn": (0.82, 0.83, 0.87)}
    runs = [
        {"stage": stage, "arm": arm, "batch": batch, "seed": seed, "test_accuracy": value}
        for stage in ("whole", "field")
        for batch in (1, 2)
        for arm, values in accuracies.items()
        for seed, value in enumerate(values[: 3 if batch == 1 or stage == "field" else 2])
    ]
    said = "+2.00 (-0.48 to +4.48)"
    why = scripts.text.why({"runs": runs})
    assert f"{said} from scratch and {said} fine-tuned" in why
    assert "with 2, +2.00 to +2.00" in why
    over = scripts.text._over([run for run in runs if run["stage"] == "whole"], "gn")
    assert over == {1: pytest.approx((-1.0, -1.0 - 8.957, -1.0 + 8.957), abs=0.01)}


@pytest.mark.parametrize(
    ("stages", "left_out"), [([], set()), (["whole"], set()), (["base"], {"base"}), (["field"], {"base", "field"})]
)
def test_a_new_folder_takes_over_all_that_is_not_trained_anew(
    scripts: Any, stages: list[str], left_out: set[str], tmp_path: Path
) -> None:
    scripts.batches.fill(tmp_path, stages)
    found = scripts.batches.results(tmp_path)
    kept = json.loads(scripts.batches.OUT.read_text(encoding="utf-8"))["runs"]
    assert found == [run for run in kept if run["stage"] not in left_out]
