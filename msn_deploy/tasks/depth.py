"""How far away is each pixel of an image? From a map of depths or their inverse to metres, and how far they are off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.data.frame import Placement
from msn_deploy.tasks.drawing import captioned, enlarged, ramp
from msn_deploy.tasks.maps import bilinear, channels_first, on_image
from msn_deploy.tasks.task import (
    Given,
    Outputs,
    Score,
    check_reading,
    numbers_read,
    require_finite,
    require_no_names,
    the_output,
)

Scale = Literal["metric", "inverse", "relative", "relative-inverse"]
"""What the numbers are. metric: depths. inverse: 1 / depth. relative: depths up to a factor. relative-inverse:
1 / depth but for a factor and a summand, as MiDaS and Depth Anything give it."""
SCALES: tuple[Scale, ...] = get_args(Scale)
_CLOSE = 1.25  # delta1: the larger of the two depths is less than this times the other


@dataclass(frozen=True, slots=True)
class DepthAnswer:
    """What the network gives for each pixel, float (H, W): see Scale; NaN where it did not look."""

    map: NDArray[Any]
    scale: Scale

    def depths(self) -> NDArray[np.float64]:
        """Return depths, or, of a relative scale, what the network gives; infinite where the inverse is not above 0."""
        numbers = self.map.astype(np.float64)
        return _inverted(numbers) if self.scale == "inverse" else numbers

    def text(self) -> str:
        """Return such as "1.2 to 8.4, median 3.1"."""
        low, middle, high = self._range()
        return f"{low:.4g} to {high:.4g}, median {middle:.4g}" + ("" if self._is_metric() else f" ({self.scale})")

    def to_json(self) -> dict[str, Any]:
        """Return the size, what the numbers are, and the least, median and largest of them."""
        low, middle, high = self._range()
        height, width = self.map.shape
        scale = "metric" if self._is_metric() else self.scale
        return {"width": width, "height": height, "scale": scale, "min": low, "median": middle, "max": high}

    def drawn(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the depths in colours in place of the image: the near is yellow, the far dark blue."""
        depths = self.depths()
        far = depths if self.scale == "relative-inverse" else -depths
        seen = np.isfinite(far)
        low, high = (far[seen].min(), far[seen].max()) if seen.any() else (0.0, 0.0)
        share = np.where(seen, far - low, 0.0) / (high - low or 1.0)
        return captioned(enlarged(ramp(share))[0], self.text())

    def _is_metric(self) -> bool:
        return self.scale in ("metric", "inverse")

    def _range(self) -> tuple[float, float, float]:
        depths = self.depths()
        depths = depths[np.isfinite(depths)]
        if not depths.size:
            return 0.0, 0.0, 0.0
        return float(depths.min()), float(np.median(depths)), float(depths.max())


def _inverted(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / x, infinite where x is not above 0, NaN where it is NaN."""
    made = np.where(np.isnan(numbers), np.nan, np.inf)
    return np.divide(1.0, numbers, out=made, where=numbers > 0)


class Depth:
    """A depth for each pixel: one number for each, scaled to the frame (bilinear) where there are fewer.

    reading: `output`; `scale`, see Scale; `max`, the farthest depth that counts, in the labels' unit: pixels that are
    farther away are not measured, and answers beyond it are taken to be that far.
    """

    name: TaskName = "depth"

    def __init__(self, given: Given) -> None:
        check_reading(given, {"output": (), "scale": SCALES, "max": ()})
        require_no_names(given)
        self.classes: tuple[str, ...] = ()
        self._given = given
        self._output, _ = the_output(given)
        self._scale: Scale = given.reading.get("scale", "metric")
        farthest = numbers_read(given, "max", (np.inf,))
        if len(farthest) > 1 or farthest[0] <= 0:
            raise InputError(f"{given.model}: the farthest depth is one number above 0, not {given.reading['max']}.")
        self._farthest = farthest[0]

    def answers(self, outputs: Outputs, placements: Sequence[Placement] | None = None) -> list[DepthAnswer]:
        """Return the map of each image: at the frame's size, or with placements at the image's own.

        Raises InputError for outputs that are not one number for each pixel, GateError for numbers that are not finite.
        """
        numbers = outputs[self._output]
        wanted = "depths are one for each pixel"
        maps = channels_first(numbers, None, (1,), model=self._given.model, wanted=wanted)[:, 0]
        require_finite(maps, self._given.model)
        maps = maps.astype(np.float32, copy=False)
        frame = self._given.frame or (maps.shape[-2], maps.shape[-1])
        made = []
        for at, each in enumerate(maps):
            whole = bilinear(each, frame)
            if placements is not None:
                whole = on_image(whole, placements[at], frame, smooth=True, outside=np.nan)
            made.append(DepthAnswer(whole, self._scale))
        return made

    def meter(self) -> RelativeErrorMeter:
        """Return an empty meter."""
        return RelativeErrorMeter(self._farthest)


class RelativeErrorMeter:
    """AbsRel, the mean of |answer - depth| / depth over the measured pixels of an image, then over the images.

    Measured are labels above 0, not beyond `farthest`. Relative answers are first brought to the labels of their image:
    depths by the ratio of the medians (Zhou et al., CVPR 2017), inverse depths by the factor and summand of least
    squares (Ranftl et al., TPAMI 2022). An answer beyond `farthest` counts as that far; without it, an inverse that is
    not above 0 counts as the farthest label of its image. Others: mae and rmse, and delta1, the share of pixels that
    are off by less than a factor of 1.25 (Eigen et al., NeurIPS 2014), each the mean over the images. Images without a
    measured pixel are left out.
    """

    def __init__(self, farthest: float) -> None:
        self._farthest = farthest
        self._each: list[tuple[float, float, float, float]] = []

    def add(self, answers: Sequence[DepthAnswer], labels: Any) -> None:
        """Count answers; labels: float32 (N, H, W, 1), NaN or 0 where it was not measured."""
        for answer, label in zip(answers, np.asarray(labels, dtype=np.float64), strict=True):
            wanted = label[..., 0]
            if wanted.shape != answer.map.shape:
                raise InputError(f"a map of {answer.map.shape} does not fit labels of {wanted.shape} pixels.")
            measured = np.isfinite(wanted) & (wanted > 0) & (wanted <= self._farthest)
            if measured.any():
                self._each.append(_errors(_aligned(answer, measured, wanted, self._farthest), wanted[measured]))

    def score(self) -> Score:
        """Return AbsRel. Raises InputError where no pixel was measured."""
        if not self._each:
            raise InputError("the labels hold no depth above 0: there is no error of it.")
        each = np.array(self._each)
        absrel, mae, rmse, delta1 = each.mean(0).tolist()
        return Score(
            metric="AbsRel",
            value=absrel,
            samples=len(each),
            unit="",
            higher_is_better=False,
            each=each[:, 0],
            others={"mae": mae, "rmse": rmse, "delta1": delta1},
            unit_of_others="",
        )


def _aligned(
    answer: DepthAnswer, measured: NDArray[np.bool_], wanted: NDArray[np.float64], farthest: float
) -> NDArray[np.float64]:
    """Return the depths at the measured pixels (M,), in the labels' unit."""
    depths, right = answer.depths()[measured], wanted[measured]
    if answer.scale == "relative":
        middle = float(np.median(depths))
        depths = depths * (np.median(right) / middle if middle > 0 else 1.0)
    if answer.scale == "relative-inverse":
        inverse = 1 / right
        about = depths - depths.mean()
        slope = float(about @ inverse / (about @ about)) if about.any() else 0.0
        depths = _inverted(inverse.mean() + slope * about)
    return np.minimum(depths, farthest if np.isfinite(farthest) else np.where(np.isinf(depths), right.max(), np.inf))


def _errors(depths: NDArray[np.float64], right: NDArray[np.float64]) -> tuple[float, float, float, float]:
    off = np.abs(depths - right)
    close = (depths < _CLOSE * right) & (right < _CLOSE * depths)
    return float((off / right).mean()), float(off.mean()), float(np.sqrt((off**2).mean())), float(close.mean())
