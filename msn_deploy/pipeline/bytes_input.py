"""`export --uint8-input`: a source whose graph prepares images itself, and which is fed bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Preprocess
from msn_deploy.data.preparation import PRESETS
from msn_deploy.data.preprocess import to_numbers
from msn_deploy.model.feeds import Array, Feeds
from msn_deploy.pipeline.images import preprocess_for
from msn_deploy.pipeline.source import Predict, Source


def with_bytes(made: Source, *, model: str, layout: str | None, colour: str | None) -> Source:
    """Return the source with an input of bytes, which its graph prepares as the network's images are.

    The truth, and every stage before the fold, is the network as it was, fed with numbers that were prepared of the
    bytes outside. layout, colour: of the bytes; None: the layout of the network, and red, green, blue.

    Raises InputError for a network that takes no images, that does not say how they are prepared, or that takes bytes.
    """
    from msn_deploy.graph.bytes_input import take_bytes

    was, given = made.info.preprocess, made.inputs[0]
    if len(made.inputs) != 1:
        raise InputError(f"{model} takes {len(made.inputs)} inputs, and no images.\nLeave out `--uint8-input`.")
    if was is None and not made.info.is_generator:
        raise InputError(
            f"it is not known how images are prepared for {model}, so that its graph can't do it.\n"
            f"Say it: `--preprocess {'|'.join(PRESETS)}`, or --range, --mean, --std, --colour; see "
            "docs/guides/preparation.md."
        )
    was = preprocess_for(made.info, given.spec.shape or (), model=model)
    if given.dtype == "uint8":
        raise InputError(f"{model} takes bytes already.\nLeave out `--uint8-input`.")
    if any(value.name == given.name for value in made.graph.graph.output):
        raise InputError(f"{model} gives its input {given.name} back, as numbers.\nLeave out `--uint8-input`.")
    if was.colour == "grey" and colour is not None:
        raise InputError(f"{model} takes grey images, whose bytes have one colour.\nLeave out `--uint8-colour`.")
    channels = was.channels
    now = replace(
        was,
        mean=(0.0,) * channels,
        std=(1 / 255,) * channels,
        layout=layout or was.layout,
        colour="grey" if was.colour == "grey" else colour or "rgb",
    )
    first, last = (0, 1, 2, 3), (0, 2, 3, 1) if was.layout == "NCHW" else (0, 3, 1, 2)
    order = first if now.layout == was.layout else last

    def fed(predict: Predict) -> Predict:
        def run(feeds: Sequence[Feeds]) -> dict[str, Array]:
            return predict([{given.name: _prepared(each[given.name], was, now, given.dtype)} for each in feeds])

        return run

    taken = replace(
        given,
        dtype="uint8",
        shape=tuple(given.shape[at] for at in order),
        open=tuple(given.open[at] for at in order),
    )
    return replace(
        made,
        graph=take_bytes(made.graph, was, now),
        info=replace(made.info, preprocess=now),
        inputs=(taken,),
        predict=fed(made.predict),
        stages={stage: fed(predict) for stage, predict in made.stages.items()},
        exact=made.exact and fed(made.exact),
        in_graph=was,
    )


def _prepared(taken: Array, was: Preprocess, now: Preprocess, dtype: str) -> Array:
    """Return what the network is fed in place of bytes."""
    pixels = taken if now.layout == "NHWC" else taken.transpose(0, 2, 3, 1)
    if now.colour != was.colour:
        pixels = pixels[..., ::-1]
    return to_numbers(pixels, was, dtype)
