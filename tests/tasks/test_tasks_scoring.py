"""A metric of runs: of a last run that was filled up, only the images that there are count."""

from types import SimpleNamespace

import numpy as np

from msn_deploy.core.model_info import Preprocess
from msn_deploy.tasks.scoring import score_of


def test_a_run_that_was_filled_up_loses_its_rows_and_nothing_that_has_none():
    seen, counted = [], []
    meter = SimpleNamespace(add=lambda answers, labels: counted.append((answers, list(labels))), score=lambda: "score")
    task = SimpleNamespace(answers=lambda outputs, placements: seen.append(outputs) or "answers", meter=lambda: meter)
    prep = Preprocess(height_px=4, width_px=4, channels=1, mean=(0.25,), std=(0.5,))
    outputs = {"rows": np.arange(12).reshape(4, 3), "boxes": np.arange(49).reshape(7, 7)}
    assert score_of(task, np.arange(6), prep, [(4, outputs), (4, outputs)]) == "score"
    assert [{name: len(array) for name, array in each.items()} for each in seen] == [
        {"rows": 4, "boxes": 7},
        {"rows": 2, "boxes": 7},
    ]
    np.testing.assert_array_equal(seen[1]["rows"], outputs["rows"][:2])
    assert counted == [("answers", [0, 1, 2, 3]), ("answers", [4, 5])]
