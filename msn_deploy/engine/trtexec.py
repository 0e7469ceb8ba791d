"""Which options does NVIDIA's trtexec take for a build, in each release that a Jetson has?"""

from __future__ import annotations

from msn_deploy.core.errors import InputError
from msn_deploy.engine.build_options import BuildOptions
from msn_deploy.machine.jetpacks import numbers_of
from msn_deploy.model.opened import OpenModel

# "8.0" is up to 8.3, before memory pools.
ROUTES = {"8.0": "TensorRT 8.0 to 8.3", "8": "TensorRT 8", "10": "TensorRT 10", "11": "TensorRT 11"}


def route_of(version: str) -> str:
    """Return the key of ROUTES that a release such as "8.5.2" belongs to."""
    numbers = numbers_of(version)
    return "8.0" if numbers < (8, 4) else str(numbers[0])


def trtexec_options(route: str, shapes: list[str], precision: str, options: BuildOptions) -> list[str]:
    """What follows --onnx, --saveEngine and --timingCacheFile on one of ROUTES."""
    pool = "--workspace=" if route == "8.0" else "--memPoolSize=workspace:"
    words = [f"{pool}{options.workspace_mib}", *shapes]
    weak = route in ("8.0", "8") or (route == "10" and options.dla is not None)
    if weak:
        words += {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}[precision]
    elif route == "10":
        words.append("--stronglyTyped")
    if options.dla is not None:
        words += [f"--useDLACore={options.dla}", "--allowGPUFallback"]
    if options.optimization_level is not None and route != "8.0":
        words.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.version_compatible and route != "8.0":
        words.append("--versionCompatible")
    return words


def batch_options(model: OpenModel, options: BuildOptions) -> list[str]:
    """Return trtexec's options for the range of an open batch; [] where every size is fixed."""
    name, sizes = model.only_input
    if not all(sizes[1:]):
        raise InputError(
            f"{model.path} leaves more than the batch open.\n"
            "Export it with fixed image sizes: `--input-shape 1,3,32,32`."
        )
    if not sizes or sizes[0]:
        return []
    return [
        f"--{bound}Shapes={name}:{'x'.join(str(size) for size in (batch, *sizes[1:]))}"
        for bound, batch in zip(("min", "opt", "max"), options.batch_range, strict=True)
    ]
