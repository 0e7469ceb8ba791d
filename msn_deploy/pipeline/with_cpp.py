"""`bundle --with cpp`: a CMake project that runs the engines, and what Python makes of a few images to compare with.

The metadata of each network goes along as JSON in which nothing is left to be told by shapes: which output is what, and
how it is read. C++ executes what is decided here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo, Preprocess
from msn_deploy.data.frame import placement
from msn_deploy.data.images import fit_image
from msn_deploy.data.names import folder_of
from msn_deploy.data.preprocess import to_input
from msn_deploy.data.scenes import read_scenes
from msn_deploy.engine import BuildOptions, OrtRunner
from msn_deploy.engine.runner import image_input, outputs_of_images
from msn_deploy.model.opened import OpenModel
from msn_deploy.pipeline.evaluate import given_of, require_task
from msn_deploy.pipeline.images import preprocess_for
from msn_deploy.tasks import make_task
from msn_deploy.tasks.classification import Classification
from msn_deploy.tasks.detection import Detection
from msn_deploy.tasks.segmentation import Segmentation
from msn_deploy.tasks.task import Task

SOURCES = resources.files("msn_deploy.pipeline") / "cpp"
_SCHEMA = 1  # of the settings; settings.cpp reads it
_TASKS = ("classification", "detection", "segmentation")
_TYPES = ("float32", "float16", "uint8", "int8", "int32", "int64", "bool")
_MOST_BYTES = 1 << 26
_FEW = 4


def cpp_files(models: Sequence[OpenModel], options: BuildOptions) -> dict[str, bytes]:
    """Return the files of the project by their path in the bundle, with settings and checks for each model.

    Raises InputError for a model whose file does not say its task or how images are prepared, and for a task that the
    project does not read.
    """
    files = {f"cpp/{each.name}": each.read_bytes() for each in SOURCES.iterdir() if each.is_file()}
    for model in models:
        network = Network(model)
        try:
            stem = model.path.stem
            files[f"cpp/models/{stem}.json"] = _text(network.settings())
            for name, content in recorded(network, stem, check_images(network.prep)).items():
                files[f"cpp/check/{name}"] = content
        finally:
            network.close()
    return files


class Network:
    """A model with its task, loaded once. Raises InputError as `cpp_files`."""

    def __init__(self, model: OpenModel) -> None:
        self.model, self.info = model, model.info
        name = require_task(self.info, model=str(model.path))
        if name not in _TASKS:
            raise InputError(
                f"{model.path} is for {name}; `--with cpp` reads {', '.join(_TASKS)}.\nLeave `--with cpp` out."
            )
        assert isinstance(self.info, ModelInfo)
        self._runner = OrtRunner(model, threads=1)
        self.input = image_input(self._runner)
        self.prep = preprocess_for(self.info, self.input.shape or (), model=str(model.path))
        given = given_of(str(model.path), self.info, self._runner.outputs, model)
        self.task: Task = make_task(name, given)
        self.name = name

    def settings(self) -> dict[str, Any]:
        """Return what settings.cpp reads."""
        assert self.info is not None
        return {
            "schema": _SCHEMA,
            "onnx": {"file": self.model.path.name, "sha256": self.model.sha256},
            "input": {"name": self.input.name, "dtype": self.input.dtype},
            "prepare": asdict(self.prep),
            "task": self.name,
            "classes": list(self.info.classes),
            "reading": reading_of(self.task),
        }

    def made_of(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[Any], dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the input for one picture (H, W) or (H, W, 3), the outputs for it, and the answer as JSON has it."""
        fitted = fit_image(pixels, name="a picture", **self.prep.image_size)[np.newaxis]
        batch = to_input(fitted, self.prep, "uint8" if self.input.dtype == "uint8" else "float32")
        outputs = dict(outputs_of_images(self._runner, batch))
        height, width = pixels.shape[:2]
        (answer,) = self.task.answers(outputs, [placement(width, height, self.prep)])
        return batch.astype(self.input.dtype, copy=False), outputs, answer.to_json()

    def close(self) -> None:
        self._runner.close()


def reading_of(task: Task) -> dict[str, Any]:
    """Return how outputs are read, with nothing left open."""
    if isinstance(task, Classification):
        return {"output": task.output, "ending": task.ending}
    if isinstance(task, Segmentation):
        return {"output": task.output, "ending": task.ending, "layout": task.layout, "threshold": task.threshold}
    assert isinstance(task, Detection)
    reader, way = task.reader, task.reader.way
    return {
        "decode": reader.head.decode.__name__,
        "of_all": reader.head.of_all,
        "outputs": dict(reader.outputs),
        "score": way.score,
        "show": reader.show,
        "max": reader.most,
        "iou": reader.overlap,
        "format": way.form,
        "units": way.units,
        "background": way.background,
        "per_box": way.per_box,
        "ending": way.ending,
        "stride": way.stride,
    }


def check_images(prep: Preprocess) -> list[NDArray[np.uint8]]:
    """Return pictures of several shapes, as large as a canvas without scaling lets them be, one of them in grey."""
    folder = folder_of("digits-scenes")
    assert folder is not None
    scenes = read_scenes(folder, "test", None).images[:_FEW]
    sizes = ((96, 96), (64, 96), (96, 56), (80, 72))
    pictures = [np.asarray(scene)[:high, :wide] for scene, (high, wide) in zip(scenes, sizes, strict=True)]
    pictures[-1] = pictures[-1][..., 1]
    if prep.fit == "pad":
        pictures = [each[: prep.height_px, : prep.width_px] for each in pictures]
    return pictures


def recorded(
    network: Network, stem: str, pictures: Sequence[NDArray[np.uint8]], *, most_bytes: int = _MOST_BYTES
) -> dict[str, bytes]:
    """Return NAME.json, the outputs in NAME.bin and the pictures in NAME/, as check.cpp reads them.

    most_bytes: of outputs; one picture is recorded whatever it takes.
    """
    files: dict[str, bytes] = {}
    numbers, entries = bytearray(), list[dict[str, Any]]()
    for at, pixels in enumerate(pictures):
        if numbers and len(numbers) * (at + 1) // at > most_bytes:
            break
        batch, outputs, answer = network.made_of(pixels)
        name = f"{stem}/{at}.{'pgm' if pixels.ndim == 2 else 'ppm'}"
        files[name] = netpbm(pixels)
        entries.append(
            {
                "image": name,
                "input": hashlib.sha256(batch.tobytes()).hexdigest(),
                "outputs": list(_appended(numbers, outputs, network.model.path)),
                "answer": answer,
            }
        )
    return files | {f"{stem}.bin": bytes(numbers), f"{stem}.json": _text({"outputs": f"{stem}.bin", "images": entries})}


def _appended(numbers: bytearray, outputs: dict[str, NDArray[Any]], path: Path) -> Iterator[dict[str, Any]]:
    """Append arrays to a file's content; yield where each lies."""
    for name, array in outputs.items():
        if array.dtype.name not in _TYPES:
            raise InputError(
                f"{path} gives {name} as {array.dtype}; `--with cpp` reads {', '.join(_TYPES)}.\n"
                "Leave `--with cpp` out."
            )
        yield {"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "at": len(numbers)}
        numbers += np.ascontiguousarray(array).tobytes()


def netpbm(pixels: NDArray[np.uint8]) -> bytes:
    """Return an image (H, W) or (H, W, 3) as a PGM or PPM file."""
    height, width = pixels.shape[:2]
    return f"P{5 if pixels.ndim == 2 else 6} {width} {height} 255\n".encode() + np.ascontiguousarray(pixels).tobytes()


def _text(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, allow_nan=False) + "\n").encode()
