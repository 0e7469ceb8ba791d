"""`bundle --with deepstream`: a configuration of Gst-nvinfer for each engine, its labels, and a pipeline to try.

nvinfer makes y = net-scale-factor * (x - offset) of a pixel's bytes x, with one factor for all channels, and stretches
a frame or puts it on black. What a network wants beyond that is refused. DeepStream 6.0 is the first that has all keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Preprocess
from msn_deploy.engine import BuildOptions
from msn_deploy.model.opened import OpenModel
from msn_deploy.pipeline.images import preprocess_for
from msn_deploy.tasks.task import ending_of

_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
_COLOURS = {"rgb": 0, "bgr": 1, "grey": 2}
_ORDERS = {"NCHW": 0, "NHWC": 1}
_FILTERS = {"nearest": 0, "bilinear": 1, "bicubic": 2}  # NvBufSurfTransform_Inter
_CLASSIFIER, _SEGMENTER, _OTHER = 1, 2, 100  # network-type
_README = """\
Configurations of Gst-nvinfer (DeepStream 6.0 and later) for the engines that ./build.sh builds into engines/. Try one:

    gst-launch-1.0 filesrc location=VIDEO.mp4 ! qtdemux ! h264parse ! nvv4l2decoder ! m.sink_0 \\
        nvstreammux name=m batch-size=1 width=1280 height=720 ! \\
        nvinfer config-file-path=deepstream/{stem}.txt ! nvvideoconvert ! nvdsosd ! fakesink

Where network-type is 100 nvinfer reads no answers: your application reads the outputs from the metadata
(output-tensor-meta, NvDsInferTensorMeta), or sets a parser: parse-bbox-func-name and custom-lib-path.
"""


@dataclass(frozen=True, slots=True)
class _Reading:
    """What nvinfer itself reads of the outputs. why: a comment, where it reads nothing."""

    kind: int
    more: tuple[tuple[str, object], ...] = ()
    why: str = ""


def deepstream_files(models: Sequence[OpenModel], options: BuildOptions) -> dict[str, bytes]:
    """Return the files by their path in the bundle.

    Raises InputError for a model that does not say how images are prepared, or that nvinfer cannot prepare them for.
    """
    files: dict[str, bytes] = {}
    for model in models:
        stem = model.path.stem
        files[f"deepstream/{stem}.txt"] = nvinfer_config(model).encode()
        if model.info is not None and model.info.classes:
            files[f"deepstream/{stem}.labels.txt"] = _labels(model).encode()
    files["deepstream/README.txt"] = _README.format(stem=models[0].path.stem).encode()
    return files


def nvinfer_config(model: OpenModel) -> str:
    """Return nvinfer's configuration for the engine of a model. Raises InputError as `deepstream_files`."""
    given = model.inputs[0]
    prep = preprocess_for(model.info, given.shape or (), model=str(model.path))
    if given.dtype != "float32" or len(model.inputs) > 1:
        raise _refused(model, f"nvinfer feeds one input of float32; {given.name} is {given.dtype}")
    if model.precision not in _MODES:
        raise _refused(model, f"nvinfer has no network-mode for {model.precision.upper()}")
    keys: list[tuple[str, object]] = [
        ("gpu-id", 0),
        ("gie-unique-id", 1),
        ("process-mode", 1),
        ("model-engine-file", f"../engines/{model.path.stem}.engine"),
        ("batch-size", (given.shape or (None,))[0] or 1),
        ("network-mode", _MODES[model.precision]),
        *_numbers(model, prep),
        *_fit(model, prep),
        ("scaling-filter", _FILTERS[prep.interpolation]),
    ]
    reading = _reading(model)
    if model.info is not None and model.info.classes:
        keys.append(("labelfile-path", f"{model.path.stem}.labels.txt"))
    keys += [("network-type", reading.kind), *reading.more, ("output-tensor-meta", 1)]
    notes = [f"# {reading.why}"] * bool(reading.why)
    if prep.fit == "letterbox" and prep.fill:
        notes.append(f"# The network was made for images on grey {prep.fill}; nvinfer puts them on black.")
    return "\n".join(["[property]", *notes, *(f"{key}={value}" for key, value in keys), ""])


def _numbers(model: OpenModel, prep: Preprocess) -> list[tuple[str, object]]:
    """Return what becomes of a pixel's numbers."""
    if max(prep.std) - min(prep.std) > 1e-6 * max(prep.std):
        stds = ", ".join(f"{each:g}" for each in prep.std)
        raise _refused(model, f"nvinfer has one scale factor for all channels; std is {stds}")
    if prep.colour == "grey" and prep.channels == 3:
        raise _refused(model, "nvinfer gives one channel of grey; the network takes grey in three")
    return [
        ("net-scale-factor", f"{1 / (255 * prep.std[0]):.9g}"),
        ("offsets", ";".join(f"{255 * each:.9g}" for each in prep.mean)),
        ("model-color-format", _COLOURS[prep.colour]),
        ("network-input-order", _ORDERS[prep.layout]),
    ]


def _fit(model: OpenModel, prep: Preprocess) -> list[tuple[str, object]]:
    """Return how a frame gets to the network's size."""
    if prep.fit not in ("resize", "letterbox"):
        what = {"crop": "cropped", "pad": "not scaled"}[prep.fit]
        raise _refused(model, f"nvinfer stretches or letterboxes frames; those of the network are {what}")
    boxed = prep.fit == "letterbox"
    keys: list[tuple[str, object]] = [("maintain-aspect-ratio", int(boxed))]
    return keys + [("symmetric-padding", int(prep.align == "centre"))] * boxed


def _reading(model: OpenModel) -> _Reading:
    """Return which answers nvinfer reads by itself: of one output of probabilities."""
    info, shape = model.info, model.outputs[0].shape or ()
    task = info.task if info is not None else ""
    if len(model.outputs) > 1 or task not in ("classification", "segmentation"):
        return _Reading(_OTHER, why=f"nvinfer has no parser for these outputs ({task or 'no task is said'}).")
    reads = info.reading if info is not None else {}
    ending = str(reads.get("ending", ending_of(model.proto)))
    if ending != "softmax":
        return _Reading(_OTHER, why=f"nvinfer reads probabilities of a softmax; the network gives {ending}.")
    if task == "classification":
        return _Reading(_CLASSIFIER, (("classifier-threshold", 0),))
    first = reads.get("layout") != "nhwc" and len(shape) == 4 and shape[1] == len(info.classes if info else ())
    order = ("segmentation-output-order", 0 if first else 1)
    return _Reading(_SEGMENTER, (("segmentation-threshold", 0), order))


def _labels(model: OpenModel) -> str:
    """Return a label file: those of a classifier in one line, separated by semicolons, all others a line each."""
    info = model.info
    assert info is not None
    odd = next((name for name in info.classes if not name.isprintable() or ";" in name or not name), None)
    if odd is not None:
        raise _refused(model, f"nvinfer's label files cannot hold the class {odd!r}")
    if info.task == "classification":
        return ";".join(info.classes) + "\n"
    return "".join(f"{name}\n" for name in info.classes)


def _refused(model: OpenModel, why: str) -> InputError:
    return InputError(f"{model.path}: {why}.\nLeave `--with deepstream` out, or export it in another way.")
