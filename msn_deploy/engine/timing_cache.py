"""May this timing cache be used here? It holds measured times of kernels: of one GPU, by one TensorRT."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msn_deploy.core.artifacts import publish, read_sidecar, sha256_of, sidecar_path
from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import read_input
from msn_deploy.engine.backends import Backend
from msn_deploy.model.opened import OpenModel

_log = logging.getLogger(__name__)


def use_timing_cache(
    config: Any, backend: Backend, path: Path | None, model: OpenModel, device: str | None
) -> Callable[[], None]:
    """Load a timing cache, or start one; returns what writes it back. TensorRT-RTX has no use for one.

    device: the GPU, as far as known. Raises InputError for a cache of another GPU or TensorRT: it is not overwritten.
    """
    if path is None:
        return lambda: None
    if backend.is_rtx:
        _log.warning("TensorRT-RTX uses no timing cache: %s is left alone.", path)
        return lambda: None
    made_with = {"backend": backend.name, "backend_version": backend.version, "device": device}
    content = b""
    if os.path.lexists(path):
        _check_made_with(path, made_with)
        content = read_input(path, "engine")
    timing = config.create_timing_cache(content)
    if timing is None or not config.set_timing_cache(timing, False):  # False: no cache of another device or version
        raise _mismatch(path, "another GPU or TensorRT", made_with)

    def save() -> None:
        filled = config.get_timing_cache().serialize()
        # Its parent is the last network that it was used for: what went into it before can't be told.
        publish(
            path,
            lambda partial: partial.write_bytes(filled) and None,
            kind="timing-cache",
            parents=[model.as_parent()],
            versions=["tensorrt"],
            facts=made_with,
        )

    return save


def _check_made_with(path: Path, here: dict[str, str | None]) -> None:
    """Compare a cache's sidecar with this machine; without one, TensorRT itself has to tell."""
    if not sidecar_path(path).is_file():
        return
    side = read_sidecar(path)
    if side.sha256 != sha256_of(path):
        return
    before = {key: side.facts.get(key) for key in here}
    if before != here:
        raise _mismatch(path, _title(before), here)


def _mismatch(path: Path, of: str, here: dict[str, str | None]) -> InputError:
    return InputError(
        f"{path} is a timing cache of {of}; here it would be of {_title(here)}.\n"
        "Times of one do not hold for another. Give a `--timing-cache` of its own, or delete that file."
    )


def _title(made_with: dict[str, Any]) -> str:
    return f"{made_with['backend']} {made_with['backend_version']} on {made_with['device'] or 'a GPU unknown'}"
