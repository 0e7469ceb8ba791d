"""What is a runner? Named arrays in, named arrays out, whatever the runtime; and batches of images on top of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msn_deploy.core.errors import InputError, did_you_mean

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


class Stateful:
    """A runner that feeds outputs back: a recurrent network whose state is its own business.

    inputs: of the network, without those of the state; outputs: all of them. What it is asked for in between is kept
    until `reset`, which starts again from zeros.

    >>> runner = Stateful(load_runner("vad.onnx"), {"state_out": "state"})
    >>> runner.run({"audio": first}); runner.run({"audio": second})
    """

    def __init__(self, runner: Runner, pairs: Mapping[str, str], *, shapes: Mapping[str, Sequence[int]] | None = None):
        """Take a loaded network.

        Args:
            runner: It is closed with this one.
            pairs: Output -> the input that takes it in the next run.
            shapes: Of the state's inputs at the start, where they leave more than their first size open.

        Raises:
            InputError: There is no such output or input, or the two do not fit each other.
        """
        self.runner, self.pairs, self._shapes = runner, dict(pairs), dict(shapes or {})
        self.name, self.path, self.info, self.batch_range = runner.name, runner.path, runner.info, runner.batch_range
        made, taken = ({spec.name: spec for spec in specs} for specs in (runner.outputs, runner.inputs))
        for output, given in self.pairs.items():
            for name, known, what in ((output, made, "output"), (given, taken, "input")):
                if name not in known:
                    raise InputError(f"{runner.name} has no {what} {name}{did_you_mean(name, list(known))}")
            _check_pair(made[output], taken[given], source=runner.name)
        back = [taken[given] for given in self.pairs.values()]
        if len({spec.name for spec in back}) < len(back):
            raise InputError(
                f"two outputs of {runner.name} would be fed back as one input.\nGive `--state` once for each."
            )
        self._back = tuple(back)
        self.inputs = tuple(spec for spec in runner.inputs if spec not in back)
        self.outputs = runner.outputs
        self._state: dict[str, NDArray[Any]] = {}

    def start(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return zeros for the state's inputs, with as many rows as the first feed has."""
        import numpy as np  # late: importing this module must stay light

        rows = next((len(each) for each in feeds.values() if each.ndim), 1)
        zeros = {}
        for spec in self._back:
            known = [rows if at == 0 and size is None else size for at, size in enumerate(spec.shape or ())]
            shape = self._shapes.get(spec.name, [size for size in known if size is not None])
            if not fits(shape, spec.shape):
                raise InputError(
                    f"{self.name}: the state {spec.name} takes {sizes_text(spec.shape)}, and starts as "
                    f"{sizes_text(shape)}.\nGive its sizes: `--shapes {spec.name}=SHAPE`."
                )
            zeros[spec.name] = np.zeros(tuple(shape), spec.dtype)
        return zeros

    def completed(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return what the network itself is fed: the feeds, and the state that it has reached."""
        check_feeds(feeds, self.inputs, name=self.name)
        self._state = self._state or self.start(feeds)
        return {**feeds, **self._state}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See Runner; the state comes from the run before."""
        made = self.runner.run(self.completed(feeds))
        self._state = {given: made[output] for output, given in self.pairs.items()}
        return made

    def reset(self) -> None:
        """Forget the state."""
        self._state = {}

    def close(self) -> None:
        """Free what the runner holds; it cannot run afterwards."""
        self.runner.close()


def parse_state(text: str) -> tuple[str, str]:
    """Read "OUT=IN": an output, and the input that takes it in the next run. Raises InputError."""
    output, equals, given = text.partition("=")
    if not (output and equals and given):
        raise InputError(f"`--state {text}` is not OUT=IN, an output and the input that takes it.")
    return output, given


def _check_pair(made: TensorSpec, taken: TensorSpec, *, source: str) -> None:
    fitting = made.shape is None or taken.shape is None
    if made.shape is not None and taken.shape is not None and len(made.shape) == len(taken.shape):
        fitting = all(None in pair or len(set(pair)) == 1 for pair in zip(made.shape, taken.shape, strict=True))
    if not fitting or made.dtype != taken.dtype:
        raise InputError(
            f"{source} makes {made.name} as {made.dtype} of {sizes_text(made.shape)}; its input {taken.name} takes "
            f"{taken.dtype} of {sizes_text(taken.shape)}.\nCheck `--state {made.name}={taken.name}`."
        )


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
    """Return the only input of a network that maps a batch of images to floats.

    Raises InputError for a network of several inputs, or that is not from floats or bytes.
    """
    if len(runner.inputs) != 1:
        names = ", ".join(spec.name for spec in runner.inputs)
        raise InputError(
            f"{runner.path} has {len(runner.inputs)} inputs ({names}); a network that is fed images has one."
        )
    (given,) = runner.inputs
    if given.dtype not in (*_FLOATS, "uint8") or not given.shape:
        raise InputError(
            f"{runner.path} takes {given.dtype} of {sizes_text(given.shape)}; images are fed as floats or bytes."
        )
    return given


def run_images(runner: Runner, batch: NDArray[Any]) -> NDArray[np.float32]:
    """Map images (N, C, H, W) or (N, H, W, C) to float32 (N, ...), for any N, by a network of one input and one output.

    See `outputs_of_images`. Raises InputError also for a network whose only output is not of floats.
    """
    import numpy as np  # late: importing this module must stay light

    image_input(runner)
    if len(runner.outputs) != 1 or runner.outputs[0].dtype not in _FLOATS:
        made = ", ".join(f"{spec.name} ({spec.dtype})" for spec in runner.outputs) or "none"
        raise InputError(f"{runner.path} has {len(runner.outputs)} outputs ({made}); one of floats is read.")
    (whole,) = outputs_of_images(runner, batch).values()
    return np.asarray(whole, dtype=np.float32)


def outputs_of_images(runner: Runner, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Map images (N, C, H, W) or (N, H, W, C), for any N, to each output, half precision widened.

    The images are float32, or uint8 for a network that takes bytes. More images than one run takes are run in several.
    Where one run takes more, the last image is repeated, and what comes of the repeats is dropped. Raises InputError if
    the images or the network do not fit, or if several runs make what has not a row for each image.
    """
    import numpy as np

    given = image_input(runner)
    check_images(batch, given, name=runner.name)
    least, most = runner.batch_range
    step = most or len(batch)
    made: list[dict[str, NDArray[Any]]] = []
    for start in range(0, len(batch), step):
        part = batch[start : start + step]
        if len(part) < least:
            part = np.concatenate([part, np.repeat(part[-1:], least - len(part), axis=0)])
        outputs = runner.run({given.name: part.astype(given.dtype, copy=False)})
        for output in outputs.values():
            if len(part) != len(batch) and output.shape[:1] != part.shape[:1]:
                raise InputError(f"{runner.path} makes {output.shape} of {len(part)} images; one row for each is read.")
        made.append(outputs)
    whole = {
        name: np.concatenate([each[name] for each in made]) if len(made) > 1 else made[0][name] for name in made[0]
    }
    if len(batch) % step:  # the last run may have been filled up
        whole = {name: array[: len(batch)] for name, array in whole.items()}
    return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in whole.items()}


def check_images(batch: NDArray[Any], given: TensorSpec, *, name: str) -> None:
    """Raise InputError if these are not images for a network of that input, or none at all."""
    input_shape = given.shape or ()
    wanted = "uint8" if given.dtype == "uint8" else "float32"
    if batch.dtype != wanted:
        raise InputError(f"{name} is fed {batch.dtype}; images have to be prepared to {wanted} first.")
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
