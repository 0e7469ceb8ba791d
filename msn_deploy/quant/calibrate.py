"""Which range do the activations of a graph take on real inputs? Every tensor that will be quantised, every sample.

A range trades values that it clips for steps that it makes coarser. What either does to the outputs is decided by all
that comes behind the tensor, so no rule for one tensor knows it: on one network the best method is another's worst.
`chosen` lets INT8 by each of them run on the samples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from onnx import ModelProto

from msn_deploy.core.model_info import AUTO, DEFAULT_PERCENTILE, Preprocess
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data.feeds import Samples
from msn_deploy.quant.calibration_checks import Images, check_images, examine
from msn_deploy.quant.histograms import LEAST, Histograms, Load, SingleSample, collect, samples_of
from msn_deploy.quant.layout import TENSORRT, Layout
from msn_deploy.quant.placement import place
from msn_deploy.quant.quantize import quantize
from msn_deploy.quant.scales import check_method, range_of

CALIBRATOR = 3  # to be raised when the same images give other ranges
CANDIDATES = ("mse", "minmax", "percentile", "entropy")
"""The first wins a tie, as where no output is of floats."""
JUDGED = 64  # samples at most, evenly spread
_MOST_DB = 999.0  # of an output that stays as it is; what is broken has as many below zero
_LOG = logging.getLogger(__name__)


def calibrate_ranges(
    model: ModelProto,
    images: Images,
    *,
    load: Load,
    method: str = "mse",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Ranges, and the method that they are by; sqnr_db: what each candidate kept of the worst output, where asked."""

    ranges: dict[str, float]
    method: str
    sqnr_db: dict[str, float] = field(default_factory=dict)


def chosen(
    model: ModelProto,
    samples: Samples,
    found: Histograms,
    *,
    load: Load,
    method: str = AUTO,
    percentile: float = DEFAULT_PERCENTILE,
    layout: Layout = TENSORRT,
    leave_out: Collection[str] = (),
    progress: Progress = silent,
) -> Choice:
    """Return the ranges by a method; for AUTO, by the one whose INT8 keeps the most of the worst float output.

    found: collected on the samples, of the tensors that get a pair. load: see `histograms`. layout, leave_out: see
    `quantize`. The same samples give the same choice.
    """
    if method != AUTO:
        return Choice(ranges=ranges_from(found, method=method, percentile=percentile), method=method)
    ranges = {name: ranges_from(found, method=name, percentile=percentile) for name in CANDIDATES}
    graphs = {name: quantize(model, each, leave_out=leave_out, layout=layout) for name, each in ranges.items()}
    kept = _sqnr_of(graphs, model, samples, load, progress)
    best = max(CANDIDATES, key=lambda name: kept[name])
    return Choice(ranges=ranges[best], method=best, sqnr_db=kept)


def _sqnr_of(
    graphs: Mapping[str, ModelProto], model: ModelProto, samples: Samples, load: Load, progress: Progress
) -> dict[str, float]:
    """Return what each graph keeps of the float output of `model` that it keeps the least of, dB."""
    outputs = [value.name for value in model.graph.output]
    truth = SingleSample(model, outputs, samples.rows, load)
    networks = {name: SingleSample(graph, outputs, samples.rows, load) for name, graph in graphs.items()}
    power = dict.fromkeys(outputs, 0.0)
    errors = {name: dict.fromkeys(outputs, 0.0) for name in graphs}
    step = math.ceil(len(samples) / JUDGED)
    for at, sample in enumerate(islice(samples, 0, None, step), 1):
        wanted = {name: value for name, value in truth.run(sample).items() if value.dtype.kind == "f"}
        for name, value in wanted.items():
            power[name] += float(np.square(value, dtype=np.float64).sum())
        for method, network in networks.items():
            made = network.run(sample)
            for name, value in wanted.items():
                same = value.shape == made[name].shape
                error = float(np.square(made[name] - value, dtype=np.float64).sum()) if same else math.inf
                errors[method][name] += error if math.isfinite(error) else math.inf
        progress(at, math.ceil(len(samples) / step), "calibrating: methods")
    return {method: min(_decibels(power[name], error) for name, error in of.items()) for method, of in errors.items()}


def _decibels(power: float, error: float) -> float:
    if not error:
        return _MOST_DB
    return max(10 * math.log10(power / error), -_MOST_DB) if power and math.isfinite(error) else -_MOST_DB
