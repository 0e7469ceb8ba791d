"""Weights of others: the state dict in a file that someone else's program wrote, fitted to a network by its names.

Nothing here unpickles: a file of torch.save is read with `weights_only=True`. Nothing is guessed either: what is taken
out of a checkpoint, and every prefix of its names that is left off, has to leave exactly what the network holds.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import torch
from torch import Tensor, nn

from msn_deploy.core.artifacts import Parent, sha256_of
from msn_deploy.core.errors import InputError, shorten
from msn_deploy.core.model_info import METADATA_KEY, Preprocess, info_from_json
from msn_deploy.core.opening import open_entry, open_input, open_zip, up_to
from msn_deploy.nets.blocks import classifier_of
from msn_deploy.training.checkpoint import fill, listed, read_tensors

_LOG = logging.getLogger(__name__)
_ALONE = "Save the weights alone where it was made: torch.save(net.state_dict(), 'weights.pt')"
_HARMLESS: dict[str, Callable[..., object]] = {  # the options that many trainings save: plain values
    "argparse.Namespace": argparse.Namespace,
    "pathlib.PosixPath": PurePosixPath,
    "pathlib.WindowsPath": PureWindowsPath,
    "pathlib._local.PosixPath": PurePosixPath,
    "pathlib._local.WindowsPath": PureWindowsPath,
}
_COMPILED = "_orig_mod."  # what torch.compile puts before the names of the module that it wraps
_GROWING = (b"builtin__\nbytearray\n", b"builtins\nbytearray\n")  # as pickles name it
_COUNTER = "num_batches_tracked"  # of a BatchNorm; files from before torch 0.4.1 have none, and inference reads none

# What torch's restricted unpickler raises on bytes that are no state dict, or only the beginning of one. AttributeError
# and AssertionError are met where single bytes of a file in torch's older format are wrong.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    OSError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class _Part:
    """The tensors of one state dict in a file, or of one prefix in it."""

    place: str
    """Where it is: nothing for the whole file, or keys as Python writes them."""
    tensors: Mapping[str, Tensor]
    """By their names without the prefix."""
    metadata: Mapping[str, object]
    """What torch keeps beside a state dict: the version of every module."""
    prefix: str
    others: tuple[str, ...]
    """The names that do not start with the prefix."""
    compiled: bool
    """Whether the names had the prefix of torch.compile, at any place."""
    kept: bool = False
    """Whether some tensors are the network's own."""

    @property
    def title(self) -> str:
        prefixes = [repr(each) for each in (self.compiled and _COMPILED, self.prefix) if each]
        without = f" without the prefix {' and '.join(prefixes)}" if prefixes else ""
        return f"{self.place or 'the whole file'}{without}" if self.place or prefixes else ""


def load_weights(model: nn.Module, path: Path, *, free: Collection[str] = ()) -> bool:
    """Fill a network with weights from a `.safetensors` file or a checkpoint saved by torch.

    A checkpoint may hold the state dict at any depth (`state_dict`, `model`, `ema`, ...), with a prefix before every
    name (`module.`, `_orig_mod.`, `model.`, ...). What was chosen and left out is logged. Values take the network's
    own type. Raises InputError if no part of the file, or more than one, is this network's.

    free: names that the network keeps its own values of, all of them, if nothing but the first size of some of them
    keeps the file from fitting: a classifier of other classes. Returns whether it did.
    """
    if path.suffix == ".safetensors":
        content: object = read_tensors(path)[0]
    else:
        content = read_pickle(
            path, hint="Save them with: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        )
    own: dict[str, Tensor] = model.state_dict(keep_vars=True)
    parts = [part for place, tensors in _state_dicts(content) for part in _prefixes(place, tensors, own.keys())]
    if not parts:
        raise InputError(f"{path} holds no state dict (names to tensors).\n{_ALONE}")
    fitting = [part for part in parts if _fits(part, own)]
    if not fitting:
        parts = [_without(part, free, own) for part in parts]
        fitting = [part for part in parts if _fits(part, own)]
    if len(fitting) > 1:
        titles = "; ".join(part.title or "the whole file" for part in fitting[:4])
        raise InputError(
            f"{len(fitting)} parts of {path} fit the network: {titles}.\n"
            "Save the one that you mean in a file of its own: torch.save(..., 'weights.pt')"
        )
    # Where none fits, the nearest tells what is wrong; and a module that renames what it is given may yet take it.
    chosen = fitting[0] if fitting else max(parts, key=lambda part: len(part.tensors.keys() & own.keys()))
    source = f"{path} ({chosen.title})" if chosen.title else str(path)
    fill(model, _completed(chosen, own), source, left_out=() if fitting else chosen.others)
    _tell(chosen, own, path)
    return chosen.kept


def start_from(model: nn.Module, weights: Path) -> None:
    """Fill a network with the weights of a file; with another number of classes all but its classifier.

    Raises InputError that names what does not fit.
    """
    name = classifier_of(model)
    own = [each for each in model.state_dict() if each.startswith(f"{name}.")]
    if load_weights(model, weights, free=own):
        classes = model.get_submodule(name).out_features
        _LOG.warning("%s has another number of classes than %d: the classifier starts anew", weights, classes)


def prepared_as(weights: Path | None, measured: Preprocess) -> Preprocess:
    """Return how images are prepared: with the mean and deviation of the checkpoint, if the weights are one of ours.

    What runs in the field prepares them like that. measured: of the training images.
    """
    if weights is None or weights.suffix != ".safetensors":
        return measured
    metadata = read_tensors(weights)[1]
    known = info_from_json(metadata[METADATA_KEY], source=str(weights)).preprocess if METADATA_KEY in metadata else None
    if known is None or known.channels != measured.channels:
        return measured
    return replace(measured, mean=known.mean, std=known.std)


def weights_parent(weights: Path, out: Path) -> Parent:
    """Describe the weights as a parent of what is written to `out`, from where their path starts.

    The name alone would be that of the new checkpoint as well.
    """
    return Parent(role="weights", file=os.path.relpath(weights, out), sha256=sha256_of(weights))


def read_pickle(path: Path, *, hint: str) -> object:
    """Read what torch.save wrote, on the CPU, tensors and plain values only: nothing else is built, no code is run.

    hint: the last lines of the InputError that is raised for every file which can't be read like that, unless objects
    of other classes are why.
    """
    harmless: list[Any] = [(each, name) for name, each in _HARMLESS.items()]
    with open_input(path, "weights") as stream:
        _refuse_what_grows(stream, path)
        try:
            with (
                warnings.catch_warnings(),
                torch.serialization.safe_globals(harmless),
            ):
                warnings.simplefilter("ignore")  # about the pickle protocol of what is no pickle at all
                content: object = torch.load(stream, map_location="cpu", weights_only=True)
        except _UNREADABLE as cause:
            objects = _objects_in(path, cause)
            if objects:
                raise InputError(f"{path} is not a file of plain weights: it holds {objects}.\n{_ALONE}") from cause
            raise InputError(f"{path} is not a file of plain weights ({_said(cause)}).\n{hint}") from cause
    return content


def _refuse_what_grows(stream: IO[bytes], path: Path) -> None:
    """Raise InputError for a file that says by itself how much memory it takes, whatever its own size.

    That is an archive that unpacks to very much, and a bytearray, which is made of a number alone.
    """
    with ExitStack() as stack:
        pickles = [stream]
        if zipfile.is_zipfile(stream):
            archive = stack.enter_context(open_zip(stream, source=path, kind="weights"))
            names = [name for name in archive.namelist() if name.endswith(".pkl")]
            pickles = [stack.enter_context(open_entry(archive, name, source=path)) for name in names]
        stream.seek(0)
        for each in pickles:
            tail = bytearray()
            while block := up_to(each, 1 << 20, source=path):
                if any(name in tail + block for name in _GROWING):
                    raise InputError(f"{path} is not a file of plain weights: it makes a bytearray.\n{_ALONE}")
                tail = block[-32:]
    stream.seek(0)


def _state_dicts(content: object) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield every mapping of names to tensors in a checkpoint, and where it is, from the outside in."""
    waiting, seen = [("", content)], set()
    while waiting:
        place, value = waiting.pop(0)
        if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        items = [*(value.items() if isinstance(value, Mapping) else enumerate(value))]
        if isinstance(value, Mapping) and any(
            isinstance(name, str) and isinstance(each, Tensor) for name, each in items
        ):
            yield place, value
        waiting += [(f"{place}[{key!r}]", each) for key, each in items]


def _prefixes(place: str, content: Mapping[str, Tensor], own: Iterable[str]) -> Iterator[_Part]:
    """Yield the state dict as it is, and without each prefix that leaves names of the network's own."""
    own = set(own)
    metadata = getattr(content, "_metadata", None) or {}
    names = {name: name for name, value in content.items() if _is_entry(name, value)}
    plain = {name.replace(_COMPILED, ""): name for name in names}
    compiled = len(plain) == len(names) and plain.keys() != names.keys() and not any(_COMPILED in name for name in own)
    if compiled:
        names, metadata = plain, {name.replace(_COMPILED, ""): each for name, each in metadata.items()}
    found = Counter(name[:at] for name in names for at in _starts(name) if name[at:] in own)
    most = max(found.values(), default=0)
    for prefix in dict.fromkeys(("", *(prefix for prefix, count in found.items() if 2 * count >= most))):
        cut = len(prefix)
        yield _Part(
            place,
            {name[cut:]: content[full] for name, full in names.items() if name.startswith(prefix)},
            {f"{at}."[cut:-1]: each for at, each in metadata.items() if f"{at}.".startswith(prefix)},
            prefix,
            tuple(name for name in names if not name.startswith(prefix)),
            compiled,
        )


def _is_entry(name: object, value: object) -> bool:
    return isinstance(name, str) and (isinstance(value, Tensor) or name.endswith("_extra_state"))


def _starts(name: str) -> Iterator[int]:
    """Yield where a name may begin within a longer one: at its own beginning, and after every dot."""
    yield 0
    yield from (match.end() for match in re.finditer(r"\.", name))


def _fits(part: _Part, own: Mapping[str, Tensor]) -> bool:
    """Whether the part has every tensor of the network, in its shape, and no other."""
    tensors = _completed(part, own)
    return tensors.keys() == own.keys() and all(
        not isinstance(value, Tensor) or tensors[name].shape == value.shape for name, value in own.items()
    )


def _without(part: _Part, free: Collection[str], own: Mapping[str, Tensor]) -> _Part:
    """Return the part with the network's own values of these names, if it has all of them but for their first size."""
    if any(name not in part.tensors or part.tensors[name].shape[1:] != own[name].shape[1:] for name in free):
        return part
    return replace(part, tensors={**part.tensors, **{name: own[name].detach() for name in free}}, kept=True)


def _completed(part: _Part, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Add what a file may leave out: the second names of tied weights, and the counters of BatchNorm."""
    tensors = OrderedDict(part.tensors)
    same = {id(own[name]): value for name, value in tensors.items() if name in own}
    for name in own.keys() - tensors.keys():
        if id(own[name]) in same:
            tensors[name] = same[id(own[name])]
        elif name.rpartition(".")[2] == _COUNTER:
            tensors[name] = own[name]
    if part.metadata:
        tensors._metadata = part.metadata  # type: ignore[attr-defined]
    return tensors


def _tell(part: _Part, own: Mapping[str, Tensor], path: Path) -> None:
    """Say in one line what of the file was not taken as it is."""
    said = []
    if part.title:
        said.append(f"the weights are {part.title}")
    if part.others:
        said.append(f"left out: {listed(part.others)}")
    types = Counter(
        (value.dtype, own[name].dtype)
        for name, value in part.tensors.items()
        if name in own and value.is_floating_point()
    )
    said += [
        f"{count} tensors are {_type(theirs)}, and {_type(ours)} in the network"
        for (theirs, ours), count in types.items()
        if theirs != ours
    ]
    if said:
        _LOG.warning("%s: %s", path, "; ".join(said))


def _objects_in(path: Path, cause: Exception) -> str:
    """Name the classes in the file that are why it was not read, or return nothing if they are not."""
    if "TorchScript" in str(cause):
        return "a TorchScript program"
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except _UNREADABLE:
        names = _objects_in_older_format(path)
    names = sorted(set(names) - _HARMLESS.keys(), key=lambda name: (name.startswith("torch."), name))
    if not names:
        return ""
    kind = (
        "a pickled torch module" if any(name.startswith("torch.nn.modules.") for name in names) else "pickled objects"
    )
    return f"{kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}), which run code when they are loaded"


def _objects_in_older_format(path: Path) -> list[str]:
    """Name the classes in a whole file as torch wrote them before 1.6: what it is, how it was made, and the content."""
    with path.open("rb") as stream:
        try:
            found = [
                str(argument).replace(" ", ".")
                for _ in range(4)
                for operation, argument, _ in pickletools.genops(stream)
                if operation.name == "GLOBAL"
            ]
        except ValueError:
            return []
    return [name for name in found if not name.startswith(("torch.", "collections.")) or name.startswith("torch.nn.")]


def _said(cause: Exception) -> str:
    """Return what torch says is wrong, without its advice and its colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(cause)).rpartition("WeightsUnpickler error:")[2].strip()
    return shorten(re.split(r"\.\s|\n", text)[0]) or type(cause).__name__


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
