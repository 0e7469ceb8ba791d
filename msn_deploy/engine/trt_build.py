"""How does one code path build a plan with TensorRT 8.6 to 11 and TensorRT-RTX?

By asking the module what it has, never by its version: flags moved bits between releases, and names came and went.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msn_deploy.core.artifacts import Parent, publish
from msn_deploy.core.errors import InputError, MissingDevice
from msn_deploy.core.progress import Progress
from msn_deploy.engine.backends import Backend
from msn_deploy.engine.build_log import Messages, ctrl_c_held, logger_of, monitor_of, shorten
from msn_deploy.engine.onnx_file import OnnxFile
from msn_deploy.engine.targets import Target

if TYPE_CHECKING:
    from msn_deploy.engine.build import BuildOptions

_log = logging.getLogger(__name__)


def mask(flags: Any, *names: str) -> int:
    """Return the bit mask of those flags that this enum has. Never write the bits down: they differ by release."""
    return sum(1 << int(getattr(flags, name)) for name in names if hasattr(flags, name))


def is_weakly_typed(trt: Any) -> bool:
    """Whether this TensorRT (8.x) takes the precision from builder flags; all later ones take it from the network."""
    return not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def build_plan(
    model: OnnxFile,
    backend: Backend,
    target: Target | None,
    precision: str,
    options: BuildOptions,
    progress: Progress,
) -> tuple[Any, tuple[int, ...], Messages]:
    """Parse and build one network.

    Returns the plan (a buffer with .nbytes), the shape of the input (-1: open), and what the builder said.
    Raises InputError for a network that cannot be built, MissingDevice without the GPU that the builder needs.
    """
    trt = backend.module
    logger, messages = logger_of(trt)
    messages.start()
    try:
        builder = trt.Builder(logger)
    except Exception as cause:  # without a GPU the full TensorRT gives no builder; pybind11 makes that a TypeError
        raise MissingDevice(
            f"{backend.title} cannot start a builder: {_last_error(messages, str(cause))}.\n"
            "It needs an NVIDIA GPU and its driver; `msn-deploy doctor` shows what is here.\n"
            "Without one, take `--backend tensorrt-rtx`."
        ) from cause
    kinds = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(mask(kinds, "EXPLICIT_BATCH", "STRONGLY_TYPED"))
    parser = trt.OnnxParser(network, logger)
    with ctrl_c_held(messages):
        parsed = parser.parse(model.data)  # bytes: read_onnx made sure that they speak of no other file
    messages.raise_held()
    if not parsed or parser.num_errors or not network.num_layers:
        raise _parse_error(model, backend, parser, messages)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the layer listing in the log
    if is_weakly_typed(trt):
        for flag in {"fp32": (), "fp16": ("FP16",), "int8": ("FP16", "INT8")}[precision]:
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    _aim(trt, config, target)
    shape = _open_batch(model, builder, network, config, options.batch)
    monitor = monitor_of(trt, messages, progress)
    if monitor is not None:
        config.progress_monitor = monitor
    save_cache = _timing_cache(config, backend, options.timing_cache, model)
    with ctrl_c_held(messages):
        plan = builder.build_serialized_network(network, config)
    messages.raise_held()
    if plan is None:
        raise InputError(
            f"{backend.title} cannot build {model.path}: {_last_error(messages, 'it gave no reason')}.\n"
            + (
                f"The target was {target.name}; try another `--target`, or another `--precision`."
                if backend.is_rtx and target
                else "Try another `--precision`, or a larger `--workspace-mib`."
            )
        )
    save_cache()
    return plan, shape, messages


def _aim(trt: Any, config: Any, target: Target | None) -> None:
    """Build for the target's GPU and no other, where the builder can (TensorRT-RTX)."""
    if target is None or not hasattr(config, "set_compute_capability"):
        return
    capability = getattr(trt.ComputeCapability, "SM" + target.compute_capability.replace(".", ""), None)
    if capability is not None:
        config.num_compute_capabilities = 1
    if capability is None or not config.set_compute_capability(capability, 0):
        raise InputError(f"TensorRT-RTX {trt.__version__} does not build for {target.name} ({target.sm}).")


def _open_batch(model: OnnxFile, builder: Any, network: Any, config: Any, batch: int) -> tuple[int, ...]:
    """Give an open batch size its range, 1 to `batch`; returns the shape of the only input."""
    if network.num_inputs != 1:
        raise InputError(f"{model.path} has {network.num_inputs} inputs; networks with one are built.")
    given = network.get_input(0)
    shape = tuple(int(size) for size in given.shape)
    if -1 not in shape:
        return shape
    if -1 in shape[1:]:
        raise InputError(
            f"{model.path} leaves more than the batch open: input {given.name} is {'x'.join(map(str, shape))}.\n"
            "Export it with fixed image sizes: `--input-shape 1,3,32,32`."
        )
    profile = builder.create_optimization_profile()
    most = (batch, *shape[1:])
    profile.set_shape(given.name, (1, *shape[1:]), most, most)
    config.add_optimization_profile(profile)
    return shape


def _timing_cache(config: Any, backend: Backend, path: Path | None, model: OnnxFile) -> Callable[[], None]:
    """Load a timing cache; returns what writes it back. TensorRT-RTX has no use for one."""
    if path is None:
        return lambda: None
    if backend.is_rtx:
        _log.warning("TensorRT-RTX uses no timing cache: %s is left alone.", path)
        return lambda: None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):  # False: no cache of another device or version
        _log.warning("%s is a timing cache of another device or TensorRT: starting a new one.", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)

    def save() -> None:
        content = config.get_timing_cache().serialize()
        # Its parent is the last network that it was used for: what went into it before can't be told.
        parent = Parent(role="onnx", file=model.path.name, sha256=model.sha256)
        publish(
            path,
            lambda partial: partial.write_bytes(content) and None,
            kind="timing-cache",
            parents=[parent],
            versions=["tensorrt"],
        )

    return save


def _parse_error(model: OnnxFile, backend: Backend, parser: Any, messages: Messages) -> InputError:
    """Turn the parser's first error into at most three lines: which node, which operator, what is wrong."""
    if not parser.num_errors:
        return InputError(
            f"{backend.title} found no network in {model.path}.\n{_last_error(messages, 'Export it again')}."
        )
    error = parser.get_error(0)
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    where, operator = "the graph", ""
    if 0 <= error.node() < len(model.nodes):  # the index exists in all releases, node_name() only since 10.0
        name, operator = model.nodes[error.node()]
        where = f"node {name or error.node()} ({operator})"
    hint = "Export it again with `msn-deploy export`, which writes only what TensorRT reads."
    if "Plugin not found" in error.desc():
        hint = f"TensorRT has no operator {operator}: replace it in the network."
    return InputError(f"{backend.title} cannot read {where} of {model.path}: {shorten(error.desc())}{more}.\n{hint}")


def _last_error(messages: Messages, otherwise: str) -> str:
    errors = messages.errors()
    return errors[0] if errors else shorten(otherwise)
