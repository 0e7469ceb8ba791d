"""The ranges of a model's activations: from the cache where everything is the same, else measured and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from msn_deploy.core.optional import version_of
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data.preprocess import PreparedImages
from msn_deploy.pipeline.calibration_cache import look_up, store

if TYPE_CHECKING:
    from onnx import ModelProto

    from msn_deploy.quant.sufficiency import Drift


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Largest magnitude to represent per tensor; the drift with fewer images, if asked for; what the cache said."""

    values: dict[str, float]
    drift: tuple[Drift, ...] = ()
    cache: str = ""


def measured_ranges(
    model: ModelProto,
    images: PreparedImages,
    tensors: Sequence[str],
    *,
    key: Mapping[str, Any],
    method: str,
    percentile: float,
    skip_zero: bool = False,
    sufficiency: bool = False,
    use_cache: bool = True,
    progress: Progress = silent,
) -> Ranges:
    """Return the ranges of the tensors on the images, by a method of `graph.scales`.

    key: the parts "model", "images", "samples" and "preprocessing" of the cache's key; the others are added here.
    skip_zero: leave out tensors that are zero on all images, instead of an InputError. sufficiency: measure the drift.
    """
    from msn_deploy.quant.calibrate import CALIBRATOR, ranges_from
    from msn_deploy.quant.histograms import collect
    from msn_deploy.quant.sufficiency import Drift, drift_curve, shuffled_groups

    parts = {
        **key,
        "method": {"name": method, **({"percentile": percentile} if method == "percentile" else {})},
        "tensors": list(tensors),
        "versions": {"calibrator": CALIBRATOR, **{name: version_of(name) for name in ("onnxruntime", "numpy")}},
    }
    said = ""
    if use_cache:
        found = look_up(parts)
        said = found.said
        if found.entry is not None and (not sufficiency or "drift" in found.entry):
            drift = tuple(Drift(**point) for point in found.entry.get("drift", ())) if sufficiency else ()
            return Ranges(values=found.entry["ranges"], drift=drift, cache=said)
        if found.entry is not None:
            said = "cached scales come without a sufficiency curve: measured again"
    groups = shuffled_groups(len(images)) if sufficiency else None
    histograms = collect(model, images, tensors, groups=groups, progress=progress)
    values = ranges_from(histograms, method=method, percentile=percentile, skip_zero=skip_zero)
    curve: list[Drift] = []
    if sufficiency:
        curve = drift_curve(histograms, values, images=len(images), method=method, percentile=percentile)
    if use_cache:
        kept = {"drift": [asdict(point) for point in curve]} if sufficiency else {}
        store(parts, {"ranges": values, **kept})
    return Ranges(values=values, drift=tuple(curve), cache=said)
