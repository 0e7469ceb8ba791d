"""What the folds of a network are proved on."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from msn_deploy.graph.certificate import INPUTS, edge_batches


@pytest.mark.parametrize(("batch", "batches"), [("N", 1), ("1", 2), ("2", 1), ("3", 1)])
def test_numbers_and_ones_with_lit_corners_in_batches_that_the_graph_takes(batch: str, batches: int) -> None:
    kind = f"float[{batch},2,4,5]"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> one ({kind} x) => ({kind} y) {{ y = Relu(x) }}'
    )
    found = edge_batches(model)
    assert len(found) == batches
    assert {len(each) for each in found} == {int(batch) if batch.isdigit() else len(INPUTS)}
    images = np.concatenate(found)
    assert images[0].std() > 0.5
    np.testing.assert_array_equal(images[1][:, 0], [[100, 1, 1, 1, 100]] * 2)
    np.testing.assert_array_equal(images[1][:, 3], [[100, 1, 1, 1, 100]] * 2)
    np.testing.assert_array_equal(images[1][:, 1:3], np.ones((2, 2, 5)))
