"""`msn_deploy.load`: a model file as a function from a picture to what the network says of it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo, Preprocess
from msn_deploy.data.decode import open_picture
from msn_deploy.data.frame import Placement, placement
from msn_deploy.data.images import fit_image
from msn_deploy.pipeline.evaluate import ImageModel, open_image_model
from msn_deploy.tasks.arrays import Arrays, arrays_of
from msn_deploy.tasks.task import Answer, Outputs


class Model:
    """A loaded model file: prepares a picture, runs the network and reads its outputs, as `msn-deploy infer` does.

    Several threads may call one model at the same time. An engine has one context, so that its runs wait for each
    other; those of ONNX files and checkpoints do not.

    >>> with load("net.int8.onnx") as model:
    ...     answer = model("photo.jpg")
    >>> answer.text(), answer.to_json(), answer.drawn(pixels)
    """

    def __init__(self, model: ImageModel) -> None:
        """Run the network once, which pays for memory. Raises InputError for outputs that are not of its task."""
        self._model, self._task = model, model.task()
        self._running: AbstractContextManager[Any] = Lock() if model.one_at_a_time else nullcontext()
        prep = model.prep
        black = np.zeros((1, prep.height_px, prep.width_px, prep.image_size["channels"]), dtype=np.uint8)
        outputs = model.run(model.prepared(black))
        if self._task is not None:
            self._task.answers({name: np.zeros_like(array) for name, array in outputs.items()}, [self._whole(black[0])])

    @property
    def info(self) -> ModelInfo | None:
        """What the file says of itself."""
        return self._model.info

    @property
    def preprocess(self) -> Preprocess:
        """How pictures are prepared."""
        return self._model.prep

    def __call__(self, image: str | os.PathLike[str] | NDArray[np.uint8] | Image.Image) -> Answer | Arrays:
        """Return what the network says of one picture: an answer of its task, or arrays where it has none.

        Args:
            image: A file, a Pillow image, or uint8 pixels (H, W, 3) in the order red, green, blue, or grey (H, W);
                upright, of any size. OpenCV's frames are blue, green, red: give `frame[..., ::-1]`. What is black and
                white in a file of more than 8 bits is taken from that file; `infer` takes it from all files.

        Raises:
            InputError: A file that cannot be read, or an array of another type or shape.
        """
        pixels, name = self._pixels(image)
        return self.answered(pixels, name=name)[0]

    def answered(self, pixels: NDArray[np.uint8], *, name: str) -> tuple[Answer | Arrays, float]:
        """Return the answer for uint8 pixels (H, W) or (H, W, 3), and the milliseconds of the inference alone.

        name: of the picture, for InputError.
        """
        outputs, latency_ms = self.ran(self.prepared(pixels, name=name))
        return self.read(outputs, pixels), latency_ms

    def prepared(self, pixels: NDArray[np.uint8], *, name: str) -> NDArray[Any]:
        """Return the input that pixels (H, W) or (H, W, 3) make; name: of the picture, for InputError."""
        return self._model.prepared(fit_image(pixels, name=name, **self._model.prep.image_size)[np.newaxis])

    def ran(self, batch: NDArray[Any]) -> tuple[Outputs, float]:
        """Run the network; returns its outputs and how many milliseconds that took."""
        with self._running:
            began = time.perf_counter()
            outputs = self._model.run(batch)
            return outputs, (time.perf_counter() - began) * 1e3

    def read(self, outputs: Outputs, pixels: NDArray[np.uint8]) -> Answer | Arrays:
        """Return what outputs say of the pixels that they were made of."""
        if self._task is None:
            (arrays,) = arrays_of(outputs, 1)
            return arrays
        (answer,) = self._task.answers(outputs, [self._whole(pixels)])
        return answer

    def close(self) -> None:
        """Free what the runtime holds; the model cannot be called afterwards."""
        self._model.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        prep = self._model.prep
        task = (self.info.task if self.info is not None else "") or "no task"
        return f"<Model {self._model.given.model}: {task}, {prep.width_px}x{prep.height_px} {prep.colour}>"

    def _pixels(self, image: str | os.PathLike[str] | NDArray[np.uint8] | Image.Image) -> tuple[NDArray[np.uint8], str]:
        if isinstance(image, Image.Image):
            return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")), "the image"
        if not isinstance(image, np.ndarray):
            return open_picture(Path(image)).to_bytes(), str(image)
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise InputError(
                f"pixels are uint8 of (height, width) or (height, width, 3), not {image.dtype} of {image.shape}."
            )
        return image, "the image"

    def _whole(self, pixels: NDArray[np.uint8]) -> Placement:
        height, width = pixels.shape[:2]
        return placement(width, height, self._model.prep)


def load(
    model: str | os.PathLike[str],
    *,
    threads: int | None = None,
    trust: bool = False,
    plugins: Sequence[str | os.PathLike[str]] = (),
) -> Model:
    """Load a checkpoint, ONNX file or engine that takes images, as a function from a picture to an answer.

    Args:
        model: The file. What is not in it, such as how images are prepared, is given at its export.
        threads: Of one run of an ONNX file or checkpoint; None leaves the choice to the runtime.
        trust: Load an engine from elsewhere, and remember it.
        plugins: Libraries with operators that an engine needs.

    Raises:
        InputError: The file cannot be used, takes no images, or does not say how they are prepared.
        MissingDependency: The runtime is not installed.
        MissingDevice: The GPU is not there.

    Examples:
        >>> import msn_deploy
        >>> with msn_deploy.load("runs/cnn3_msn.int8.onnx") as model:
        ...     answer = model("digit.png")
        >>> answer.to_json()["label"] in "0123456789"
        True
    """
    return Model(open_image_model(Path(model), threads, trust=trust, plugins=[Path(each) for each in plugins]))
