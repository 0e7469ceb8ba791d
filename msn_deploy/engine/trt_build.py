"""How does one code path build a plan with TensorRT 8.6 to 11 and TensorRT-RTX?

By asking the module what it has, never by its version: flags moved bits between releases, and names came and went.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msn_deploy.core.errors import InputError, MissingDevice, shorten
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.core.progress import Progress
from msn_deploy.engine.backends import Backend, check_plugins, load_plugins
from msn_deploy.engine.build_log import Messages, ctrl_c_held, logger_of, monitor_of
from msn_deploy.engine.build_options import BuildOptions
from msn_deploy.engine.calibration_table import calibrator_of, read_table
from msn_deploy.engine.dla import DlaPlan, DlaSite, ask_builder, check_fallback, use_dla
from msn_deploy.engine.tensors import TYPES, Range, check_types, spec_of
from msn_deploy.engine.timing_cache import use_timing_cache
from msn_deploy.machine.targets import Target
from msn_deploy.model.opened import OpenModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What the builder made: the plan (a buffer with .nbytes), what it takes and makes, where DLA layers run.

    ranges: of the inputs with open sizes.
    """

    plan: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: dict[str, Range]
    dla: DlaPlan | None


def mask(flags: Any, *names: str) -> int:
    """Return the bit mask of those flags that this enum has. Never write the bits down: they differ by release."""
    return sum(1 << int(getattr(flags, name)) for name in names if hasattr(flags, name))


def is_weakly_typed(trt: Any) -> bool:
    """Whether this TensorRT (8.x) takes the precision from builder flags; all later ones take it from the network."""
    return not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def build_plan(
    model: OpenModel,
    backend: Backend,
    target: Target | None,
    precision: str,
    options: BuildOptions,
    progress: Progress,
    *,
    device: str | None = None,
) -> tuple[Built, Messages]:
    """Parse and build one network; returns it and what the builder said. device: the GPU here, for the timing cache.

    Raises InputError for a network that cannot be built, MissingDevice without the GPU or DLA that the builder needs,
    GateError if more falls back from the DLA than `options` allow.
    """
    trt = backend.module
    ranges = options.ranges(model)
    types = [name for name in TYPES.values() if hasattr(trt.DataType, name)]
    check_types((*model.inputs, *model.outputs), types, source=str(model.path), title=backend.title)
    logger, messages = logger_of(trt)
    load_plugins(trt, logger, options.plugins, title=backend.title)
    messages.start()
    # Up to TensorRT 10 the DLA takes its precision from flags, as all of TensorRT 8 does.
    if is_weakly_typed(trt) and precision == "fp8":
        raise InputError(f"{backend.title} has no FP8; TensorRT 10 and later do.\nBuild in INT8 or FP16.")
    weak = is_weakly_typed(trt) or (options.dla is not None and hasattr(trt.BuilderFlag, "FP16"))
    names = ("EXPLICIT_BATCH",) if weak else ("EXPLICIT_BATCH", "STRONGLY_TYPED")
    try:
        builder = trt.Builder(logger)
        network = builder.create_network(mask(trt.NetworkDefinitionCreationFlag, *names))
        parser = trt.OnnxParser(network, logger)
    except (TypeError, RuntimeError) as cause:  # a null one, as without a GPU: pybind11 makes that a TypeError
        raise MissingDevice(
            f"{backend.title} cannot start a builder: {_last_error(messages, str(cause))}.\n"
            "It needs an NVIDIA GPU and its driver; `msn-deploy doctor` shows what is here.\n"
            "Without one, take `--backend tensorrt-rtx`."
        ) from cause
    if options.dla is not None and hasattr(trt.OnnxParserFlag, "ADJUST_FOR_DLA"):
        parser.set_flag(trt.OnnxParserFlag.ADJUST_FOR_DLA)
    with ctrl_c_held(messages):
        parsed = parser.parse(model.data)  # bytes: open_model made sure that they speak of no other file
    messages.raise_held()
    if not parsed or parser.num_errors or not network.num_layers:
        raise _parse_error(model, backend, parser, messages)
    config = builder.create_builder_config()
    _configure(trt, backend, config, options)
    if weak:
        for flag in {"fp32": (), "fp16": ("FP16",), "int8": ("FP16", "INT8")}[precision]:
            if hasattr(trt.BuilderFlag, flag):
                config.set_flag(getattr(trt.BuilderFlag, flag))
    _aim(trt, config, target)
    inputs = [network.get_input(at) for at in range(network.num_inputs)]
    _check_shape_tensors(model, inputs)
    if ranges:
        profile = add_profile(builder, config, ranges)
    dla = None
    if options.dla is not None:
        use_dla(trt, backend, builder, config, options.dla)
        limits = DlaSite(target.dla_version if target else 2, backend.version)
        dla = ask_builder(model, network, config, core=options.dla, precision=precision, ranges=ranges, site=limits)
        check_fallback(dla, options.max_dla_fallback)
    calibrator = None
    if options.calibration_table is not None:
        calibrator = calibrator_of(trt, read_table(options.calibration_table), batch=options.most_batch)
        if hasattr(config, "int8_calibrator"):
            config.int8_calibrator = calibrator
        if ranges and hasattr(config, "set_calibration_profile"):
            config.set_calibration_profile(profile)
    monitor = monitor_of(trt, messages, progress)
    if monitor is not None and hasattr(config, "progress_monitor"):
        config.progress_monitor = monitor
    save_cache = use_timing_cache(config, backend, options.timing_cache, model, device)
    with ctrl_c_held(messages):
        plan = builder.build_serialized_network(network, config)
    messages.raise_held()
    if plan is None:
        error = _last_error(messages, "it gave no reason")
        raise InputError(
            f"{backend.title} cannot build {model.path}: {error}.\n{_advice(error, model, backend, target)}"
        )
    save_cache()
    outputs = (network.get_output(at) for at in range(network.num_outputs))
    made = Built(
        plan=plan, inputs=tuple(map(spec_of, inputs)), outputs=tuple(map(spec_of, outputs)), ranges=ranges, dla=dla
    )
    return made, messages


def _configure(trt: Any, backend: Backend, config: Any, options: BuildOptions) -> None:
    """Set what depends on the options alone."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector, and the layer listing in the log
    if options.optimization_level is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise _too_old(backend, "--optimization-level")
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        if not hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE"):
            raise _too_old(backend, "--version-compatible")
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        if not hasattr(config, "hardware_compatibility_level"):
            raise _too_old(backend, "--hardware-compatible")
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _too_old(backend: Backend, option: str) -> InputError:
    return InputError(f"{backend.title} has no `{option}`; TensorRT 8.6 and later do.\nLeave it out.")


def _aim(trt: Any, config: Any, target: Target | None) -> None:
    """Build for the target's GPU and no other, where the builder can (TensorRT-RTX)."""
    if target is None or not (hasattr(config, "set_compute_capability") and hasattr(trt, "ComputeCapability")):
        return
    capability = getattr(trt.ComputeCapability, target.sm.replace("_", "").upper(), None)
    if capability is not None and hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = 1
    if capability is None or not config.set_compute_capability(capability, 0):
        raise InputError(f"TensorRT-RTX {trt.__version__} does not build for {target.name} ({target.sm}).")


def add_profile(builder: Any, config: Any, ranges: Mapping[str, Range]) -> Any:
    """Return a profile with the range of every input with open sizes: one, since a query feeds them together."""
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in ranges.items():
        profile.set_shape(name, least, best, most)
    config.add_optimization_profile(profile)
    return profile


def _check_shape_tensors(model: OpenModel, inputs: Sequence[Any]) -> None:
    """Refuse an input whose values are sizes: a profile would have to say which values, and no runner of ours does."""
    named = next((each.name for each in inputs if each.is_shape_tensor), None)
    if named is not None:
        raise InputError(
            f"the values of the input {named} of {model.path} decide sizes of the network.\n"
            "Make it a constant of the network: such inputs are not built."
        )


def _parse_error(model: OpenModel, backend: Backend, parser: Any, messages: Messages) -> InputError:
    """Turn the parser's first error into at most three lines: which node, which operator, what is wrong."""
    if not parser.num_errors:
        return InputError(
            f"{backend.title} found no network in {model.path}.\n{_last_error(messages, 'It said no more')}."
        )
    error = parser.get_error(0)
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    at = error.node()
    nodes = model.proto.graph.node
    known = (nodes[at].name, nodes[at].op_type) if 0 <= at < len(nodes) else ("", "")
    # The parser's own words where it has them (10.0 and later): its index may count nodes that it added.
    name, operator = (
        getattr(error, method, lambda: "")() or ours
        for method, ours in zip(("node_name", "node_operator"), known, strict=True)
    )
    domain = f" of the domain {nodes[at].domain}" if 0 <= at < len(nodes) and nodes[at].domain else ""
    where = f"node {name or at} ({operator}{domain})" if operator else "the graph"
    hint = ""
    if model.stored_info is None:  # a file that `export` has not been through
        hint = "\n`msn-deploy export FILE.onnx` writes it anew, with operators in forms that TensorRT reads."
    if "UInt8" in error.desc():
        hint = "\nTensorRT takes uint8 into a Cast alone: cast it first, as `msn-deploy export` does where it can."
    if re.search("plugin.* not found", error.desc(), re.I):
        hint = f"\nTensorRT has no operator {operator}: replace it in the network{_or_plugins(backend)}."
    return InputError(f"{backend.title} cannot read {where} of {model.path}: {shorten(error.desc())}{more}.{hint}")


def _or_plugins(backend: Backend) -> str:
    try:
        check_plugins(backend.module, title=backend.title)
    except InputError:
        return ""
    return ", or give the library that has it: `--plugins LIB.so`"


def _advice(error: str, model: OpenModel, backend: Backend, target: Target | None) -> str:
    """Say what to try with a network that TensorRT reads and cannot build."""
    if "no runners that implement it" in error and any(
        node.op_type == "NonMaxSuppression" for node in model.proto.graph.node
    ):
        return (
            f"{backend.title} has no NonMaxSuppression. Export the detector without `--nms`: `eval` and `infer` then "
            "do it after the engine."
        )
    if backend.is_rtx and target:
        return f"The target was {target.name}; try another `--target`, or another `--precision`."
    return "Try another `--precision`, or a larger `--workspace-mib`."


def _last_error(messages: Messages, otherwise: str) -> str:
    errors = messages.errors()
    return errors[0] if errors else shorten(otherwise)
