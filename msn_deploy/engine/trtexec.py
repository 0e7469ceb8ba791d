"""Which options does trtexec take in each release of TensorRT? What a release lacks is refused, never passed.

trtexec ends with an error on an option that it does not know. Sources: samples/common/sampleOptions.cpp of the tags of
NVIDIA/TensorRT, whose names the tests have as a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msn_deploy.core.errors import InputError
from msn_deploy.engine.build_options import BuildOptions
from msn_deploy.engine.calibration_table import number_of
from msn_deploy.engine.dla import has_dla, takes_table
from msn_deploy.machine.targets import Target

UPGRADE = "11.4.1"  # TensorRT that users may install on JetPack 7.2.2 and later; the only one with a DLA there


@dataclass(frozen=True, slots=True)
class Route:
    """Releases that take the same options. number: the first, as trtexec writes it ("[TensorRT v8502]", 100300)."""

    number: int
    title: str


ROUTES = {
    "8.0": Route(8000, "TensorRT 8.0 to 8.3"),
    "8.4": Route(8400, "TensorRT 8.4 and 8.5"),  # memory pools
    "8.6": Route(8600, "TensorRT 8.6"),  # levels of optimization, compatible plans, static plugins
    "10": Route(100000, "TensorRT 10"),  # types of the network
    "11": Route(
        110000, "TensorRT 11"
    ),  # and no others; what adjusts a network for the DLA (from 10.16, which has none)
}
_SINCE_8_6 = {"--builderOptimizationLevel": "--optimization-level", "--versionCompatible": "--version-compatible"}


def route_of(version: str) -> str:
    """Return the key of ROUTES that a release such as "8.5.2" belongs to."""
    return [key for key, route in ROUTES.items() if number_of(version) >= route.number][-1]


def weak_route(route: str) -> bool:
    """Whether a route is one of TensorRT 8, which takes the precision from flags alone."""
    return route.startswith("8")


def options_for(route: str, shapes: list[str], precision: str, options: BuildOptions) -> list[str]:
    """What follows --onnx, --saveEngine, --timingCacheFile and --calib on one of ROUTES.

    Up to TensorRT 10 a DLA takes its precision from flags, as all of TensorRT 8 does. `lacking` has to be asked first.
    """
    pool = "--workspace=" if route == "8.0" else "--memPoolSize=workspace:"
    words = [f"{pool}{options.workspace_mib}", *shapes]
    if weak_route(route) or (route == "10" and options.dla is not None):
        words += {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}[precision]
    elif route == "10":
        words.append("--stronglyTyped")
    if options.dla is not None:
        words += [f"--useDLACore={options.dla}", "--allowGPUFallback"]
        words += ["--adjustForDLA"] if route == "11" else []
    words += [name if value is True else f"{name}={value}" for name, value in _asked(options).items()]
    plugins = "--plugins" if route in ("8.0", "8.4") else "--staticPlugins"
    return words + [f"{plugins}=./{path.name}" for path in options.plugins]  # with a slash: beside the script


def _asked(options: BuildOptions) -> dict[str, bool | int]:
    """Return the options of trtexec that not every release has, which the user asked for."""
    asked: dict[str, bool | int] = {}
    if options.optimization_level is not None:
        asked["--builderOptimizationLevel"] = options.optimization_level
    if options.version_compatible:
        asked["--versionCompatible"] = True
    return asked


def lacking(route: str, options: BuildOptions) -> list[str]:
    """Return what a route lacks of what was asked for, as msn-deploy calls it: ["--optimization-level"]."""
    return [_SINCE_8_6[name] for name in _asked(options)] if route in ("8.0", "8.4") else []


def releases_for(target: Target, options: BuildOptions) -> list[str]:
    """Return the releases of a target's JetPacks that can build with these options.

    Raises InputError, with the option and the releases, if none can.
    """
    releases = [
        *target.tensorrt,
        *([UPGRADE] if target.name.startswith("agx-orin") and options.dla is not None else []),
    ]
    able = [version for version in releases if options.dla is None or has_dla(version)]
    fit = [version for version in able if not lacking(route_of(version), options)]
    if not fit:
        names = lacking(route_of(able[-1]), options)
        told, them = (f"`{names[0]}` needs", "it") if len(names) == 1 else (f"`{'` and `'.join(names)}` need", "them")
        raise InputError(f"{told} TensorRT 8.6 or later; {target.title} has {' and '.join(able)}.\nLeave {them} out.")
    return fit


def lines_for(
    onnx: Path,
    engine: Path,
    *,
    target: Target,
    shapes: list[str],
    precision: str,
    options: BuildOptions,
    quantised: Path | None = None,
) -> dict[str, list[str]]:
    """Return the words of trtexec's command per set of releases ("TensorRT 8.5.2, 8.6.2") that serve a target.

    With a calibration table, `onnx` is the FP32 file, and `quantised` that for a DLA that takes Q/DQ nodes; without
    either of the two, releases that need it have no line. Raises InputError if no release has all the options.
    """
    cache = [f"--timingCacheFile={options.timing_cache.name}"] if options.timing_cache else []
    lines: dict[tuple[str, ...], list[str]] = {}
    for version in releases_for(target, options):
        words = options_for(route_of(version), shapes, precision, options)
        source, calib = onnx, []
        if options.dla is not None and precision == "int8":
            table = options.calibration_table
            if takes_table(version):
                if table is None:
                    continue
                calib = [f"--calib={table.name}"]
            elif table is not None:
                if quantised is None:
                    continue
                source = quantised
        both = ["trtexec", f"--onnx={source.name}", f"--saveEngine={engine.name}", *cache, *calib]
        lines.setdefault((*both, *words), []).append(version)
    return {f"TensorRT {', '.join(versions)}": list(words) for words, versions in lines.items()}
