"""How does ONNX Runtime run a model, exactly as the user asked and with errors a user can read?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice, shorten
from msn_deploy.core.optional import require
from msn_deploy.engine.runner import PROVIDERS, check_feeds
from msn_deploy.model.opened import OpenModel, made_model

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

_STEP = "running an ONNX file"
_FATAL = 4
# What ONNX Runtime calls each provider; TensorRT needs CUDA beside it for the nodes it leaves over.
_PROVIDER = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
# Removes a ReLU in front of a QuantizeLinear with the zero point 0 of FP8, as if it were that of UINT8 (1.32).
_WRONG_FOR_FP8 = ["ReluQuantRewrite"]
# Graph passes that merge a normalisation, whole or taken apart into Mul and Add, into the layer before it.
_NORM_FUSIONS = ["ConvBNFusion", "ConvMulFusion", "ConvAddFusion", "MatMul_BatchNormalization_Fusion"]


class OrtRunner:
    """An ONNX file in ONNX Runtime; the Runner of workstations, and of devices without TensorRT."""

    def __init__(
        self,
        model: OpenModel,
        *,
        threads: int | None = None,
        provider: str = "cpu",
        fuse_norms: bool = True,
        optimized_to: Path | None = None,
        profile_to: Path | None = None,
    ) -> None:
        """Load an opened model.

        Args:
            model: What `open_model` or `made_model` returned.
            threads: Of one operator; None leaves the choice to ONNX Runtime (all cores).
            provider: One of PROVIDERS; it is used or refused, never replaced.
            fuse_norms: False keeps every normalisation a layer of its own (on x86, ONNX Runtime may still run it as a
                1x1 depthwise Conv).
            optimized_to: Where to write the graph that really runs, to look at.
            profile_to: How the name of the file begins that `end_profiling` writes.

        Raises:
            InputError: ONNX Runtime does not load the model, or an option cannot be used.
            MissingDependency: onnxruntime, or its provider, is not installed.
            MissingDevice: The provider does not start.
        """
        if provider not in PROVIDERS:
            raise InputError(f"there is no provider {provider!r}.\nChoose one of {', '.join(PROVIDERS)}.")
        if threads is not None and threads < 1:
            raise InputError(f"{threads} threads cannot run anything.\nGive `--threads` 1 or more.")
        ort: Any = require("onnxruntime", step=_STEP)
        self.path, self.name, self.info = model.path, model.name, model.info
        self.inputs, self.outputs = model.inputs, model.outputs
        fixed = self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else None
        self.batch_range: tuple[int, int | None] = (fixed or 1, fixed)
        _check_provider(ort, provider)
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.inter_op_num_threads = 1
        if threads is not None:
            options.intra_op_num_threads = threads
        if optimized_to is not None:
            options.optimized_model_filepath = str(optimized_to)
        if profile_to is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_to)
        off = [*([] if fuse_norms else _NORM_FUSIONS), *(_WRONG_FOR_FP8 if model.precision == "fp8" else [])]
        ort.set_default_logger_severity(_FATAL)  # warnings about the machine do not belong to a session's logger
        try:
            session = ort.InferenceSession(model.data, options, providers=_PROVIDER[provider], disabled_optimizers=off)
        except Exception as cause:  # ONNX Runtime's classes share no base below Exception
            foreign = foreign_operators(model.proto)
            hint = "\nONNX does not have {}; TensorRT takes such operators by `--plugins`.".format(", ".join(foreign))
            raise InputError(
                f"ONNX Runtime {ort.__version__} cannot load {self.path}: {shorten(cause)}.{hint if foreign else ''}"
            ) from cause
        # A provider whose libraries do not load is dropped by ONNX Runtime with no more than a log line.
        if session.get_providers()[0] != _PROVIDER[provider][0]:
            raise MissingDevice(
                f"provider {provider} could not start: ONNX Runtime fell back to {session.get_providers()[0]}.\n"
                "Its GPU, driver or CUDA libraries are not there. `msn-deploy doctor` shows what is."
            )
        session.disable_fallback()
        self._session = session

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See Runner. Raises InputError also for a network that does not run."""
        import numpy as np  # late: importing this module must stay light

        if self._session is None:
            raise RuntimeError(f"{self.name} was closed")
        check_feeds(feeds, self.inputs, name=self.name)
        try:
            made = self._session.run(None, {name: np.asarray(each, order="C") for name, each in feeds.items()})
        except Exception as cause:  # as at loading: no common base
            raise InputError(f"{self.path} loads but does not run: {shorten(cause)}.") from cause
        return {spec.name: each for spec, each in zip(self.outputs, made, strict=True)}

    def bound(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """Check feeds, and return a call that runs them again and again as ONNX Runtime itself does.

        Raises InputError as `run`; what the call raises is ONNX Runtime's.
        """
        import numpy as np

        check_feeds(feeds, self.inputs, name=self.name)
        return partial(self._session.run, None, {name: np.asarray(each, order="C") for name, each in feeds.items()})

    def end_profiling(self) -> Path:
        """Write what each node took in each run, and return the file: a Chrome trace. Needs `profile_to`."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """Free the session; `run` cannot be called afterwards."""
        self._session = None


def run_on_one_thread(graph: ModelProto) -> OrtRunner:
    """Load a graph that a stage has made on the CPU and one thread: the same numbers, bit for bit, on every run."""
    return OrtRunner(made_model(Path("the network"), graph, graph.SerializeToString()), threads=1)


def foreign_operators(model: ModelProto) -> list[str]:
    """Return the operators that are neither ONNX's own nor functions of the file, such as "Voxelize of acme.ops"."""
    own = {("", ""), ("ai.onnx", ""), ("ai.onnx.ml", "")}
    functions = {(function.domain, function.name) for function in model.functions}
    named = dict.fromkeys((node.domain, node.op_type) for node in model.graph.node)
    return [
        f"{kind} of {domain}" for domain, kind in named if (domain, "") not in own and (domain, kind) not in functions
    ]


def _check_provider(ort: Any, provider: str) -> None:
    available = ort.get_available_providers()
    if _PROVIDER[provider][0] not in available:
        known = [name for name in PROVIDERS if _PROVIDER[name][0] in available]
        raise MissingDependency(
            f"this onnxruntime ({ort.__version__}) has no provider {provider}; it has: {', '.join(known)}.\n"
            "Choose one of those with `--device`, or install an onnxruntime built with it (onnxruntime-gpu on x86)."
        )
