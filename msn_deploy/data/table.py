"""Tables: a row per image, with its path and what is right for it; .csv or .tsv.

    train.csv, test.csv     (or val.csv, ...) beside the images
    labels.csv              (or data.csv, metadata.csv, annotations.csv), with a column `split`, or every fifth: test
    FILE.csv                given itself

Columns are separated by commas, semicolons or tabs. Where it is semicolons, a comma in a number is its decimal point.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.data.decode import SUFFIXES
from msn_deploy.data.folders import SPLITS, inside, of_split, read_lines
from msn_deploy.data.images import Raw, without_labels
from msn_deploy.data.maps import DEPTH, checked, reader_of

TASKS: tuple[TaskName, ...] = (
    *("classification", "embedding", "multi-label", "regression"),
    *("segmentation", "depth", "image-to-image"),
)
_SUFFIXES = (".csv", ".tsv")
_WHOLE = ("labels", "data", "metadata", "annotations")
_IMAGE = ("file", "image", "path", "filename", "file_name", "image_path")
_SPLIT = ("split", "set", "subset")
_TEST = SPLITS["test"][:2]  # where there are such rows, those of a validation are for neither split
_CLASS = ("label", "class", "category", "target")
_MAPS = {"segmentation": ("mask",), "image-to-image": ("target", "wanted", "clean")}
_DELIMITERS = ",;\t"
_WHOLE_NUMBER = re.compile(r"[-+]?\d{1,18}")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A file of rows. lines: of the file, in which each row ends. decimal_comma: of numbers."""

    path: Path
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]
    decimal_comma: bool

    def named(self, names: Sequence[str]) -> str | None:
        """Return the column that is called by the first of these names, in whatever letters."""
        small = {name.lower(): name for name in self.columns}
        return next((small[name] for name in names if name in small), None)

    def column(self, name: str) -> list[str]:
        """Return the texts in a column."""
        at = self.place[name]
        return [row[at] for row in self.rows]

    @cached_property
    def place(self) -> dict[str, int]:
        """Where the columns are."""
        return {name: at for at, name in enumerate(self.columns)}

    def full(self, name: str) -> list[str]:
        """Return the texts in a column. Raises InputError for an empty one."""
        texts = self.column(name)
        if "" in texts:
            raise InputError(f"{self.path}, line {self.lines[texts.index('')]} has no {name}.")
        return texts

    def numbers(self, name: str) -> NDArray[np.float64] | None:
        """Return a column as numbers, or None where it holds something else. Raises InputError for gaps in it."""
        texts = [text.replace(",", ".") if self.decimal_comma else text for text in self.column(name)]
        if not all(text == "" or _NUMBER.fullmatch(text) for text in texts):
            return None
        self.full(name)
        numbers = np.asarray([float(text) for text in texts])
        if not np.isfinite(numbers).all():  # such as 1e999
            line = self.lines[int(np.argmin(np.isfinite(numbers)))]
            raise InputError(f"{self.path}, line {line} has a {name[:60]} that is too large for a number.")
        return numbers


def is_table(source: Path) -> bool:
    """Whether a file is a table, or a folder has one that tells of its images."""
    if source.is_file():
        return source.suffix.lower() in _SUFFIXES
    return bool(_files(source))


def read_table(source: Path, split: str, task: TaskName | None) -> Raw:
    """Read the "train" or "test" split. Raises InputError for what is missing, ambiguous, or not in the folder."""
    files = {"": source} if source.is_file() else _files(source)
    if "" not in files and split not in files:
        raise InputError(
            f"{source} has {', '.join(each.name for each in files.values())}, and no table for {split}ing."
        )
    own = _read(files[split] if split in files else files[""])
    others = [made for path in files.values() if path != own.path and (made := _read(path)).columns == own.columns]
    image, splitting = own.named(_IMAGE) or own.columns[0], own.named(_SPLIT)
    chosen = _rows_of(own, split, splitting) if "" in files else list(range(len(own.rows)))
    if not chosen:
        raise InputError(f"{own.path} has no row for the {split} split.")
    every = _paths(own, image)
    images = [every[at] for at in chosen]
    if task is None:
        return without_labels(images)
    beside = every + [path for each in others for path in _paths(each, image)]
    columns = [name for name in own.columns if name not in (image, splitting)]
    if task in ("segmentation", "depth", "image-to-image"):
        name = _map_column(own, columns, task)
        maps = _paths(own, name)
        all_maps = maps + [path for each in others for path in _paths(each, name)]
        read, classes = reader_of(task, all_maps, name, [own.path.parent])
        labels = checked(read, images, [maps[at] for at in chosen])
        return Raw(images=images, labels=labels, classes=classes, task=task, beside=beside)
    if task in ("classification", "embedding"):
        name = _class_column(own, columns)
        values, classes = _classes([own, *others], name)
        kept: tuple[str, ...] = (name,)
        task = "classification"
    else:
        values, classes = _numbers([own, *others], columns, task)
        kept = classes
    left = [name for name in columns if name not in kept]
    warnings = (f"columns that are not of {task}: {', '.join(left)}",) if left else ()
    return Raw(images=images, labels=values[chosen], classes=classes, task=task, beside=beside, warnings=warnings)


def _files(folder: Path) -> dict[str, Path]:
    """Return the tables of a folder by split; "" for one that is of all."""
    there = {path.name.lower(): path for path in sorted(folder.iterdir(), reverse=True) if path.is_file()}

    def first(names: Sequence[str]) -> Path | None:
        return next((there[name + suffix] for name in names for suffix in _SUFFIXES if name + suffix in there), None)

    found = {split: path for split, names in SPLITS.items() if (path := first(names)) is not None}
    whole = first(_WHOLE)
    return found or ({"": whole} if whole is not None else {})


def _read(path: Path) -> _Table:
    lines = read_lines(path)
    head = next(filter(None, lines), "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=head.count)
    try:
        reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
        columns = next(([text.strip() for text in row] for row in reader if any(row)), [])
        rows, ends = list[list[str]](), list[int]()
        for row in filter(any, reader):
            if len(row) != len(columns):
                raise InputError(
                    f"{path}, line {reader.line_num} has {len(row)} fields, the first line {len(columns)}."
                )
            rows.append([text.strip() for text in row])
            ends.append(reader.line_num)
    except csv.Error as cause:
        raise InputError(f"{path} is not a table: {cause} in line {reader.line_num}.") from cause
    if not rows:
        raise InputError(f"{path} has no rows; the first line names the columns, as in `file,label`.")
    if len({name.lower() for name in columns}) < len(columns) or "" in columns:
        raise InputError(f"{path}: its columns need a name of their own each, not {', '.join(columns)[:200]}.")
    if any(name.lower().endswith(SUFFIXES) or _NUMBER.fullmatch(name) for name in columns):
        raise InputError(
            f"{path} begins with {', '.join(columns)[:200]}.\nThe first line has to name the columns: `file,label`."
        )
    return _Table(path=path, columns=columns, rows=rows, lines=ends, decimal_comma=delimiter == ";")


def _rows_of(table: _Table, split: str, splitting: str | None) -> list[int]:
    if splitting is None:
        return of_split(len(table.rows), split)
    told = [text.lower() for text in table.column(splitting)]
    known = {name for names in SPLITS.values() for name in names}
    if unknown := sorted(set(told) - known):
        raise InputError(f"{table.path}: column {splitting} holds {unknown[0]!r}, not {', '.join(sorted(known))}.")
    names = SPLITS[split] if split == "train" or not set(told) & set(_TEST) else _TEST
    return [at for at, text in enumerate(told) if text in names]


def _paths(table: _Table, column: str) -> list[Path]:
    """Return the files that a column names, in the folder of the table, or in images/ there."""
    folder = table.path.parent
    found = []
    for line, text in zip(table.lines, table.column(column), strict=True):
        path = inside(folder, text, file=table.path)
        if not path.is_file() and (folder / "images").is_dir():
            path = inside(folder / "images", text, file=table.path)
        if not path.is_file():
            raise InputError(f"{table.path}, line {line} names {text!r} as {column}, which is not in {folder}.")
        found.append(path)
    return found


def _map_column(table: _Table, columns: Sequence[str], task: TaskName) -> str:
    """Return the column of maps: by its name, or the only one that there is."""
    of_depth, small = task == "depth", {each: each.lower() for each in columns}
    named = [each for each in columns if (DEPTH.fullmatch(small[each]) if of_depth else small[each] in _MAPS[task])]
    if len(named) == 1:
        return named[0]
    if not of_depth and len(columns) == 1:
        return columns[0]
    wanted = "depth_mm, depth_cm, depth_m or depth" if of_depth else " or ".join(_MAPS[task])
    raise InputError(f"{table.path} has the columns {', '.join(columns)}; for {task} one has to be called {wanted}.")


def _class_column(table: _Table, columns: Sequence[str]) -> str:
    name = columns[0] if len(columns) == 1 else table.named(_CLASS)
    if name is None:
        raise InputError(
            f"{table.path} has {', '.join(columns) or 'no column'} beside the images; which is the class?\n"
            f"Call it {' or '.join(_CLASS)}."
        )
    return name


def _classes(tables: Sequence[_Table], name: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return the class of each row of the first table, and the classes of all: whole numbers in order, or texts."""
    words = {text for each in tables for text in each.full(name)}
    whole = all(_WHOLE_NUMBER.fullmatch(text) for text in words)
    classes = tuple(sorted(words, key=lambda text: (int(text), text)) if whole else sorted(words))
    index = {text: at for at, text in enumerate(classes)}
    return np.asarray([index[text] for text in tables[0].column(name)]), classes


def _numbers(tables: Sequence[_Table], columns: Sequence[str], task: TaskName) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return the columns of the first table that hold numbers in all, of multi-label 0 and 1, and their names."""
    kept = {}
    for name in columns:
        values = [each.numbers(name) for each in tables]
        if all(each is not None and (task != "multi-label" or np.isin(each, (0, 1)).all()) for each in values):
            kept[name] = values[0]
    if not kept:
        holds = "0 and 1" if task == "multi-label" else "numbers"
        raise InputError(
            f"{tables[0].path} has {', '.join(columns) or 'no column'} beside the images; none holds {holds} alone."
        )
    numbers = np.stack([np.asarray(each) for each in kept.values()], axis=1)
    return (numbers == 1 if task == "multi-label" else numbers), tuple(kept)
