"""Where the data sets that are known by name lie, and how they come there.

A name is looked for as a folder in `$MSN_DEPLOY_DATA`, then in the user's cache, then where a package of the
distribution puts it; what is in none of them is downloaded through Hugging Face `datasets`, which keeps it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from msn_deploy.core.errors import InputError
from msn_deploy.core.home import builtin_folder, user_folder
from msn_deploy.core.optional import install
from msn_deploy.data import cifar, svhn
from msn_deploy.data.decode import open_picture
from msn_deploy.data.images import DIGITS, Raw

BUNDLED = ("digits",)
MADE = ("digits-scenes",)
"""Made of the bundled digits when they are wanted."""
_REACHABLE_S = 5.0
_IDX = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, and t10k-... of"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A data set that is published. hub: its id there. files: what to put into its folder. packaged: a folder of it."""

    hub: tuple[str, ...]
    files: str
    packaged: str = ""
    classes: tuple[str, ...] | None = None
    """Where the files say no more than numbers, the hub's names are left out too: the classes must be the same."""


KNOWN = {
    "mnist": Known(hub=("ylecun/mnist",), files=f"{_IDX} MNIST", classes=DIGITS),
    "fashion-mnist": Known(
        hub=("zalando-datasets/fashion_mnist",),
        files=f"{_IDX} github.com/zalandoresearch/fashion-mnist",
        packaged="/usr/share/datasets/fashion-mnist",  # Debian's dataset-fashion-mnist
        classes=DIGITS,
    ),
    "cifar10": Known(hub=("uoft-cs/cifar10",), files=f"the content of {cifar.PUBLISHED}"),
    "svhn": Known(hub=("ufldl-stanford/svhn", "cropped_digits"), files=svhn.PUBLISHED, classes=DIGITS),
}
NAMES = (*BUNDLED, *MADE, *KNOWN)


def folder_of(name: str) -> Path | None:
    """Return the folder of a known name, or None if it is on this machine nowhere."""
    if name in (*BUNDLED, *MADE):
        return builtin_folder("calibration") / BUNDLED[0]
    return next((folder for folder in _places(name) if os.path.isdir(folder)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A data set that is known by name. folder: where it lies, None if it is not on this machine."""

    name: str
    folder: Path | None
    source: str
    """Where its images come from."""


def listed() -> list[Listed]:
    """Return what is known by name, the bundled first."""
    sources = {"digits": "bundled", "digits-scenes": "made of the bundled digits"} | {
        name: f"huggingface.co/datasets/{known.hub[0]}" for name, known in KNOWN.items()
    }
    return [Listed(name=name, folder=folder_of(name), source=source) for name, source in sources.items()]


def download(name: str, split: str) -> Raw:
    """Load a split of a known name from the hub, or from what an earlier download left.

    Raises InputError that says which files to put where, if there is no network, no package or no such data.
    """
    try:
        server = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        offline = not _is_reachable(server)
        if offline:
            os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: without it every file is asked for for 20 s
        import datasets

        datasets.logging.set_verbosity_error()
        loaded = datasets.load_dataset(*KNOWN[name].hub, split=split)
    except (ImportError, OSError, ValueError) as cause:
        first = (str(cause).splitlines() or [type(cause).__name__])[0]
        if offline and not isinstance(cause, ImportError):
            first = f"{server} can't be reached"
        places = [str(folder) for folder in _places(name)]
        own = "" if "MSN_DEPLOY_DATA" in os.environ else f", or into $MSN_DEPLOY_DATA/{name}"
        package = "" if not isinstance(cause, ImportError) else f", or: {install('data')}"
        raise InputError(
            f"{name} is not on this machine ({', '.join(places)}) and can't be downloaded: {first}.\n"
            f"Put these files into one of the folders{own}: {KNOWN[name].files}{package}."
        ) from cause
    return from_hub(loaded, name)


def from_hub(loaded: Any, name: str) -> Raw:
    """Turn a `datasets.Dataset` with one image and one class column into arrays. Raises InputError for another."""
    kinds = {column: type(feature).__name__ for column, feature in loaded.features.items()}
    image = [column for column, kind in kinds.items() if kind == "Image"]
    label = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    if len(image) != 1 or len(label) != 1 or not len(loaded):
        raise InputError(f"{name} on the hub is not one image and one class per row: {kinds}, {len(loaded)} rows.")
    encoded = loaded.cast_column(image[0], type(loaded.features[image[0]])(decode=False))  # not by all of Pillow
    images = np.stack(
        [
            open_picture(Path(each["path"] or f"{name}[{at}]"), content=each["bytes"]).to_bytes()
            for at, each in enumerate(encoded[image[0]])
        ]
    )
    classes = KNOWN[name].classes or tuple(loaded.features[label[0]].names)
    return Raw(images=images, labels=np.asarray(loaded[label[0]], dtype=np.int64), classes=classes)


def _places(name: str) -> Iterator[Path]:
    if own := os.environ.get("MSN_DEPLOY_DATA"):
        yield Path(own) / name
    yield user_folder() / "data" / name
    if KNOWN[name].packaged:
        yield Path(KNOWN[name].packaged)


def _is_reachable(server: str) -> bool:
    address = urlparse(server)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=_REACHABLE_S):
            return True
    except OSError:
        return False
