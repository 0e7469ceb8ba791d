"""How is an engine built on the device, from files that were made elsewhere? By a script that takes what is there.

msn-deploy first, then its container, then NVIDIA's trtexec with the options of its release.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from msn_deploy.core.artifacts import publish
from msn_deploy.engine.backends import why_elsewhere
from msn_deploy.engine.build_options import BuildOptions
from msn_deploy.engine.calibration_table import number_of
from msn_deploy.engine.dla import (
    NO_DLA,
    DlaPlan,
    DlaSite,
    check_fallback,
    documented,
    has_dla,
    no_quantised_dla,
    plan_of,
)
from msn_deploy.engine.tensors import check_types, trtexec_shapes, types_in
from msn_deploy.engine.trtexec import ROUTES, lacking, lines_for, options_for, releases_for, weak_route
from msn_deploy.machine.containers import (
    CACHE,
    COPIES,
    GPU_FLAGS,
    GPU_GROUP_FILES,
    IMAGE,
    MOUNTED,
    SEALED,
    docker_run,
)
from msn_deploy.machine.device import TREE_COPY
from msn_deploy.machine.jetpacks import numbers_of
from msn_deploy.machine.targets import Target
from msn_deploy.model.opened import OpenModel

LIBRARY = "device_build.sh"  # how engines are built, for NAME.build.sh and for the build.sh of a bundle
_SCRIPT = """\
#!/bin/sh
# Builds {engine} for {title}, on that device. Written by msn-deploy build-engine.
# Needs {onnx} beside it, and one of: msn-deploy, its container image, trtexec of JetPack.
set -eu
cd -- "$(dirname -- "$0")"
image=${{MSN_DEPLOY_IMAGE:-{image}}}
{values}
{options}
{library}
build_here
"""
# Between these two no release has a DLA, as trtexec writes them.
DLA_RELEASES = " ".join(str(number_of(release)) for release in NO_DLA)
# What the caller of `with_options` decides about msn-deploy, as sh says it.
_DECIDED = (
    '${timing_cache:+--timing-cache "$timing_cache"} ${table:+--calibration-table "$table"} '
    '${many:+--replicates "$many"} --out "$engine"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBuild:
    """A script that builds the engine on its device, and what it does in words.

    why: no plan was built here. commands: with msn-deploy on the device, and in its container; none where its Python is
    too old. trtexec: the line per TensorRT that serves the target and can build it. dla: what will run there by the
    documented limits; the builder on the device has the last word. plugins: libraries that it needs beside it.
    beside: further files that it needs there: the calibration table, and the INT8 file for a DLA that takes Q/DQ nodes.
    """

    script: Path
    target: str
    why: str
    commands: tuple[str, ...]
    trtexec: dict[str, str]
    dla: DlaPlan | None
    plugins: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def write_device_script(
    model: OpenModel,
    out: Path,
    *,
    target: Target,
    precision: str,
    options: BuildOptions,
    quantised: Path | None = None,
) -> DeviceBuild:
    """Write NAME.build.sh, which builds NAME.engine from the ONNX file beside it.

    quantised: the INT8 file, where `model` is the FP32 file for a DLA that takes a calibration table: one of TensorRT
    11.4.1 and later takes it in their place.

    Raises InputError for a network that the target's TensorRT cannot take, or that leaves sizes open which no option
    fixes, GateError if more of it falls back from the DLA than `options` allow.
    """
    newest = max(target.tensorrt, key=numbers_of)
    title = f"TensorRT {newest}, the newest of {target.name},"
    check_types((*model.inputs, *model.outputs), types_in(newest), source=str(model.path), title=title)
    dla = None
    if options.dla is not None:
        limits = DlaSite(target.dla_version, max(filter(has_dla, target.tensorrt), key=numbers_of))
        rows = documented(model, precision=precision, ranges=options.ranges(model), site=limits)
        dla = plan_of(options.dla, rows)
        check_fallback(dla, options.max_dla_fallback)
    onnx, engine = _no_option(model.path.name), _no_option(out.name)
    cache = options.timing_cache.name if options.timing_cache else ""
    values = {
        "title": target.title,
        "name": "engine",
        "onnx": onnx,
        "stem": engine.removesuffix(out.suffix),
        "suffix": out.suffix,
        "precision": precision,
        "replicates": str(options.replicates),
        "timing_cache": cache,
        "table": _no_option(options.calibration_table.name) if options.calibration_table else "",
        "quantised": _no_option(quantised.name) if quantised else "",
        "dla": "" if options.dla is None else str(options.dla),
        "root": "",
        "dla_releases": DLA_RELEASES,
        "docker_options": f"{SEALED} -v {CACHE}",
        "docker_gpus": " ".join(GPU_FLAGS),
        "docker_files": " ".join(MOUNTED),
        "docker_nodes": " ".join(GPU_GROUP_FILES),
        "docker_copies": " ".join(COPIES),
        "docker_copy": TREE_COPY,
    }
    text = _SCRIPT.format(
        title=target.title,
        engine=_one_line(out.name),
        onnx=_one_line(model.path.name),
        image=IMAGE,
        values=assignments(values),
        options=with_options({"engine": (model, precision)}, target=target, options=options),
        library=library_text(),
    )
    script = out.with_name(f"{out.stem}.build.sh")
    publish(
        script,
        os.fsencode(text),  # file names as they are, also where they are not text
        kind="device-script",
        parents=[model.as_parent()],
        config={**options.as_config(), "precision": precision, "target": target.name},
    )
    script.chmod(0o755)
    decided = ["--timing-cache", cache] if cache else []
    decided += ["--calibration-table", values["table"]] if values["table"] else []
    decided += ["--replicates", str(options.replicates)] if options.replicates > 1 else []
    words = [*_msn_deploy_options(target, precision, options), *decided, "--out", engine]
    command = shlex.join(["build-engine", onnx, *words])
    shapes = trtexec_shapes(options.ranges(model))
    lines = lines_for(
        model.path, out, target=target, shapes=shapes, precision=precision, options=options, quantised=quantised
    )
    return DeviceBuild(
        dla=dla,
        plugins=tuple(path.name for path in options.plugins),
        beside=tuple(path.name for path in (options.calibration_table, quantised) if path is not None),
        script=script,
        target=target.name,
        why=why_elsewhere(target),
        commands=() if target.weakly_typed else (f"msn-deploy {command}", f"{docker_run()} {command}"),
        trtexec={releases: shlex.join(words) for releases, words in lines.items()},
    )


def library_text() -> str:
    """Return the functions of sh that build engines on a device."""
    return (resources.files("msn_deploy.engine") / LIBRARY).read_text(encoding="utf-8")


def assignments(values: Mapping[str, str]) -> str:
    """Return variables as assignments of sh, a line each."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def with_options(engines: Mapping[str, tuple[OpenModel, str]], *, target: Target, options: BuildOptions) -> str:
    """Return the function of sh that runs a command with the options of an engine.

    Args:
        engines: The ONNX file and the precision of each, by a name that the scripts call it.
        target: The device.
        options: Those that the script does not decide on the device (replicates and timing cache are its own).

    Raises:
        InputError: A network leaves sizes open that no option fixes; no TensorRT of the target has one of the options.
    """
    releases_for(target, options)
    arms = []
    for name, (model, precision) in engines.items():
        own = options.meant_for(model)
        ours, shapes = shlex.join(_msn_deploy_options(target, precision, own)), trtexec_shapes(own.ranges(model))
        arms.append(f'{shlex.quote(name)}:msn-deploy) "$@" {ours} {_DECIDED} ;;')
        arms += [f"{shlex.quote(name)}:{route}) {_arm(route, shapes, precision, options)} ;;" for route in ROUTES]
    lines = "\n".join(f"        {arm}" for arm in arms)
    routes = " ".join(f"{route.number}:{name}" for name, route in ROUTES.items())
    return assignments({"routes": routes}) + (
        "with_options() {  # with_options NAME HOW COMMAND...: HOW is msn-deploy, or a release of trtexec\n"
        f"    what=$1:$2\n    shift 2\n    case $what in\n{lines}\n    esac\n}}\n"
    )


def _arm(route: str, shapes: list[str], precision: str, options: BuildOptions) -> str:
    """Return the words of sh that run trtexec with the options of a release, or refuse those that it lacks."""
    told: tuple[str, ...] = ()
    if missing := " and ".join(lacking(route, options)):
        told = (f"{ROUTES[route].title}, which is here, lacks {missing}; 8.6 and later do not.", "Build without it.")
    elif precision == "fp8" and weak_route(route):
        told = (f"{ROUTES[route].title}, which is here, has no FP8; 10 and later do.", "Build in INT8 or FP16.")
    if told:
        return f"fail 2 {shlex.join(told)}"
    return f'"$@" {shlex.join(options_for(route, shapes, precision, options))}'


def check_dla_file(model: OpenModel, target: Target, core: int) -> None:
    """Raise InputError for a Q/DQ file where no TensorRT of a target takes one on its DLA; AGX Orin can get 11.4.1."""
    if model.precision == "int8" and not target.name.startswith("agx-orin"):
        raise no_quantised_dla(model, f"the DLA of {target.title} does", core)


def engine_names(out: Path, replicates: int) -> list[str]:
    """Return the file names of several engines: NAME.engine, NAME.r2.engine, ..."""
    return [out.name, *(f"{out.stem}.r{number}{out.suffix}" for number in range(2, replicates + 1))]


def _msn_deploy_options(target: Target, precision: str, options: BuildOptions) -> list[str]:
    """What follows `msn-deploy build-engine ONNX` on the device; options at their default are left out."""
    default = BuildOptions()
    given = {
        "--batch-size": (options.batch, default.batch),
        "--min-batch": (options.min_batch, default.min_batch),
        "--opt-batch": (options.opt_batch, default.opt_batch),
        "--workspace-mib": (options.workspace_mib, default.workspace_mib),
        "--optimization-level": (options.optimization_level, default.optimization_level),
        "--dla": (options.dla, default.dla),
        "--max-dla-fallback": (options.max_dla_fallback, default.max_dla_fallback),
    }
    words = ["--precision", precision, "--target", target.name]
    for name, (value, otherwise) in given.items():
        if value != otherwise:
            words += [name, f"{value:g}" if isinstance(value, float) else str(value)]
    if options.version_compatible:
        words.append("--version-compatible")
    words += [word for each in options.shapes for word in ("--shapes", str(each))]
    return words + [word for path in options.plugins for word in ("--plugins", _beside(path))]


def _no_option(name: str) -> str:
    """Keep a file name from being read as an option."""
    return f"./{name}" if name.startswith("-") else name


def _beside(path: Path) -> str:
    """Name a library beside the script: without a slash it would be looked for among the system's."""
    return f"./{path.name}"


def _one_line(name: str) -> str:
    """Make a file name fit for a comment."""
    return name if name.isprintable() else repr(name)
