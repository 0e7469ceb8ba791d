"""Which range do the activations of a graph take on real inputs? Every tensor that will be quantised, every sample."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from onnx import ModelProto

from msn_deploy.core.model_info import DEFAULT_METHOD, DEFAULT_PERCENTILE, Preprocess
from msn_deploy.core.progress import Progress, silent
from msn_deploy.quant.calibration_checks import Images, check_images, examine
from msn_deploy.quant.histograms import LEAST, Histograms, Load, collect, samples_of
from msn_deploy.quant.placement import place
from msn_deploy.quant.scales import check_method, range_of

CALIBRATOR = 3  # to be raised when the same images give other ranges
_LOG = logging.getLogger(__name__)


def calibrate_ranges(
    model: ModelProto,
    images: Images,
    *,
    load: Load,
    method: str = DEFAULT_METHOD,
    percentile: float = DEFAULT_PERCENTILE,
    tensors: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    progress: Progress = silent,
) -> dict[str, float]:
    """Return the largest magnitude to represent, per tensor that will be quantised, on the given images.

    model: FP32. images: (N, C, H, W), preprocessed. load: see `histograms`. method, percentile: see `scales`.
    tensors: which; None: `quantised_tensors` of the model. preprocess: by which the images were prepared.
    The same images give the same bits, see `collect`.
    Raises InputError for images that cannot tell (`check_images`; what is doubtful is logged), and for values that are
    not finite.
    """
    check_method(method, percentile)
    for doubt in check_images(examine(images), preprocess):
        _LOG.warning("%s", doubt)
    wanted = quantised_tensors(model) if tensors is None else tensors
    found = collect(model, samples_of(model, images), wanted, load=load, progress=progress)
    return ranges_from(found, method=method, percentile=percentile)


def ranges_from(found: Histograms, *, method: str, percentile: float = DEFAULT_PERCENTILE) -> dict[str, float]:
    """Return the range of each tensor, over all samples that were counted; 0 for one that is zero on all of them."""
    return {
        name: 0.0 if edge < LEAST else range_of(counts, edge, largest, method=method, percentile=percentile)
        for name, (counts, edge, largest) in sorted(found.first(None).items())
    }


def quantised_tensors(model: ModelProto) -> list[str]:
    """Return the names of the activations that `quantize` gives a Q/DQ pair."""
    return list(place(model).tensors)
