"""`doctor RUN`: which engines of a run folder has an update made stale, and how are they built anew?

A JetPack brings its own TensorRT, which does not load the engines of another release. With another driver alone they
load, but their kernels were timed under the one before. An engine is built anew in a hidden folder next to the old one,
which stays until the new one has run here and agrees with its ONNX file. What a killed run leaves is the old engine,
or the new one, to which the next run brings its sidecar.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msn_deploy.core.artifacts import read_sidecar, sha256_of, sidecar_path
from msn_deploy.core.errors import (
    GateError,
    InputError,
    MissingDependency,
    MissingDevice,
    MsnDeployError,
    first_line,
    shown,
)
from msn_deploy.core.partials import exclusive
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.reader import record
from msn_deploy.engine import BuildOptions, Check, OrtRunner, Plan, Runner, build_engine_file, find_target, runner_of
from msn_deploy.engine.build import choose_site
from msn_deploy.engine.build_options import DEFAULT_BATCH
from msn_deploy.engine.plan import Here, read_plan, what_is_here
from msn_deploy.engine.preflight import check_device, check_fits, preflight, timed_under
from msn_deploy.engine.tensors import parse_shapes, sized_inputs
from msn_deploy.model.feeds import random_feeds
from msn_deploy.model.opened import OpenModel, open_model

_LOG = logging.getLogger(__name__)
# Between the outputs of an engine and of its ONNX file, for random inputs: rounding stays far above, garbage does not.
_LEAST_COSINE = 0.95
_HIDDEN = ".rebuild-"
_LOCK = "lock"
Prove = Callable[[Path, OpenModel, Here], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Engine:
    """An engine of a run folder. check: its line. plan: None if it can't be read, or needs what is not here."""

    path: Path
    check: Check
    plan: Plan | None

    @property
    def onnx(self) -> Path | None:
        """The file that it was built from, if one of that name is next to it."""
        path = None if self.plan is None else self.path.with_name(self.plan.onnx.file or "?")
        return path if path is not None and path.is_file() else None


def look_at_run(run: Path, *, here: Here | None = None) -> list[Check]:
    """Return a line for each engine of a run folder: ok, warning (slower, or not for this machine), problem (stale).

    An engine of another device is not stale, and is never rebuilt. Nothing of TensorRT is loaded. Raises InputError
    for what is not a folder.
    """
    return [each.check for each in _engines(run, here or what_is_here())]


def rebuild_run(
    run: Path, *, here: Here | None = None, prove: Prove | None = None, progress: Progress = silent
) -> list[Check]:
    """Build the stale engines of a run folder anew, with the options of their sidecars, and return a line for each.

    Args:
        run: The folder.
        here: What this machine has; found out if not given.
        prove: Raises if an engine does not run here as its ONNX file does; `prove_engine` if not given.
        progress: Told how far each build is.

    Raises:
        InputError: It is not a folder.
    """
    here = here or what_is_here()
    _finish(run)
    lines = []
    for engine in _engines(run, here):
        check = engine.check
        if check.verdict != "ok" and engine.plan is not None and engine.onnx is not None:
            try:
                _rebuild(engine.path, engine.plan, engine.onnx, here, prove or prove_engine, progress)
            except MsnDeployError as cause:
                found = f"not rebuilt, the old one stays: {_first_line(cause, engine.path)}"
                check = replace(check, verdict="problem", found=found)
            else:
                again = _looked_at(engine.path, check.name, here, run)
                check = replace(again.check, found=f"rebuilt: {again.check.found}")
        lines.append(check)
    return lines


def prove_engine(path: Path, model: OpenModel, here: Here) -> None:
    """Run an engine and the ONNX file that it was built from once, on the same random numbers.

    Raises:
        GateError: They do not agree, or an output is not finite.
        InputError: The engine cannot be loaded here, or sizes that it leaves open are in no sidecar.
        MissingDependency: What runs it is not installed.
        MissingDevice: There is no such GPU here.
    """
    libraries = [Path(each) for each in _texts(read_sidecar(path).config, "plugins")]
    plan = preflight(path, here=here, plugins=libraries)
    runner = runner_of(plan)
    try:
        if libraries:  # ONNX Runtime lacks their operators
            check_agree(runner, runner, shapes=plan.shapes)
            return
        reference = OrtRunner(model)
        try:
            check_agree(runner, reference, shapes=plan.shapes)
        finally:
            reference.close()
    finally:
        runner.close()


def check_agree(runner: Runner, reference: Runner, *, shapes: tuple[str, ...] = ()) -> None:
    """Feed both the same random numbers once. shapes: of inputs with open sizes, as `--shapes` writes them.

    Raises GateError if an output is not finite or points elsewhere, InputError where `shapes` lack an open size.
    """
    import numpy as np

    usual = [replace(each, least=each.best, most=each.best) for each in map(parse_shapes, shapes)]
    specs = sized_inputs(runner.inputs, usual, batch=runner.batch_range[0], source=runner.name)
    feeds = random_feeds(specs, seed=0)
    made, wanted = runner.run(feeds), reference.run(feeds)
    for name, values in made.items():
        ours, theirs = (np.asarray(each, np.float64).ravel() for each in (values, wanted[name]))
        size = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
        alike = size and ours.shape == theirs.shape  # an output may have as many rows as it finds
        cosine = float(ours @ theirs) / size if alike else float(np.array_equal(ours, theirs))
        if not cosine >= _LEAST_COSINE:
            raise GateError(
                f"{runner.name} makes another {name} of random numbers than {reference.name}: cosine {cosine:.4f}, at "
                f"least {_LEAST_COSINE} is expected.\n`msn-deploy eval` tells what either is worth."
            )


def _engines(run: Path, here: Here) -> list[_Engine]:
    if not os.path.isdir(run):
        raise InputError(f"{run} is not a folder.\n`doctor` takes an ONNX file or the output folder of a run.")
    found = sorted(path for path in run.rglob("*.engine") if path.is_file() and not _is_hidden(path, run))
    return [_looked_at(path, path.relative_to(run).as_posix(), here, run) for path in found]


def _is_hidden(path: Path, run: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(run).parts)


def _looked_at(path: Path, name: str, here: Here, run: Path) -> _Engine:
    try:
        plan = read_plan(path)
    except MsnDeployError as cause:
        hint = f"msn-deploy verify {run}"
        return _Engine(path=path, check=_line(name, "problem", _first_line(cause, path), hint), plan=None)
    again = f"msn-deploy doctor {run} --rebuild"
    if not path.with_name(plan.onnx.file or "?").is_file():
        again = f"Copy {plan.onnx.file} next to it, then: {again}"
    plan = replace(plan, data=b"")  # a board has little memory, and builds while this is kept
    try:
        check_device(plan, here)
    except MsnDeployError as cause:  # another machine's: no update has made it so, and it is not replaced
        return _Engine(path=path, check=_line(name, "warning", _first_line(cause, path), plan.rebuild(here)), plan=None)
    try:
        check_fits(plan, here)
    except (MissingDependency, MissingDevice) as cause:
        return _Engine(path=path, check=_line(name, "warning", _first_line(cause, path), plan.rebuild(here)), plan=None)
    except InputError as cause:
        return _Engine(path=path, check=_line(name, "problem", f"stale: {_first_line(cause, path)}", again), plan=plan)
    if other := timed_under(plan, here):
        found = f"loads, but its kernels were timed under {other[0]}, and here is {other[1]}"
        return _Engine(path=path, check=_line(name, "warning", found, again), plan=plan)
    return _Engine(path=path, check=_line(name, "ok", plan.title, ""), plan=plan)


def _finish(run: Path) -> None:
    """Bring a sidecar to its engine, where a run was killed between the two renames of `_rebuild`.

    What else a killed run has left is removed: a folder whose lock nobody holds any more.
    """
    for scratch in list(run.rglob(f"{_HIDDEN}*")) if run.is_dir() else ():
        for engine in scratch.parent.glob("*.engine"):
            moved = scratch / engine.name
            if sidecar_path(moved).is_file() and not moved.exists() and read_sidecar(moved).sha256 == sha256_of(engine):
                os.replace(sidecar_path(moved), sidecar_path(engine))
                shutil.rmtree(scratch)
        with suppress(OSError), (scratch / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(scratch)


def _line(name: str, verdict: Any, found: str, hint: str) -> Check:
    return Check(name=name, verdict=verdict, found=found, hint=hint)


def _first_line(cause: Exception, path: Path) -> str:
    return first_line(cause, limit=400).removeprefix(f"{path} ")


def _rebuild(path: Path, plan: Plan, onnx: Path, here: Here, prove: Prove, progress: Progress) -> None:
    """Build an engine anew next to the old one, prove it, and put it in its place."""
    side = read_sidecar(path)
    options = options_of(side.config, path.parent)
    replicate = side.facts.get("replicate") or 1
    if type(replicate) is not int:
        raise InputError(f"the sidecar's replicate must be a whole number, got {shown(replicate)}.")
    if side.config.get("timing_cache"):
        _LOG.warning("%s is not used: its times are of another TensorRT or driver.", side.config["timing_cache"])
    model = open_model(onnx, step="doctor")
    site = choose_site(options, plan.precision, machine=here.machine)
    with (
        tempfile.TemporaryDirectory(prefix=_HIDDEN, dir=path.parent) as scratch,
        Path(scratch, _LOCK).open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it, however this process ends
        out = Path(scratch, path.name)
        build_engine_file(model, out, options=options, site=site, replicate=replicate, progress=progress)
        prove(out, model, here)
        with exclusive(path.parent):
            for new in (out, sidecar_path(out)):  # between the two the old sidecar calls the engine another one
                os.replace(new, path.with_name(new.name))


def options_of(config: Mapping[str, Any], folder: Path) -> BuildOptions:
    """Return the options that the sidecar of an engine in a folder records, without the timing cache.

    The target is this machine, unless it is a GPU generation that TensorRT-RTX builds for ahead of time. A calibration
    table is looked for in the folder first. Raises InputError for what this version does not know.
    """
    target = find_target(str(config["target"])) if config.get("target") else None
    table = None if config.get("calibration_table") is None else Path(str(config["calibration_table"]))
    if table is not None and (folder / table.name).is_file():
        table = folder / table.name
    plain = {name: config[name] for name in _PLAIN if config.get(name) is not None}
    if plain.get("batch") == DEFAULT_BATCH:
        del plain["batch"]
    return record(
        BuildOptions,
        plain,
        source="the sidecar's options",
        target=None if target is None or target.jetson else target,
        shapes=tuple(parse_shapes(each) for each in _texts(config, "shapes")),
        plugins=tuple(Path(each) for each in _texts(config, "plugins")),
        calibration_table=table,
        timing_cache=None,
    )


def _texts(config: Mapping[str, Any], key: str) -> list[str]:
    """Return the list of texts that a sidecar holds under a key. Raises InputError for anything else."""
    found = config.get(key) or []
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise InputError(f"the sidecar's options: {key} must be a list of texts, got {shown(found)}.")
    return found


_PLAIN = (
    "batch",
    "precision",
    "backend",
    "min_batch",
    "opt_batch",
    "workspace_mib",
    "optimization_level",
    "version_compatible",
    "hardware_compatible",
    "dla",
    "max_dla_fallback",
    "replicates",
)
