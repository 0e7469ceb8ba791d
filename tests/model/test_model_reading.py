"""Weights beside the model are merged; a model reads no file from anywhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.model import reading
from msn_deploy.model.opened import OpenModel, open_model

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)
Write = Callable[..., Path]


@pytest.fixture
def write(tiny: Callable[..., ModelProto], tmp_path: Path) -> Write:
    """Write models/net.onnx, whose weights (48 bytes) are said to lie in `location`; weights.bin lies beside it."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"\xff" * 8 + WEIGHT.tobytes())
    (tmp_path / "secret.bin").write_bytes(b"\xff" * 8 + WEIGHT.tobytes())

    def make(
        location: str = "weights.bin", *, offset: object = 8, kind: int = TensorProto.FLOAT, **more: object
    ) -> Path:
        graph = tiny("MatMul")
        tensor = TensorProto(name="w", data_type=kind, dims=(3, 4), data_location=TensorProto.EXTERNAL)
        for key, value in {"location": location, "offset": offset, **more}.items():
            if value is not None:
                tensor.external_data.add(key=key, value=str(value))
        graph.graph.initializer[0].CopyFrom(tensor)
        path = folder / "net.onnx"
        path.write_bytes(graph.SerializeToString())
        return path

    return make


def _merged(path: Path) -> OpenModel:
    return open_model(path, step="test", merge=True)


def _refused(path: Path, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        _merged(path)
    assert 2 <= len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("length", [48, None])
def test_weights_beside_the_model_are_taken_in(write: Write, tmp_path: Path, length: int | None) -> None:
    path = write(length=length)
    merged = _merged(path)
    (tensor,) = merged.proto.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), WEIGHT)
    assert merged.weight_files == (tmp_path / "models" / "weights.bin",)
    one = tmp_path / "one.onnx"
    one.write_bytes(merged.proto.SerializeToString())
    open_model(one, step="test")
    assert _merged(one).weight_files == ()


def test_from_any_working_directory_and_folder_below(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("deep/weights.bin")
    (path.parent / "deep").mkdir()
    os.rename(path.parent / "weights.bin", path.parent / "deep" / "weights.bin")
    monkeypatch.chdir(path.parent)
    assert _merged(Path("net.onnx")).weight_files == (Path("deep/weights.bin"),)


def test_what_onnx_itself_writes_is_merged(exported: Callable[..., object], tmp_path: Path) -> None:
    graph: ModelProto = exported("cnn3", "msn").graph  # type: ignore[attr-defined]
    whole = graph.SerializeToString(deterministic=True)
    path = tmp_path / "net.onnx"
    onnx.save_model(graph, path, save_as_external_data=True, location="net.data", size_threshold=0)
    merged = _merged(path)
    assert merged.weight_files == (tmp_path / "net.data",)
    before = ModelProto.FromString(whole)
    for old, new in zip(before.graph.initializer, merged.proto.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(old), numpy_helper.to_array(new))


@pytest.mark.parametrize(
    "location", ["../secret.bin", "deep/../../secret.bin", "/etc/passwd", "..", "a\\..\\b", "a\0b"]
)
def test_a_place_outside_the_folder_is_refused(write: Write, location: str) -> None:
    path = write(location)
    _refused(path, "which is not in its own folder")


def test_a_full_path_is_refused_even_into_the_folder(write: Write, tmp_path: Path) -> None:
    _refused(write(str(tmp_path / "models" / "weights.bin")), "not in its own folder")


def test_a_link_that_leaves_the_folder_is_refused_and_one_that_stays_is_not(write: Write, tmp_path: Path) -> None:
    path = write("link.bin")
    link = path.parent / "link.bin"
    link.symlink_to(tmp_path / "secret.bin")
    _refused(path, r"'w' in 'link\.bin', a link that leaves its own folder.*\n.*cp -L")
    link.unlink()
    link.symlink_to("weights.bin")
    assert _merged(path).weight_files == (link,)
    (path.parent / "out").symlink_to(tmp_path)
    _refused(write("out/secret.bin"), "a link that leaves its own folder")


def test_a_model_that_is_a_link_reads_from_where_the_link_lies(write: Write, tmp_path: Path) -> None:
    path = write()
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "net.onnx"
    link.symlink_to(path)
    _refused(link, r"weights\.bin', which does not exist in .*elsewhere")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("gone.bin", "which does not exist"),
        ("", "which is not a plain file"),
        ("folder", "which is not a plain file"),
        ("pipe", "which is not a plain file"),
        ("circle", "which (cannot be read|does not exist)"),
        ("n" * 300, "which cannot be read"),
    ],
)
def test_what_is_no_file_is_refused(write: Write, location: str, said: str) -> None:
    path = write(location)
    (path.parent / "folder").mkdir()
    os.mkfifo(path.parent / "pipe")
    (path.parent / "circle").symlink_to("circle")
    _refused(path, said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"offset": 9}, r"'w' ends at byte 57 of weights\.bin, which has 56 bytes"),
        ({"offset": 2**62}, "ends at byte 4611686018427387952"),
        ({"offset": -8}, "'-8' as its offset"),
        ({"offset": "8e0"}, "'8e0' as its offset"),
        ({"offset": "9" * 400}, "'9{30}' as its offset"),
        ({"length": -1}, "'-1' as its length"),
        ({"length": 44}, r"'w' takes 48 bytes, and 44 are said to be in weights\.bin"),
        ({"kind": TensorProto.DOUBLE}, r"'w' ends at byte 104 of weights\.bin"),
        ({"kind": TensorProto.STRING}, "'w' is of strings"),
        ({"kind": 99}, "element type 99"),
    ],
)
def test_sizes_are_held_against_the_file(write: Write, options: dict[str, object], said: str) -> None:
    _refused(write(**options), said)


@pytest.mark.parametrize("dims", [(2**40, 2**40), (-1, 4)])
def test_dims_are_looked_at_before_the_file(write: Write, dims: tuple[int, int]) -> None:
    path = write()
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[:] = dims
    path.write_bytes(model.SerializeToString())
    _refused(path, r"'w' claims")


def test_two_gib_in_all_are_refused_before_anything_is_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write()
    model = onnx.load(path, load_external_data=False)
    for at in range(3):  # 0.75 GiB each, of one file full of nothing
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(model.graph.initializer[0])
        tensor.name = f"w{at}"
        tensor.dims[:] = [3 << 26]
    path.write_bytes(model.SerializeToString())
    with (path.parent / "weights.bin").open("r+b") as stream:
        stream.truncate(1 << 30)
    monkeypatch.setattr(reading, "open_input", None)  # which reads the other file
    _refused(path, r"net\.onnx has 2\.25 GiB with its weights from other files; .* less than 2 GiB")


def test_merged_weights_are_looked_through_as_any_are(write: Write) -> None:
    _refused(write(offset=0), "'w' hold 2 NaN")
