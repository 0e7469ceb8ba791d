"""Networks as people have them go from FILE.py:factory to FP16 and INT8 files, with parity per output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from any_network import INPUTS, NETWORKS, source

from msn_deploy.cli.options import parse_input
from msn_deploy.model.feeds import random_feeds
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.pipeline.fp16 import cast_to_fp16

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["detector", "ocr"])
def test_a_network_of_any_inputs_and_outputs_in_all_precisions(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.onnx"
    export_onnx(source(tmp_path, NETWORKS[name]), path, inputs=tuple(parse_input(each) for each in INPUTS[name]))
    model = open_model(path, step="test")
    (tmp_path / "feeds").mkdir()
    for at in range(20):  # of different widths, where the width is open
        sizes = [
            type(spec)(spec.name, spec.dtype, tuple(32 + 16 * (at % 3) if size is None and axis else size or 1
                                                    for axis, size in enumerate(spec.shape or ())))
            for spec in model.inputs
        ]  # fmt: skip
        np.savez(tmp_path / "feeds" / f"{at:02}.npz", **random_feeds(sizes, seed=at))
    data = str(tmp_path / "feeds")
    int8 = calibrate(path, tmp_path / "int8.onnx", data=data, use_cache=False)
    half = cast_to_fp16(path, tmp_path / "half.onnx", data=data)
    for report, least in ((int8, 15), (half, 50)):
        assert report.samples == 20
        assert report.parity is not None
        assert [each.name for each in report.parity.outputs] == [spec.name for spec in model.outputs]
        for each in report.parity.outputs:
            assert each.sqnr_db > least if each.floats else each.equal > 0.9
        made = open_model(report.path, step="test")
        assert (made.inputs, made.outputs) == (model.inputs, model.outputs)
    assert open_model(int8.path, step="test").precision == "int8"
