"""Feeds from files: arrays for the named inputs of any network, where images would not do.

    source = open_feeds("feeds.npz", runner.inputs)      # checked: names, types, shapes; nothing is read yet
    for feeds in source.first(256).runs(most=32):         # {name: array}, as `runner.run` takes it
        runner.run(feeds)

Three forms, none of which may hold pickled objects:

- `NAME.npz`: one array for each input, under its name. The first axis counts the samples: (samples, ...) where the
  input itself has the batch in front (input (1 or any or B, ...)), (samples, *input) for an input that has no batch.
- `NAME.npy`: the same for a network with a single input.
- a folder of `.npz` (or `.npy`) files: each has the same form. An array of exactly the input's fixed sizes, its first
  one above 1, is one sample as a whole.

Files are read from front to back, a sample at a time: memory does not grow with them.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError, size_text
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.core.opening import open_input
from msn_deploy.data.arrays import is_arrays
from msn_deploy.data.npz import Header, archive, array_in, header_of, take

Feeds = Mapping[str, NDArray[Any]]
SUFFIXES = (".npz", ".npy")
ROLE = "data:feeds"
_CHUNK = 32  # images that are decoded and prepared together
_BLOCK = 1 << 20  # bytes that are hashed together


class Samples(Protocol):
    """What a network is measured on, such as a FeedSource: each sample an array for every input, at a batch of 1."""

    @property
    def rows(self) -> Collection[str]:
        """The inputs of which a sample is a row; of the others it is the whole."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Feeds]: ...


@dataclass(frozen=True, slots=True)
class ImageSamples:
    """Images, or whatever has the samples on its first axis, for the only input of a network."""

    name: str
    images: Any

    @property
    def rows(self) -> Collection[str]:
        """Its only input."""
        return (self.name,)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield every image (1, ...), reading a chunk at a time."""
        for start in range(0, len(self), _CHUNK):
            chunk = np.ascontiguousarray(self.images[start : start + _CHUNK])
            for at in range(len(chunk)):
                yield {self.name: chunk[at : at + 1]}


@dataclass(frozen=True, slots=True)
class WholeSamples:
    """Feeds for whole runs, whatever batch the network has."""

    feeds: Sequence[Feeds]
    rows: Collection[str] = ()

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield the feeds."""
        return iter(self.feeds)


def is_feeds(data: str | None) -> bool:
    """Whether `--data` names feeds: a file of SUFFIXES that is not of images with labels, or a folder of such files."""
    if data is None or Path(data).suffix.lower() in SUFFIXES:
        return data is not None and not is_arrays(Path(data))
    return os.path.isdir(data) and bool(_files_in(Path(data)))


@dataclass(frozen=True, kw_only=True)
class FeedSource:
    """Samples for the inputs of one network, in order; `open_feeds` makes it."""

    source: str
    """The file or folder."""
    inputs: tuple[TensorSpec, ...]
    rows: frozenset[str]
    """The inputs whose first axis is the batch; a sample has one row of each, and all of the others."""
    files: tuple[_File, ...] = field(repr=False)
    picked: tuple[int, ...] | None = field(default=None, repr=False)
    """Which samples; None: all."""
    drawn: tuple[Any, ...] = ()
    """How they were picked, for the records."""

    def __len__(self) -> int:
        return sum(file.samples for file in self.files) if self.picked is None else len(self.picked)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield each sample as feeds for a batch of 1. Raises InputError for values that are not finite."""
        wanted = None if self.picked is None else iter((*self.picked, -1))
        at, following = 0, 0 if wanted is None else next(wanted)
        for file in self.files:
            for sample in file.read():
                if at == following:
                    _require_finite(sample, file.path, at)
                    yield sample
                    following = at + 1 if wanted is None else next(wanted)
                at += 1

    def runs(self, *, most: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield feeds for runs of up to `most` samples, as many as the network takes at once.

        A network of a fixed batch gets it, the last sample repeated to fill the last run. One sample at a time goes to
        a network that has an input without a batch, and where samples are of different sizes.
        """
        return runs_of(self, self.inputs, self.rows, most=most)

    def first(self, count: int | None, *, seed: int | None = None) -> FeedSource:
        """Return at most `count` samples (None: all), drawn evenly over the whole, or by a seed."""
        total = len(self)
        if count is None or count >= total:
            return self
        if seed is None:
            chosen = np.linspace(0, total - 1, count).round().astype(np.int64)
        else:
            chosen = np.sort(np.random.RandomState(seed).permutation(total)[:count])
        before = range(total) if self.picked is None else self.picked
        drawn = count if seed is None else [count, seed]
        return replace(self, picked=tuple(before[at] for at in chosen.tolist()), drawn=(*self.drawn, drawn))

    def beginning(self, count: int) -> FeedSource:
        """Return the first `count` samples at most, without a gap: of a sequence, in which each follows the last."""
        return replace(self, picked=tuple(range(min(count, len(self)))), drawn=(*self.drawn, f"the first {count}"))

    @property
    def starts(self) -> frozenset[int]:
        """Where a sequence begins: at the first sample of each file. Of `beginning` and of the whole."""
        return frozenset(sum(file.samples for file in self.files[:at]) for at in range(len(self.files)))

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the files, names and bytes: the identity of the data in provenance."""
        return digest_of(self.source)

    def as_parent(self) -> Parent:
        """Describe the files as the parent of what is made from them."""
        return Parent(role=ROLE, file=self.source, sha256=self.digest, read={"first": list(self.drawn)})


def runs_of(
    samples: Iterable[Feeds], inputs: Sequence[TensorSpec], rows: Collection[str], *, most: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield samples as feeds for whole runs: see `FeedSource.runs`. rows: the inputs of which a sample is a row."""
    fixed = next((spec.shape[0] for spec in inputs if spec.name in rows and spec.shape), None)
    step = (fixed or max(most, 1)) if len(rows) == len(inputs) else 1

    def stacked(group: list[Feeds]) -> dict[str, NDArray[Any]]:
        group = group + group[-1:] * ((fixed or 0) - len(group))
        return {
            name: np.concatenate([each[name] for each in group]) if name in rows else each
            for name, each in group[0].items()
        }

    group: list[Feeds] = []
    for sample in samples:
        if group and (len(group) == step or _shapes(sample) != _shapes(group[0])):
            yield stacked(group)
            group = []
        group.append(sample)
    if group:
        yield stacked(group)


def open_feeds(path: str | Path, inputs: Sequence[TensorSpec]) -> FeedSource:
    """Open feeds for the inputs of a network (`runner.inputs`, `model.inputs`), and check all headers.

    Raises InputError (exit 2) for a file that is missing, damaged, or holds objects; for names, types or shapes that
    are not those of the inputs; for arrays that count different numbers of samples.
    """
    folder = os.path.isdir(path)
    found = _files_in(Path(path)) if folder else [Path(path)]
    if not found:
        raise InputError(f"{path} holds no feeds: neither .npz nor .npy files.\n{_how(inputs)}")
    files: list[_File] = []
    for each in found:
        headers = _headers(each, inputs)
        forms = {spec.name: _form_of(spec, headers[spec.name].shape, folder, each) for spec in inputs}
        counts = {name: 1 if form == "whole" else headers[name].shape[0] for name, form in forms.items()}
        if len(set(counts.values())) > 1:
            text = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(f"{each} holds different numbers of samples: {text}.\n{_how(inputs)}")
        if files and files[0].rows != _rows_in(forms):
            raise InputError(f"{each} and {found[0]} do not have the same form.\n{_how(inputs)}")
        files.append(_File(path=each, headers=headers, forms=forms, samples=next(iter(counts.values()))))
    result = FeedSource(source=str(path), inputs=tuple(inputs), rows=files[0].rows, files=tuple(files))
    if not len(result):
        raise InputError(f"{path} holds no sample.\n{_how(inputs)}")
    return result


def digest_of(path: str | Path) -> str:
    """Return the SHA-256 over the names and bytes of the files. Raises InputError where they cannot be read."""
    digest = hashlib.sha256()
    for file in _files_in(Path(path)) if os.path.isdir(path) else [Path(path)]:
        digest.update(f"{file.name}\0".encode())
        with open_input(file, "any") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


_Form = Literal["row", "counted", "whole"]
"""How an array holds samples: each is a row of its first axis, which is the batch of the input; each is one of its
first axis, which the input has not; the array is one sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file of feeds, and how many samples it holds."""

    path: Path
    headers: Mapping[str, Header]
    forms: Mapping[str, _Form]
    samples: int

    @property
    def rows(self) -> frozenset[str]:
        return _rows_in(self.forms)

    def read(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the samples one by one, each read when it is asked for."""
        with ExitStack() as stack:
            parts = {name: self._parts(name, stack) for name in self.headers}
            for _ in range(self.samples):
                yield {name: next(each) for name, each in parts.items()}

    def _parts(self, name: str, stack: ExitStack) -> Iterator[NDArray[Any]]:
        header, form = self.headers[name], self.forms[name]
        stream = array_in(self.path, name, stack, "any")
        header_of(stream, self.path)
        if form == "whole" or header.fortran:  # not laid out sample by sample
            array = take(stream, header.shape, header, self.path)
            yield from [array] if form == "whole" else (np.asarray(each, order="C") for each in _each(array, form))
            return
        shape = (1, *header.shape[1:]) if form == "row" else header.shape[1:]
        for _ in range(self.samples):
            yield take(stream, shape, header, self.path)


def _each(array: NDArray[Any], form: _Form) -> Iterator[NDArray[Any]]:
    return (array[at : at + 1] if form == "row" else array[at] for at in range(len(array)))


def _rows_in(forms: Mapping[str, _Form]) -> frozenset[str]:
    return frozenset(name for name, form in forms.items() if form == "row")


def _form_of(spec: TensorSpec, shape: tuple[int, ...], folder: bool, path: Path) -> _Form:
    """Return how an array holds the samples of an input. Raises InputError where its sizes are not the input's."""
    wanted = spec.shape
    if wanted is None:
        if shape:
            return "row"
    elif len(shape) == len(wanted) and folder and _fits(shape, wanted) and (not wanted or (wanted[0] or 1) > 1):
        return "whole"
    elif wanted and len(shape) == len(wanted) and _fits(shape[1:], wanted[1:]):
        return "row"
    elif len(shape) == len(wanted) + 1 and _fits(shape[1:], wanted):
        return "counted"
    text = "x".join("any" if size is None else str(size) for size in wanted or ()) or "a single number"
    raise InputError(
        f"{path}: {spec.name} is {'x'.join(map(str, shape)) or 'a single number'}; the input takes {text}.\n"
        "The first axis counts the samples, the others are those of the input."
    )


def _headers(path: Path, inputs: Sequence[TensorSpec]) -> dict[str, Header]:
    """Return what the arrays of a file are, by input. Raises InputError where they do not belong to the inputs."""
    names = [spec.name for spec in inputs]
    with ExitStack() as stack:
        if path.suffix.lower() == ".npy":
            if len(inputs) != 1:
                raise InputError(f"{path} is one array, and the network has {len(inputs)} inputs.\n{_how(inputs)}")
            held = names
        else:
            held = [each.removesuffix(".npy") for each in archive(path, stack, "any").namelist()]
        if sorted(held) != sorted(names):
            raise InputError(
                f"{path} holds {', '.join(held) or 'nothing'}; the inputs are {', '.join(names)}.\n{_how(inputs)}"
            )
        found = {}
        for name in names:
            stream = array_in(path, name, stack, "any")
            found[name] = header_of(stream, path)
            if held is names:  # of a .npy file, not of an archive
                _require_end(stream, found[name], path)
    for spec in inputs:
        if found[spec.name].dtype.name != spec.dtype:
            raise InputError(
                f"{path}: {spec.name} is {found[spec.name].dtype.name}; the input takes {spec.dtype}.\n"
                f"Save it with `.astype({spec.dtype!r})`."
            )
    return found


def _require_end(stream: IO[bytes], header: Header, path: Path) -> None:
    """Raise InputError for a file with more in it than its array: all of it would be hashed, as long as it is."""
    end = stream.tell() + math.prod(header.shape) * header.dtype.itemsize
    more = stream.seek(0, os.SEEK_END) - end
    if more > 0:
        raise InputError(f"{path} holds {size_text(more)} more than its array.\nSave it again with numpy.save.")


def _files_in(folder: Path) -> list[Path]:
    """Return the files of feeds in a folder, of the first of SUFFIXES that it has."""
    for suffix in SUFFIXES:
        if found := sorted(path for path in folder.iterdir() if path.suffix.lower() == suffix):
            return found
    return []


def _how(inputs: Sequence[TensorSpec]) -> str:
    names = ", ".join(f"{spec.name}=..." for spec in inputs[:4]) + (", ..." if len(inputs) > 4 else "")
    return f"Save them with numpy.savez(FILE, {names}); the first axis counts the samples."


def _require_finite(sample: Feeds, path: Path, at: int) -> None:
    for name, array in sample.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{path}: sample {at} (counted from 0) of {name} is not finite.")


def _shapes(sample: Feeds) -> list[tuple[int, ...]]:
    return [array.shape for array in sample.values()]


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(size in (None, got) for size, got in zip(wanted, shape, strict=True))
