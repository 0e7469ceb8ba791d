"""Folders of images: splits, one folder per class, and files that are the system's rather than data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import Kind, read_input
from msn_deploy.data.decode import SUFFIXES
from msn_deploy.data.images import Raw

SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
"""What the folders of a split are called, in capitals too; the first that is there counts."""
IMAGES = ("images", "image", "imgs", "jpegimages")
"""What a folder of images is called, where there is another for what belongs to them."""
_TEST_EVERY = 5
_SYSTEM = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information")


@dataclass(slots=True)
class Skipped:
    """What of a folder is left out, counted: hidden files and those of macOS, Windows or a NAS; others by suffix."""

    system: int = 0
    others: Counter[str] = field(default_factory=Counter)

    def in_words(self) -> str:
        """Return such as "2 hidden or system files, 3 .txt", or nothing."""
        parts = [f"{self.system} hidden or system file{'s' * (self.system > 1)}"] * bool(self.system)
        parts += [f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(self.others.items())]
        return ", ".join(parts)


def is_system(name: str) -> bool:
    """Whether a file or folder of that name is hidden (`.DS_Store`, `._photo.jpg`), or of a system (`__MACOSX`)."""
    return name.startswith(".") or name.lower() in _SYSTEM


def images_below(folder: Path, skipped: Skipped | None = None) -> list[Path]:
    """Return the image files below a folder in the order of their paths, and count what is left out."""
    skipped = Skipped() if skipped is None else skipped
    found: list[Path] = []
    for where, folders, files in os.walk(folder):
        skipped.system += sum(map(is_system, folders))
        folders[:] = [name for name in folders if not is_system(name)]
        for name in files:
            suffix = Path(name).suffix.lower()
            if is_system(name):
                skipped.system += 1
            elif suffix in SUFFIXES:
                found.append(Path(where, name))
            else:
                skipped.others[suffix] += 1
    return sorted(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFolders:
    """The image files of one split.

    own: whether the split has a folder of its own. files: by class; a class may be empty here if the other split has
    images of it, or if there is no other split. beside: the image files of the other split. empty: folders without
    images, which are not classes.
    """

    own: bool
    files: dict[str, list[Path]]
    beside: list[Path]
    empty: tuple[str, ...]
    skipped: Skipped


def class_folders(folder: Path, split: str) -> ClassFolders:
    """Look for `train/CLASS/`, `Test/CLASS/`, ... or `CLASS/` alone, and for images below.

    Raises InputError for a folder that has the other split alone, or one split twice.
    """
    other = "train" if split == "test" else "test"
    named, others = split_folder(folder, split), split_folder(folder, other)
    if named is None and others is not None:
        raise InputError(f"{folder} has a folder for {other}ing but none called {' or '.join(SPLITS[split])}.")
    skipped = Skipped()
    files = _by_class(named or folder, skipped)
    beside = _by_class(others, Skipped()) if others else {}
    alone = named is not None and others is None  # then its classes are compared with those of a model
    empty = tuple(name for name in files if not (files[name] or beside.get(name) or alone))
    return ClassFolders(
        own=named is not None,
        files={name: paths for name, paths in files.items() if name not in empty},
        beside=[path for paths in beside.values() for path in paths],
        empty=empty,
        skipped=skipped,
    )


def read_class_folders(folder: Path, split: str) -> Raw | None:
    """Read the image files of a split, each with its folder as its class, or None if there are none.

    Without a folder of its own, a split gets every fifth file of a class (the test), or the others.
    Raises InputError as `class_folders`.
    """
    found = class_folders(folder, split)
    chosen = {
        name: paths if found.own else [paths[at] for at in of_split(len(paths), split)]
        for name, paths in found.files.items()
    }
    files = [path for paths in chosen.values() for path in paths]
    if not files:
        return None
    skipped = found.skipped.in_words()
    return Raw(
        images=files,
        labels=np.repeat(np.arange(len(chosen)), [len(paths) for paths in chosen.values()]),
        classes=tuple(chosen),
        beside=found.beside + [path for paths in found.files.values() for path in paths],
        note=f" (left out: {skipped})" if skipped else "",
        warnings=(f"no image in {', '.join(found.empty)}: not taken as a class",) if found.empty else (),
    )


def has_loose_images(folder: Path, split: str) -> bool:
    """Whether there are images in the folder of a split itself, or where there are no splits, in the folder."""
    places = [split_folder(folder, each) for each in (split, *SPLITS)]
    place = places[0] or (None if any(places) else folder)
    return place is not None and any(
        path.suffix.lower() in SUFFIXES and not is_system(path.name) and path.is_file() for path in place.iterdir()
    )


def images_of_split(folder: Path, split: str) -> list[Path]:
    """Return the image files of a split, wherever below a folder they are; every fifth, where it has no splits."""
    named = {each: split_folder(folder, each) for each in SPLITS}
    if any(named.values()):
        of = named[split]
        return [] if of is None else images_below(of)
    files = images_below(folder)
    return [files[at] for at in of_split(len(files), split)]


def of_split(count: int, split: str) -> list[int]:
    """Return which of `count` samples are of a split, where the data have no splits: every fifth is for the test."""
    return [at for at in range(count) if (at % _TEST_EVERY == 0) == (split == "test")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A folder of images and one of what belongs to them, with the same paths below, for one split.

    own: whether the split has folders of its own. besides: the same two folders of the other split, if it has them.
    """

    images: Path
    others: Path
    own: bool
    besides: tuple[Path, Path] | None


def paired_folders(folder: Path, split: str, others: Sequence[str]) -> Paired | None:
    """Look for `images/` beside a folder called one of `others`: of a split inside or outside of them, or of none.

    Raises InputError for folders of the other split alone.
    """
    other_split = "train" if split == "test" else "test"
    found = [_pair_of(folder, each, others) for each in (split, other_split)]
    if found[0] is not None:
        return Paired(images=found[0][0], others=found[0][1], own=True, besides=found[1])
    if found[1] is not None:
        raise InputError(f"{folder} has images for {other_split}ing but none in {' or '.join(SPLITS[split])}.")
    images, beside = _named(folder, IMAGES), _named(folder, others)
    return None if images is None or beside is None else Paired(images=images, others=beside, own=False, besides=None)


def _pair_of(folder: Path, split: str, others: Sequence[str]) -> tuple[Path, Path] | None:
    """Look for train/images/ and train/masks/, or images/train/ and masks/train/."""
    if (inner := split_folder(folder, split)) is not None:
        images, beside = _named(inner, IMAGES), _named(inner, others)
    else:
        outer = _named(folder, IMAGES), _named(folder, others)
        images, beside = (None if each is None else split_folder(each, split) for each in outer)
    return None if images is None or beside is None else (images, beside)


def _named(folder: Path, names: Sequence[str]) -> Path | None:
    there = {path.name.lower(): path for path in sorted(folder.iterdir(), reverse=True) if path.is_dir()}
    return next((there[name] for name in names if name in there), None)


def inside(folder: Path, name: str, *, file: Path) -> Path:
    """Return the path of what a file names, which has to be in that folder, also where links lead.

    Raises InputError that names the file for anything else.
    """
    path = folder / name
    plain = name and not ("\0" in name or "\\" in name or os.path.isabs(name) or ".." in Path(name).parts)
    if not plain or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InputError(f"{file} names {name[:200]!r}, which is not in {folder}.\nOnly what is in there is read.")
    return path


def read_lines(path: Path, kind: Kind = "text") -> list[str]:
    """Return the lines of a text file in UTF-8. Raises InputError."""
    try:
        return str(read_input(path, kind), "utf-8-sig").splitlines()
    except UnicodeDecodeError as cause:
        raise InputError(f"{path} is not a text in UTF-8 (byte {cause.start}).\nSave it as UTF-8.") from cause


def _by_class(root: Path, skipped: Skipped) -> dict[str, list[Path]]:
    files = {}
    for path in sorted(root.iterdir()):
        if is_system(path.name):
            skipped.system += 1
        elif path.is_dir():
            files[path.name] = images_below(path, skipped)
        else:
            skipped.others[path.suffix.lower()] += 1
    return files


def split_folder(folder: Path, split: str) -> Path | None:
    """Return the folder in it that is of a split. Raises InputError for two of one name, such as `Val` and `val`."""
    for wanted in SPLITS[split]:
        found = sorted(path for path in folder.iterdir() if path.name.lower() == wanted and path.is_dir())
        if len(found) > 1:
            raise InputError(f"{folder} has {found[0].name}/ and {found[1].name}/.\nPut their images into one of them.")
        if found:
            return found[0]
    return None
