"""What is a runner? Named arrays in, named arrays out, whatever the runtime; and batches of images on top of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msn_deploy.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from msn_deploy.core.model_info import ModelInfo, TensorSpec

PROVIDERS = ("cpu", "cuda", "tensorrt")
_FLOATS = ("float32", "float16")


class Runner(Protocol):
    """A loaded network."""

    name: str
    """Of its file, without the folder."""
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    info: ModelInfo | None
    """What the file says of itself; None if it says nothing."""
    batch_range: tuple[int, int | None]
    """The fewest and the most rows of its first input that one run takes; None: any number."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Map an array for each of `inputs` to one for each of `outputs`, by name, of the types and shapes told there.

        The arrays returned are the caller's. Raises InputError for feeds that do not fit `inputs`.
        """
        ...

    def close(self) -> None:
        """Free what the runner holds; it cannot run afterwards."""
        ...


def check_feeds(feeds: Mapping[str, NDArray[Any]], inputs: Sequence[TensorSpec], *, name: str) -> None:
    """Raise InputError if a runner called `name` is not fed what its inputs take."""
    if not isinstance(feeds, Mapping):
        raise InputError(f"{name} is fed an array without a name.\n`run_images(runner, batch)` takes images.")
    if len(feeds) != len(inputs) or any(spec.name not in feeds for spec in inputs):
        wanted = ", ".join(spec.name for spec in inputs)
        raise InputError(f"{name} takes the inputs {wanted}; it is fed {', '.join(feeds) or 'nothing'}.")
    for spec in inputs:
        array = feeds[spec.name]
        if array.dtype.name != spec.dtype or not fits(array.shape, spec.shape):
            wanted, given = sizes_text(spec.shape), sizes_text(array.shape)
            raise InputError(
                f"{name}: the input {spec.name} takes {spec.dtype} of {wanted}; it is fed {array.dtype} of {given}."
            )


def image_input(runner: Runner) -> TensorSpec:
    """Return the only input of a network that maps a batch of images to one tensor.

    Raises InputError for a network of several inputs or outputs, or of other types than floats.
    """
    if len(runner.inputs) != 1 or len(runner.outputs) != 1:
        named = [", ".join(spec.name for spec in specs) for specs in (runner.inputs, runner.outputs)]
        raise InputError(
            f"{runner.path} has {len(runner.inputs)} inputs ({named[0]}) and {len(runner.outputs)} outputs "
            f"({named[1]}); a network that is fed images has one of each."
        )
    given, made = runner.inputs[0], runner.outputs[0]
    if given.dtype not in _FLOATS or made.dtype not in _FLOATS or not given.shape:
        raise InputError(
            f"{runner.path} maps {given.dtype} of {sizes_text(given.shape)} to {made.dtype}; images in floats to "
            "floats are run."
        )
    return given


def run_images(runner: Runner, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map float32 (N, C, H, W) to float32 (N, ...), for any N, by a network of one input and one output.

    More images than one run takes are run in several. Where one run takes more, the last image is repeated, and what
    comes of the repeats is dropped. Raises InputError if the images or the network do not fit.
    """
    import numpy as np  # late: importing this module must stay light

    given = image_input(runner)
    check_images(batch, given.shape or (), name=runner.name)
    least, most = runner.batch_range
    step = most or len(batch)
    made = []
    for start in range(0, len(batch), step):
        part = batch[start : start + step]
        if len(part) < least:
            part = np.concatenate([part, np.repeat(part[-1:], least - len(part), axis=0)])
        (output,) = runner.run({given.name: part.astype(given.dtype, copy=False)}).values()
        if len(part) != len(batch) and output.shape[:1] != part.shape[:1]:
            raise InputError(f"{runner.path} makes {output.shape} of {len(part)} images; one row for each is read.")
        made.append(output)
    whole = made[0] if len(made) == 1 else np.concatenate(made)
    if len(batch) % step:  # the last run may have been filled up
        whole = whole[: len(batch)]
    return np.asarray(whole, dtype=np.float32)


def check_images(batch: NDArray[np.float32], input_shape: Sequence[int | None], *, name: str) -> None:
    """Raise InputError if these are no images for a network of that input, or none at all."""
    if batch.dtype != "float32":
        raise InputError(f"{name} is fed {batch.dtype}; images have to be prepared to float32 first.")
    if not fits(batch.shape, (None, *input_shape[1:])):
        raise InputError(
            f"model wants {sizes_text(input_shape[1:])} images, the data gives {sizes_text(batch.shape[1:])}; "
            f"{name} was made for other data.\n"
            "Give the data it was trained on, or export it again with a fitting `--input-shape`."
        )
    if len(batch) == 0:
        raise InputError(f"{name} is given no image at all.\nCheck the data folder.")


def sizes_text(shape: Sequence[int | None] | None) -> str:
    """Write a shape, such as "anyx3x32x32"."""
    if shape is None:
        return "any shape"
    return "x".join("any" if size is None else str(size) for size in shape) or "no dimensions"


def fits(shape: Sequence[int], wanted: Sequence[int | None] | None) -> bool:
    """Whether a shape has the sizes that are wanted; None: any."""
    if wanted is None:
        return True
    return len(shape) == len(wanted) and all(size in (None, got) for size, got in zip(wanted, shape, strict=True))
