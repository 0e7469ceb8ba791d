"""What of msn-deploy works on this machine? The lines of `doctor`, each with a verdict and what to type.

Nothing here raises, whatever the files of the machine hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from msn_deploy.machine import jetson_checks
from msn_deploy.machine.check import Check, problem, warning
from msn_deploy.machine.device import DeviceFacts, nodes_to_open, what_machine
from msn_deploy.machine.libraries import Library, cuda_version, find_libraries, has_compiler, same_release, version_in
from msn_deploy.machine.probe import Probe

_TENSORRT = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
_CONTEXT_MIB = 300  # a CUDA context with its kernels; a guess, as is the next line
_COPIES = 4  # of a model's weights while it is built: the file, the network, the builder's, the plan
_WORKSPACE_MIB = 256  # what build-engine takes by default


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    """All that was read of the machine."""

    probe: Probe
    facts: DeviceFacts
    libraries: tuple[Library, ...]


def checks(probe: Probe | None = None, *, model_bytes: int = 0) -> list[Check]:
    """Judge a machine, one line per question; model_bytes: size of the ONNX file that will be built. Never raises."""
    probe = probe or Probe()
    seen = _Machine(probe=probe, facts=what_machine(probe.root, arch=probe.arch), libraries=find_libraries(probe.root))
    lines = [
        Check(name="python", verdict="ok", found=probe.python),  # one before 3.10 could not have imported this file
        *(_package(name, seen) for name in ("onnxruntime", "onnx", "torch", "pycuda")),
        _tensorrt(seen),
        _whole_libraries(seen),
        _cuda(seen),
        _gpu(seen.facts),
        _rights(seen),
    ]
    if seen.facts.jetson is None:
        lines.append(Check(name="jetson", verdict="ok", found="not a Jetson"))
    else:
        base = version_in(seen.libraries, "libnvinfer")
        lines += [
            jetson_checks.jetson(probe.root, seen.facts),
            jetson_checks.image(probe.root, seen.facts, tensorrt=base),
            jetson_checks.runtime(probe.root, seen.facts),
            jetson_checks.power_mode(probe.root, seen.facts),
            jetson_checks.clocks(probe.root),
        ]
    return [*lines, _memory(seen, model_bytes), _disk(probe)]


def build_peak_mib(libraries: tuple[Library, ...], *, model_bytes: int = 0) -> float:
    """Predict the memory of a build, MiB: the workspace, TensorRT's libraries, a CUDA context and copies of the model.

    An upper bound where the libraries are only partly paged in; TensorRT itself tells nothing before it builds.
    """
    mapped = max((each.bytes for each in libraries if each.family == "libnvinfer"), default=0)
    mapped += sum(each.bytes for each in libraries if each.family.startswith("libnvinfer_builder"))
    return _WORKSPACE_MIB + _CONTEXT_MIB + (mapped + _COPIES * model_bytes) / 2**20


def _package(name: str, seen: _Machine) -> Check:
    version, jetson = seen.probe.installed(name), seen.facts.jetson
    if version is not None:
        return Check(name=name, verdict="ok", found=version)
    extra = "jetson" if jetson else "export"
    needed = {"onnxruntime": "eval, infer and bench need it", "onnx": "eval, bench and build-engine need it"}
    if name in needed:
        return problem(name, "not installed", f"{needed[name]}: pip install 'msn-deploy[{extra}]'")
    if name == "pycuda" and jetson:
        cuda = "" if has_compiler(seen.probe.root) else "   (needs nvcc: sudo apt install nvidia-jetpack)"
        return warning(name, "not installed", f"Engines run with it: pip install 'msn-deploy[jetson]'{cuda}")
    if name == "torch" and not jetson:
        hint = "train and export need it: pip install 'msn-deploy[train]'; the rest works without."
        return warning(name, "not installed", hint)
    return Check(name=name, verdict="ok", found="not installed (not needed here)")


def _tensorrt(seen: _Machine) -> Check:
    full, rtx = seen.probe.installed("tensorrt"), seen.probe.installed("tensorrt_rtx")
    named = (("TensorRT", full), ("TensorRT-RTX", rtx))
    found = ", ".join(f"{name} {version}" for name, version in named if version) or "not installed"
    if seen.facts.jetson and (second := _second_tensorrt(seen, full)):
        hint = "pip uninstall -y tensorrt tensorrt-cu12 tensorrt-cu13   (JetPack's own is the one that fits)"
        return problem("tensorrt", f"{found}; {second}", hint)
    if full or (rtx and not seen.facts.jetson):
        return Check(name="tensorrt", verdict="ok", found=found)
    if seen.facts.jetson:
        hint = "It comes with JetPack: sudo apt install tensorrt python3-libnvinfer   (never pip install it here)"
        return problem("tensorrt", found, hint)
    hint = "build-engine needs it: pip install 'msn-deploy[rtx]'   (builds without a GPU); ONNX files run without."
    return warning("tensorrt", found, hint)


def _second_tensorrt(seen: _Machine, bindings: str | None) -> str | None:
    """Say what shows that pip brought a TensorRT beside JetPack's."""
    if seen.probe.installed("tensorrt_libs") is not None:
        return "pip brought a second one (tensorrt_libs)"
    library = version_in(seen.libraries, "libnvinfer")
    if bindings is None or bindings == "?" or library is None or same_release(bindings, library):
        return None
    return f"its library is libnvinfer {library}"


def _whole_libraries(seen: _Machine) -> Check:
    broken = [each for each in seen.libraries if each.fault]
    if broken:
        more = f" and {len(broken) - 1} more" if broken[1:] else ""
        hint = "Install JetPack's packages again: sudo apt install --reinstall tensorrt nvidia-l4t-cuda"
        if seen.facts.container:
            hint = (
                "The image was made for a runtime that mounts them; take one that brings its own, such as "
                "l4t-jetpack, and start it with --runtime nvidia."
            )
        return problem("libraries", f"{broken[0].path}: {broken[0].fault}{more}", hint)
    found = [each for each in seen.libraries if each.family in _TENSORRT]
    if not found:
        return Check(name="libraries", verdict="ok", found="no TensorRT libraries of the system")
    main = max((each for each in found if each.family == "libnvinfer"), key=lambda e: e.bytes, default=found[0])
    return Check(name="libraries", verdict="ok", found=f"{main.path}, {main.bytes / 2**20:.1f} MiB")


def _cuda(seen: _Machine) -> Check:
    version = cuda_version(seen.probe.root, seen.libraries)
    driver = any(each.family == "libcuda" for each in seen.libraries)
    found = f"{version or 'no toolkit'}, {'libcuda found' if driver else 'no libcuda'}"
    if seen.facts.has_gpu and not driver:
        hint = "The driver's library is not here. "
        hint += "Start with: docker run --runtime nvidia ..." if seen.facts.container else "Install the NVIDIA driver."
        return warning("cuda", found, hint)
    if seen.facts.jetson and version is None:
        return warning("cuda", found, "It comes with JetPack: sudo apt install nvidia-jetpack")
    return Check(name="cuda", verdict="ok", found=found)


def _gpu(facts: DeviceFacts) -> Check:
    if facts.has_gpu:
        version = f"driver {facts.driver}, " if facts.driver else ""
        return Check(name="gpu", verdict="ok", found=version + ", ".join(facts.gpu_nodes))
    if facts.jetson:
        inside = "Start the container with: docker run --runtime nvidia ..."
        hint = inside if facts.container else "Flash JetPack anew; `dmesg | grep -i nvgpu` may say why."
        return problem("gpu", "no GPU device file", hint)
    found = f"driver {facts.driver}, but no GPU device file" if facts.driver else "no NVIDIA GPU"
    hint = "Training, eval and bench run on the CPU; TensorRT-RTX still builds engines, which run elsewhere."
    return warning("gpu", found, hint)


def _rights(seen: _Machine) -> Check:
    nodes = nodes_to_open(seen.probe.root)
    if not nodes:
        return Check(name="rights", verdict="ok", found="no device files to open")
    closed = [node for node in nodes if not seen.probe.may_open(seen.probe.root / node.lstrip("/"))]
    if not closed:
        return Check(name="rights", verdict="ok", found=f"may open all {len(nodes)} device files")
    hint = "sudo usermod -aG video,render $USER   and log in again"
    if seen.facts.container:
        hint = f"Start the container with: --group-add $(stat -c %g {closed[0]})"
    return problem("rights", f"may not open {', '.join(closed)}", hint)


def _memory(seen: _Machine, model_bytes: int) -> Check:
    total, free = seen.facts.memory_gib, seen.facts.memory_free_gib
    if total is None:
        return warning("memory", "unknown", "/proc/meminfo says nothing; `free -m` may.")
    peak = build_peak_mib(seen.libraries, model_bytes=model_bytes) / 1024
    found = f"{total:.1f} GiB" + ("" if free is None else f", {free:.1f} GiB free; a build may take {peak:.1f} GiB")
    if free is not None and free < peak:
        hint = "Close other programs (a desktop takes 1 GiB: sudo init 3), or lower `build-engine --workspace-mib`."
        return warning("memory", found, hint)
    return Check(name="memory", verdict="ok", found=found)


def _disk(probe: Probe) -> Check:
    try:
        free = probe.free_bytes(probe.folder) / 2**30
    except OSError as cause:  # such as a working directory that was deleted
        return warning("disk", f"unknown ({cause.strerror})", "Go to a folder that is there: cd")
    if free < 1:
        hint = "Runs and engines may not fit; free some space or use `--out`."
        return warning("disk", f"{free:.1f} GiB free here", hint)
    return Check(name="disk", verdict="ok", found=f"{free:.1f} GiB free here")
