"""Numbers for inputs of any type; several runs read as one."""

from __future__ import annotations

import numpy as np
import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.model.feeds import joined, random_feeds

INPUTS = (
    TensorSpec("left", "float32", (None, 3, None, 8)),
    TensorSpec("frames", "uint8", (2, 64, 64, 3)),
    TensorSpec("length", "int64", (None,)),
    TensorSpec("flag", "bool", ()),
    TensorSpec("half", "float16", (1, 5)),
)


def test_each_input_gets_its_type_and_shape() -> None:
    feeds = random_feeds(INPUTS, rows=4)
    assert {name: (each.dtype.name, each.shape) for name, each in feeds.items()} == {
        "left": ("float32", (4, 3, 1, 8)),
        "frames": ("uint8", (2, 64, 64, 3)),
        "length": ("int64", (4,)),
        "flag": ("bool", ()),
        "half": ("float16", (1, 5)),
    }
    assert feeds["frames"].min() == 0
    assert feeds["frames"].max() == 255
    assert set(feeds["length"]) <= {0, 1}
    assert abs(feeds["left"].mean()) < 0.5 < feeds["left"].std()


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others() -> None:
    first, again, other = (random_feeds(INPUTS, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first["left"], again["left"])
    assert not np.array_equal(first["left"], other["left"])


@pytest.mark.parametrize("spec", [TensorSpec("x", "float32", None), TensorSpec("x", "sequence", (1,))])
def test_what_no_array_can_be_made_for_is_named(spec: TensorSpec) -> None:
    with pytest.raises(InputError, match="'x'"):
        random_feeds([spec])


def test_runs_are_joined_row_by_row() -> None:
    runs = [{"y": np.full((2, 3), at), "n": np.asarray(at), "found": np.full((1, at), 1.5)} for at in (1, 2)]
    whole = joined(runs)
    assert whole["y"].tolist() == [[1] * 3, [1] * 3, [2] * 3, [2] * 3]
    assert whole["n"].tolist() == [1, 2]
    assert whole["found"].tolist() == [1.5] * 3
