"""Some of ONNX's own tests go through `export`, and the committed result of all of them has no wrong one."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "xeon-2-cores" / "backend-tests.json"
# One of each kind of graph that export works on: weights, constants, several inputs and outputs, types, inner graphs.
NAMES = (
    "test_add_uint8", "test_argmax_default_axis_random", "test_attention_3d_expanded",
    "test_averagepool_2d_same_upper", "test_basic_conv_with_padding", "test_batchnorm_epsilon",
    "test_batchnorm_example_training_mode", "test_clip_example_expanded", "test_concat_2d_axis_1",
    "test_convtranspose_group_2", "test_einsum_scalar", "test_gathernd_example_int32_batch_dim1",
    "test_gru_defaults", "test_if", "test_instancenorm_epsilon", "test_layer_normalization_2d_axis1",
    "test_lstm_with_peepholes", "test_maxpool_with_argmax_2d_precomputed_pads",
    "test_nonmaxsuppression_limit_output_size", "test_pow_types_float32_int64", "test_reduce_mean_keepdims_example",
    "test_resize_upsample_sizes_nearest", "test_sequence_model1", "test_shape",
    "test_split_variable_parts_2d_opset18", "test_top_k", "test_unique_sorted_with_axis_3d",
    "test_where_long_example",
)  # fmt: skip


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """Return benchmarks/backend_tests.py."""
    spec = importlib.util.spec_from_file_location("backend_tests", ROOT / "benchmarks" / "backend_tests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["backend_tests"] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    yield module
    del sys.modules["backend_tests"]


@pytest.mark.filterwarnings("ignore")
def test_export_gives_what_onnx_expects(script: ModuleType, tmp_path: Path) -> None:
    found = {case.name: script.outcome(case, tmp_path) for case in script.cases() if case.name in NAMES}
    assert set(found) == set(NAMES)
    assert {name: each for name, each in found.items() if each.state != "equal"} == {}


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_computes_something_else_is_found(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(each for each in script.cases() if each.name == "test_batchnorm_epsilon")
    expected = tuple(np.asarray(each) + 0.1 for each in case.expected)
    assert script._difference(case.model.SerializeToString(), case) == ""
    other = script.Case(**{**{key: getattr(case, key) for key in case.__slots__}, "expected": expected})
    assert script._difference(case.model.SerializeToString(), other) == "other outputs"


def test_no_case_of_the_committed_result_is_wrong() -> None:
    counts = json.loads(RESULT.read_text(encoding="utf-8"))["counts"]
    assert set(counts) == {"equal", "refused", "not of ONNX Runtime"}
    assert counts["equal"] > 1400
