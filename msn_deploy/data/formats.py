"""Which format are these files of, and does it have labels for this task?

Looked for are, in this order: MNIST's IDX files (`train-images-idx3-ubyte[.gz]`, `t10k-...`), CIFAR-10 in its binary
version, SVHN's cropped digits, maps beside images, COCO's JSON, YOLO's text labels, tables, arrays, and images in
`train/CLASS/` and `test/CLASS/` (or val, valid, validation; in capitals too) or in `CLASS/` alone. Hidden files, those
of systems, and folders without images are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.core.opening import open_input
from msn_deploy.data import arrays, coco, maps, table, yolo
from msn_deploy.data.cifar import read_cifar
from msn_deploy.data.decode import SUFFIXES
from msn_deploy.data.folders import has_loose_images, images_of_split, read_class_folders
from msn_deploy.data.idx import PREFIX, read_idx_folder
from msn_deploy.data.images import Raw, without_labels
from msn_deploy.data.svhn import read_svhn

_OF_CLASSES = (read_idx_folder, read_cifar, read_svhn)


@dataclass(frozen=True, slots=True)
class _Format:
    """A format; `tasks` tells for which tasks a folder or file of it has labels, without reading it all: () of none."""

    called: str
    tasks: Callable[[Path], tuple[TaskName, ...]]
    read: Callable[[Path, str, TaskName | None], Raw]


_FORMATS = (
    _Format("images with maps of them", maps.tasks_of, maps.read_maps),
    _Format("COCO's JSON", lambda source: coco.TASKS if coco.is_coco(source) else (), coco.read_coco),
    _Format("YOLO's text labels", lambda source: yolo.TASKS if yolo.is_yolo(source) else (), yolo.read_yolo),
    _Format("a table", lambda source: table.TASKS if table.is_table(source) else (), table.read_table),
    _Format("arrays", lambda source: arrays.TASKS if arrays.is_arrays(source) else (), arrays.read_arrays),
)


def read_source(source: Path, split: str, task: TaskName | None) -> Raw:
    """Read the "train" or "test" split of a folder or a file, with labels for a task; None: images are enough.

    What has one class for each image is returned whatever the task. Raises InputError where nothing usable is there, or
    a format that has no labels for the task.
    """
    folder = source.is_dir()
    if not folder:
        with open_input(source, "any"):  # a pipe or a device is neither
            pass
    if folder:
        for read in _OF_CLASSES:
            if (raw := read(source, split)) is not None:
                return raw
    found = [(each, tasks) for each in _FORMATS if (tasks := each.tasks(source))]
    for each, tasks in found:
        if task is None or task in tasks:
            return each.read(source, split, task)
    if found:
        offered = dict.fromkeys(name for _, tasks in found for name in tasks)
        raise InputError(
            f"{source} has no labels for {task}: it is {found[0][0].called}, which has them for {', '.join(offered)}.\n"
            f"docs/guides/data.md shows how labels for {task} are laid out."
        )
    if not folder:
        raise InputError(f"{source} is a file of no known format; `--data` takes a folder, .csv, .json, .npz or .yaml.")
    loose = task is None and has_loose_images(source, split)
    raw = None if loose else read_class_folders(source, split)
    if raw is not None:
        return raw
    if loose and (files := images_of_split(source, split)):
        return without_labels(files)
    raise InputError(
        f"{source} holds no {split} data: neither {PREFIX[split]}-images-idx3-ubyte[.gz] nor images in\n"
        f"{split}/CLASS/ or CLASS/ ({', '.join(SUFFIXES[:3])}, ...)."
    )
