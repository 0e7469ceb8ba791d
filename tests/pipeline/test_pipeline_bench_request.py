"""Which rows a benchmark has, without a file being opened."""

from pathlib import Path

import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.pipeline.bench_request import BenchRequest


def request(*names, **options):
    return BenchRequest(models=[Path(name) for name in names], **options)


def test_the_baseline_comes_first_and_each_file_once():
    asked = request("a.onnx", "b.engine", "a.onnx", baseline=Path("b.engine"))
    assert asked.files == [Path("b.engine"), Path("a.onnx")]
    assert asked.rows() == {"b": (Path("b.engine"), "engine"), "a": (Path("a.onnx"), "cpu")}


def test_rows_go_by_path_where_names_would_be_the_same():
    assert list(request("x/a.onnx", "y/a.onnx").rows()) == ["x/a.onnx", "y/a.onnx"]
    named = request("a.onnx", names={Path("a.onnx"): "ours"}, provider="cuda")
    assert named.rows() == {"ours": (Path("a.onnx"), "cuda")}


def test_replicates_belong_to_the_row_of_the_first():
    asked = request("a.r2.engine", "a.engine", "b.r2.engine")
    assert asked.further_builds() == {Path("a.engine"): [Path("a.r2.engine")]}
    assert list(asked.rows()) == ["a", "b.r2"]


def test_a_checkpoint_has_a_second_row_if_it_is_compiled():
    asked = request("a.safetensors", "a.onnx", compiled=True, provider="cuda")
    assert [provider for _, provider in asked.rows().values()] == ["torch-cuda", "torch-cuda-compile", "cuda"]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"builds": 0}, "0 builds"), ({"cuda_graph": True}, r"--cuda-graph .* b\.onnx is not an engine")],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_opened(options, said):
    with pytest.raises(InputError, match=said):
        request("a.engine", "b.onnx", **options)
    assert request("a.engine", cuda_graph=True).cuda_graph


@pytest.mark.parametrize(
    ("options", "said"), [({"wait": "spin"}, "--wait is for"), ({"mapped": True}, "--mapped is for")]
)
def test_what_is_for_engines_is_refused_without_one(options, said):
    with pytest.raises(InputError, match=f"{said} engines, and none is among the models"):
        request("b.onnx", "c.safetensors", **options)
    request("a.engine", "b.onnx", **options)


def test_mapped_buffers_are_a_row_beside_each_engine_with_the_same_replicates():
    asked = request("a.engine", "a.r2.engine", "b.onnx", mapped=True)
    assert asked.rows() == {
        "a": (Path("a.engine"), "engine"),
        "a mapped": (Path("a.engine"), "engine-mapped"),
        "b": (Path("b.onnx"), "cpu"),
    }
    assert asked.further_builds() == {Path("a.engine"): [Path("a.r2.engine")]}
