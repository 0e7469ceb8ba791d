"""Which range do the activations of a graph take on real images? Every tensor that will be quantised, every image."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from msn_deploy.core.errors import InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.graph.histograms import Histograms, Images, collect
from msn_deploy.graph.placement import place
from msn_deploy.graph.scales import DEFAULT_PERCENTILE, check_method, range_of

MINIMUM_SAMPLES = 16


def calibrate_ranges(
    model: ModelProto,
    images: Images,
    *,
    method: str = "entropy",
    percentile: float = DEFAULT_PERCENTILE,
    tensors: Sequence[str] | None = None,
    progress: Progress = silent,
) -> dict[str, float]:
    """Return the largest magnitude to represent, per tensor that will be quantised, on the given images.

    model: FP32. images: (N, C, H, W), preprocessed, at least MINIMUM_SAMPLES. method, percentile: see `scales`.
    tensors: which; None: `quantised_tensors` of the model. The same images give the same bits, see `collect`.
    Raises InputError for too few images, for values that are not finite and for tensors that are zero on all of them.
    """
    check_method(method, percentile)
    if len(images) < MINIMUM_SAMPLES:
        raise InputError(f"{len(images)} images are too few to calibrate on; at least {MINIMUM_SAMPLES} are needed.")
    found = collect(model, images, quantised_tensors(model) if tensors is None else tensors, progress=progress)
    return ranges_from(found, method=method, percentile=percentile)


def ranges_from(found: Histograms, *, method: str, percentile: float = DEFAULT_PERCENTILE) -> dict[str, float]:
    """Return the range of each tensor, over all images that were counted."""
    return {
        name: range_of(counts, edge, largest, method=method, percentile=percentile)
        for name, (counts, edge, largest) in sorted(found.first(groups=None).items())
    }


def quantised_tensors(model: ModelProto) -> list[str]:
    """Return the names of the activations that `quantize` gives a Q/DQ pair."""
    return list(place(model).tensors)
