"""How is an engine built on the device, from files that were made elsewhere? By a script that takes what is there.

msn-deploy first, then its container, then NVIDIA's trtexec, whose options differ by release: TensorRT 8 takes the
precision from flags, 10 builds what the file says if told so, 11 knows nothing else.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from string import Template

from msn_deploy.core.artifacts import publish
from msn_deploy.engine.backends import why_elsewhere
from msn_deploy.engine.build_options import BuildOptions
from msn_deploy.engine.dla import DlaPlan, check_fallback, documented, no_quantised_dla, plan_of
from msn_deploy.engine.trtexec import ROUTES, batch_options, route_of, trtexec_options
from msn_deploy.machine.targets import Target
from msn_deploy.model.opened import OpenModel

IMAGE = "msn-deploy"  # as Dockerfile.jetson says to name it
_SCRIPT = Template("""\
#!/bin/sh
# Builds $engine for $title, on that device. Written by msn-deploy build-engine.
# Needs $onnx beside it, and one of: msn-deploy, its container image, trtexec of JetPack.
set -eu
cd "$$(dirname "$$0")"
onnx=$quoted_onnx
engine=$quoted_engine

if [ ! -f "$$onnx" ]; then
    echo "$$onnx is not here: copy it beside this script." >&2
    exit 2
fi

check_built() {  # elsewhere than on the device it would only write this script again
    if [ -f "$$engine" ]; then
        exit 0
    fi
    echo "no $$engine was built: this is no $title." >&2
    exit 3
}

if command -v msn-deploy >/dev/null 2>&1; then
    msn-deploy build-engine $arguments
    check_built
fi

image=$${MSN_DEPLOY_IMAGE:-$image}
if command -v docker >/dev/null 2>&1 && docker image inspect "$$image" >/dev/null 2>&1; then
    set -- -v "$$PWD":/data
    if [ -e /etc/nv_tegra_release ]; then
        set -- "$$@" -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro
    fi
    if [ -r /proc/device-tree/model ]; then  # files below /proc can't be mounted
        model=$$(mktemp)
        tr -d '\\0' </proc/device-tree/model >"$$model"
        set -- "$$@" -v "$$model":/tmp/nv_jetson_model:ro
    fi
    docker run --rm --runtime nvidia "$$@" "$$image" build-engine $arguments
    check_built
fi

trtexec=$${TRTEXEC:-$$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}
if [ ! -x "$$trtexec" ]; then
    echo "neither msn-deploy, nor the image $$image, nor trtexec is here." >&2
    echo "JetPack brings trtexec: sudo apt install tensorrt" >&2
    exit 3
fi
# It calls itself "TensorRT v8502" (8.5.2) or "TensorRT v100300" (10.3.0).
number=$$("$$trtexec" --help 2>&1 | sed -n 's/.*\\[TensorRT v\\([0-9][0-9]*\\)\\].*/\\1/p' | head -n 1)
if [ -z "$$number" ]; then
    echo "$$trtexec does not say its version; it should print [TensorRT v...]." >&2
    exit 3
fi
if [ "$$number" -ge 10000 ]; then
    version=$$((number / 100))
else
    version=$$((number / 1000 * 100 + number / 100 % 10))
fi
$checks
build() {  # build ENGINE OPTION...: written whole, or not at all
    built=$$1
    shift
    "$$trtexec" --onnx="$$onnx" --saveEngine="$$built.partial" "$$@"
    mv "$$built.partial" "$$built"
    echo "$$built: built with trtexec"
}

for each in $engines; do
    if [ "$$version" -ge 1100 ]; then
        build "$$each" $trt11
    elif [ "$$version" -ge 1000 ]; then
        build "$$each" $trt10
    elif [ "$$version" -ge 804 ]; then
        build "$$each" $trt8
    else
        build "$$each" $trt80
    fi
done
""")
_DLA_CHECK = """
if [ "$version" -ge 1008 ] && [ "$version" -lt 1104 ]; then
    echo "this TensorRT has no DLA: 8 to 10.7 have it, and 11.4 on AGX Orin." >&2
    exit 3
fi
"""
_DLA_INT8_CHECK = """
if [ "$version" -lt 1104 ]; then
    echo "this TensorRT takes no Q/DQ network on DLA: 11.4 does, on AGX Orin." >&2
    exit 3
fi
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBuild:
    """A script that builds the engine on its device, and what it does in words.

    why: no plan was built here. commands: with msn-deploy on the device, and in its container; none where its Python is
    too old. trtexec: the line per TensorRT release that serves the target. dla: what will run there by the documented
    limits; the builder on the device has the last word.
    """

    script: Path
    target: str
    why: str
    commands: tuple[str, ...]
    trtexec: dict[str, str]
    dla: DlaPlan | None


def write_device_script(
    model: OpenModel, out: Path, *, target: Target, precision: str, options: BuildOptions
) -> DeviceBuild:
    """Write NAME.build.sh, which builds NAME.engine from the ONNX file beside it.

    Raises InputError for a network that leaves more than the batch open, GateError if more of it falls back from the
    DLA than `options` allow.
    """
    dla = None
    if options.dla is not None:
        dla = plan_of(options.dla, documented(model, precision=precision, batch=options.batch))
        check_fallback(dla, options.max_dla_fallback)
    arguments = _arguments(model.path.name, out.name, target, precision, options)
    shapes = batch_options(model, options)
    routes = {route: trtexec_options(route, shapes, precision, options) for route in ROUTES}
    text = _SCRIPT.substitute(
        title=target.title,
        engine=_one_line(out.name),
        onnx=_one_line(model.path.name),
        quoted_onnx=shlex.quote(_no_option(model.path.name)),
        quoted_engine=shlex.quote(_no_option(out.name)),
        arguments=shlex.join(arguments),
        image=IMAGE,
        checks=_checks(options, precision),
        engines=shlex.join(_no_option(name) for name in engine_names(out, options.replicates)),
        trt80=shlex.join(routes["8.0"]),
        trt8=shlex.join(routes["8"]),
        trt10=shlex.join(routes["10"]),
        trt11=shlex.join(routes["11"]),
    )
    script = out.with_name(f"{out.stem}.build.sh")
    publish(
        script,
        lambda partial: partial.write_text(text, encoding="utf-8"),
        kind="device-script",
        parents=[model.as_parent()],
        config={**options.as_config(), "precision": precision, "target": target.name},
    )
    script.chmod(0o755)
    served = dict.fromkeys(route_of(version) for version in target.tensorrt)
    both = [f"--onnx={model.path.name}", f"--saveEngine={out.name}"]
    command = shlex.join(["build-engine", *arguments])
    container = 'docker run --rm --runtime nvidia -v "$PWD":/data'
    return DeviceBuild(
        dla=dla,
        script=script,
        target=target.name,
        why=why_elsewhere(target),
        commands=() if target.weakly_typed else (f"msn-deploy {command}", f"{container} {IMAGE} {command}"),
        trtexec={ROUTES[route]: shlex.join(["trtexec", *both, *routes[route]]) for route in served},
    )


def check_dla_precision(target: Target, precision: str, options: BuildOptions) -> None:
    """Raise InputError for INT8 on a DLA whose every TensorRT takes no Q/DQ nodes; only AGX Orin can get 11.4."""
    if options.dla is not None and precision == "int8" and not target.name.startswith("agx-orin"):
        raise no_quantised_dla("no TensorRT of its JetPacks runs one")


def engine_names(out: Path, replicates: int) -> list[str]:
    """Return the file names of several engines: NAME.engine, NAME.r2.engine, ..."""
    return [out.name, *(f"{out.stem}.r{number}{out.suffix}" for number in range(2, replicates + 1))]


def _arguments(onnx: str, engine: str, target: Target, precision: str, options: BuildOptions) -> list[str]:
    """What follows `msn-deploy build-engine` on the device; options at their default are left out."""
    default = BuildOptions()
    given = {
        "--batch": (options.batch, default.batch),
        "--min-batch": (options.min_batch, default.min_batch),
        "--opt-batch": (options.opt_batch, default.opt_batch),
        "--workspace-mib": (options.workspace_mib, default.workspace_mib),
        "--optimization-level": (options.optimization_level, default.optimization_level),
        "--timing-cache": (options.timing_cache.name if options.timing_cache else None, None),
        "--dla": (options.dla, default.dla),
        "--max-dla-fallback": (options.max_dla_fallback, default.max_dla_fallback),
        "--replicates": (options.replicates, default.replicates),
    }
    words = [_no_option(onnx), "--precision", precision, "--target", target.name]
    for name, (value, otherwise) in given.items():
        if value != otherwise:
            words += [name, f"{value:g}" if isinstance(value, float) else str(value)]
    if options.version_compatible:
        words.append("--version-compatible")
    return [*words, "--out", _no_option(engine)]


def _checks(options: BuildOptions, precision: str) -> str:
    if options.dla is None:
        return ""
    return _DLA_INT8_CHECK if precision == "int8" else _DLA_CHECK


def _no_option(name: str) -> str:
    """Keep a file name from being read as an option."""
    return f"./{name}" if name.startswith("-") else name


def _one_line(name: str) -> str:
    """Make a file name fit for a comment."""
    return name if name.isprintable() else repr(name)
