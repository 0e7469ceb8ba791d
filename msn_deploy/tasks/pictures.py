"""What picture does a network make of a picture, and how near is that to the one that is wanted?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.data.frame import Placement
from msn_deploy.tasks.maps import channels_first, on_image
from msn_deploy.tasks.task import Given, Outputs, Score, check_reading, require_finite, require_no_names, the_output

_RANGES = {"0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0), "0..255": (0.0, 255.0)}
_EQUAL_DB = 100.0  # of equal pictures, whose PSNR is infinite
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03  # Wang et al. 2004, section III
_WHITE = 255.0


@dataclass(frozen=True, slots=True)
class PictureAnswer:
    """A picture, uint8 (H, W, C); C: 1 or 3."""

    pixels: NDArray[np.uint8]

    def text(self) -> str:
        """Return such as "640x480 RGB, mean 101.3"."""
        height, width, channels = self.pixels.shape
        return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}, mean {self.pixels.mean():.1f}"

    def to_json(self) -> dict[str, Any]:
        """Return size, number of channels and their mean, 0 to 255; the picture itself is what `infer --save` saves."""
        height, width, channels = self.pixels.shape
        mean = self.pixels.reshape(-1, channels).mean(0).round(3).tolist()
        return {"width": width, "height": height, "channels": channels, "mean": mean}

    def drawn(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the picture, in place of the image, as (H, W, 3)."""
        return np.broadcast_to(self.pixels, (*self.pixels.shape[:2], 3)).copy()


class Pictures:
    """A picture for each image: 1 or 3 channels, first or last, at the frame's size or larger by a factor.

    reading: `output`; `range`, what black and white are, 0..1 unless the output is of bytes, -1..1 or 0..255; `colour`,
    rgb, or bgr where the output has its channels in that order; `layout`, nchw or nhwc, where the sizes do not tell it.
    """

    name: TaskName = "image-to-image"

    def __init__(self, given: Given) -> None:
        known = {"output": (), "range": tuple(_RANGES), "colour": ("rgb", "bgr"), "layout": ("nchw", "nhwc")}
        check_reading(given, known)
        require_no_names(given)
        self.classes: tuple[str, ...] = ()
        self._given = given
        self._output, _ = the_output(given)

    def answers(self, outputs: Outputs, placements: Sequence[Placement] | None = None) -> list[PictureAnswer]:
        """Return the picture of each image, rounded to bytes: as the network gives it, or with placements of the
        image's own proportions, without the canvas, black where the frame does not show it.

        Raises InputError for outputs that are not pictures, GateError for numbers that are not finite.
        """
        numbers, reading, model = outputs[self._output], self._given.reading, self._given.model
        wanted = "a picture has 1 or 3 channels"
        maps = channels_first(numbers, reading.get("layout"), (1, 3), model=model, wanted=wanted)
        require_finite(maps, model)
        black, white = _RANGES[reading.get("range", "0..255" if maps.dtype == np.uint8 else "0..1")]
        if reading.get("colour") == "bgr":
            maps = maps[:, ::-1]
        frame = self._given.frame or (maps.shape[-2], maps.shape[-1])
        made = []
        for at, each in enumerate(maps):
            picture = (each.astype(np.float32) - np.float32(black)) * np.float32(_WHITE / (white - black))
            if placements is not None:
                picture = _on_image(picture, placements[at], frame)
            made.append(PictureAnswer(np.rint(picture.clip(0, _WHITE)).astype(np.uint8).transpose(1, 2, 0)))
        return made

    def meter(self) -> SimilarityMeter:
        """Return an empty meter."""
        return SimilarityMeter()


def _on_image(picture: NDArray[np.float32], where: Placement, frame: tuple[int, int]) -> NDArray[Any]:
    """Return a picture (C, h, w) of a frame as one of the image, larger than it by as much as (h, w) than the frame."""
    high, wide = picture.shape[-2:]
    by_y, by_x = high / frame[0], wide / frame[1]
    larger = replace(
        where,
        width_px=round(where.width_px * by_x),
        height_px=round(where.height_px * by_y),
        left=where.left * by_x,
        top=where.top * by_y,
    )
    return on_image(picture, larger, (high, wide), smooth=True, outside=0)


class SimilarityMeter:
    """PSNR in dB, of the bytes of all channels, the mean over the images; equal pictures count as 100 dB.

    ssim: structural similarity with the window and the constants of Wang et al. (IEEE TIP 13, 2004), of each channel,
    where the window lies within the picture; left out where a picture is smaller than that, 11x11 pixels.
    """

    def __init__(self) -> None:
        self._psnr: list[float] = []
        self._ssim: list[float] = []

    def add(self, answers: Sequence[PictureAnswer], labels: Any) -> None:
        """Count pictures; labels: uint8 (N, H, W, C), what is wanted. Raises InputError for another size."""
        for answer, label in zip(answers, np.asarray(labels), strict=True):
            if answer.pixels.shape != label.shape:
                made, wanted = ("x".join(map(str, of)) for of in (answer.pixels.shape, label.shape))
                raise InputError(f"a picture of {made} numbers (height, width, channels) does not fit one of {wanted}.")
            self._psnr.append(psnr_db(answer.pixels, label))
            self._ssim += [ssim(answer.pixels, label)] if min(label.shape[:2]) >= _WINDOW else []

    def score(self) -> Score:
        """Return the PSNR."""
        each = np.array(self._psnr)
        return Score(
            metric="PSNR",
            value=float(each.mean()),
            samples=len(each),
            unit="dB",
            each=each,
            others={"ssim": float(np.mean(self._ssim))} if self._ssim else {},
            unit_of_others="",
        )


def psnr_db(picture: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """Return 10 log10(255^2 / mean squared difference) of two pictures (H, W, C), at most 100."""
    error = float(((picture.astype(np.float64) - wanted) ** 2).mean())
    return min(_EQUAL_DB, 10 * float(np.log10(_WHITE**2 / error))) if error else _EQUAL_DB


def ssim(picture: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """Return the mean structural similarity of two pictures (H, W, C), -1 to 1; H and W: at least 11."""
    x, y = picture.astype(np.float64), wanted.astype(np.float64)
    mean_x, mean_y = _blurred(x), _blurred(y)
    spread_x, spread_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    together = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _WHITE) ** 2, (_K2 * _WHITE) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * together + c2)
    return float((above / ((mean_x**2 + mean_y**2 + c1) * (spread_x + spread_y + c2))).mean())


def _blurred(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (H, W, C) under the Gaussian window, only where it lies within: (H - 10, W - 10, C)."""
    weights = np.exp(-0.5 * ((np.arange(_WINDOW) - _WINDOW // 2) / _SIGMA) ** 2)
    weights /= weights.sum()
    high, wide = (side - _WINDOW + 1 for side in numbers.shape[:2])
    rows = np.zeros((high, *numbers.shape[1:]))
    for at, weight in enumerate(weights):
        rows += weight * numbers[at : at + high]
    both = np.zeros((high, wide, numbers.shape[2]))
    for at, weight in enumerate(weights):
        both += weight * rows[:, at : at + wide]
    return both
