"""How does ONNX Runtime run a model, exactly as the user asked and with errors a user can read?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, info_from_json
from msn_deploy.core.optional import require
from msn_deploy.engine.runner import PROVIDERS, check_images
from msn_deploy.model.opened import open_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_STEP = "running an ONNX file"
_FATAL = 4
# What ONNX Runtime calls each provider; TensorRT needs CUDA beside it for the nodes it leaves over.
_PROVIDER = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
# Graph passes that merge a normalisation, whole or taken apart into Mul and Add, into the layer before it.
_NORM_FUSIONS = ["ConvBNFusion", "ConvMulFusion", "ConvAddFusion", "MatMul_BatchNormalization_Fusion"]
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class OrtRunner:
    """An ONNX file in ONNX Runtime; the Runner of workstations, and of devices without TensorRT."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        provider: str = "cpu",
        fuse_norms: bool = True,
        optimized_to: Path | None = None,
        profile_to: Path | None = None,
        content: bytes | None = None,
    ) -> None:
        """Load the file, or `content` if it is given; then `path` only names it, and the caller has looked through it.

        threads: of one operator, None = ONNX Runtime's choice (all cores). provider: one of PROVIDERS; it is used or
        refused, never replaced. fuse_norms: False keeps every normalisation a layer of its own (on x86, ONNX Runtime
        may still run it as a 1x1 depthwise Conv). optimized_to: also write the graph that really runs, to look at.
        profile_to: how the file begins that `end_profiling` writes.
        Raises InputError, MissingDependency, MissingDevice.
        """
        if provider not in PROVIDERS:
            raise InputError(f"there is no provider {provider!r}.\nChoose one of {', '.join(PROVIDERS)}.")
        if threads is not None and threads < 1:
            raise InputError(f"{threads} threads cannot run anything.\nGive `--threads` 1 or more.")
        ort: Any = require("onnxruntime", step=_STEP)
        self.path = path
        self.name = path.name
        data = open_model(path, step=_STEP).data if content is None else content
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
        off = {} if fuse_norms else {"disabled_optimizers": _NORM_FUSIONS}
        ort.set_default_logger_severity(_FATAL)  # warnings about the machine do not belong to a session's logger
        try:
            session = ort.InferenceSession(data, options, providers=_PROVIDER[provider], **off)
        except Exception as cause:  # ONNX Runtime's classes share no base below Exception
            raise InputError(
                f"ONNX Runtime {ort.__version__} cannot load {path}: {_said(cause)}.\n"
                "Export it again, or update onnxruntime if the file is newer than it."
            ) from cause
        # A provider whose libraries do not load is dropped by ONNX Runtime with no more than a log line.
        if session.get_providers()[0] != _PROVIDER[provider][0]:
            raise MissingDevice(
                f"provider {provider} could not start: ONNX Runtime fell back to {session.get_providers()[0]}.\n"
                "Its GPU, driver or CUDA libraries are not there. `msn-deploy doctor` shows what is."
            )
        session.disable_fallback()
        self._take_contract(session)
        self._session = session

    def _take_contract(self, session: Any) -> None:
        """Read input, output and metadata; refuse graphs that are not one batch in, one batch out."""
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise InputError(f"{self.path} has {len(inputs)} inputs and {len(outputs)} outputs; one of each is run.")
        given, made = inputs[0], outputs[0]
        if given.type not in _DTYPES or made.type not in _DTYPES or not given.shape:
            raise InputError(
                f"{self.path} maps {given.type} {given.shape} to {made.type}; images in floats to floats are run."
            )
        self.input_name: str = given.name
        self.input_shape: tuple[int | None, ...] = tuple(
            size if isinstance(size, int) and size >= 0 else None for size in given.shape
        )
        self._dtype = _DTYPES[given.type]
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        self.info: ModelInfo | None = None if text is None else info_from_json(text, source=str(self.path))

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (N, C, H, W) to float32 (N, classes).

        A graph with a fixed batch size B runs in chunks of B; the last one is filled up by repeating its last image,
        and the outputs of the repeats are dropped. Raises InputError if the shape does not fit the graph.
        """
        import numpy as np  # late: importing this module must stay light

        check_images(batch, self.input_shape, name=self.name)
        fixed = self.input_shape[0]
        if fixed is None or fixed == len(batch):
            return self._run_once(batch)
        parts = []
        for start in range(0, len(batch), fixed):
            chunk = batch[start : start + fixed]
            if len(chunk) < fixed:
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], fixed - len(chunk), axis=0)])
            parts.append(self._run_once(chunk))
        return np.concatenate(parts)[: len(batch)]

    def _run_once(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        if self._session is None:
            raise RuntimeError(f"{self.name} was closed")
        feed = {self.input_name: np.ascontiguousarray(batch, dtype=self._dtype)}
        try:
            (output,) = self._session.run(None, feed)
        except Exception as cause:  # as at loading: no common base
            raise InputError(f"{self.path} loads but does not run: {_said(cause)}.\nExport it again.") from cause
        return np.asarray(output, dtype=np.float32)

    def end_profiling(self) -> Path:
        """Write what each node took in each run, and return the file: a Chrome trace. Needs `profile_to`."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """Free the session; `run` cannot be called afterwards."""
        self._session = None


def _check_provider(ort: Any, provider: str) -> None:
    available = ort.get_available_providers()
    if _PROVIDER[provider][0] not in available:
        known = [name for name in PROVIDERS if _PROVIDER[name][0] in available]
        raise MissingDependency(
            f"this onnxruntime ({ort.__version__}) has no provider {provider}; it has: {', '.join(known)}.\n"
            "Choose one of those with `--device`, or install an onnxruntime built with it (onnxruntime-gpu on x86)."
        )


def _said(cause: Exception) -> str:
    """The heart of an ONNX Runtime message: one line, no error number, no source position, at most 200 characters."""
    text = " ".join(str(cause).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^(Load model from .*? failed:)?\s*\S*\.(cc|h):\d+ .*?\) (?=[A-Z])", "", text)
    text = text.rstrip(". ")
    return text if len(text) <= 200 else text[:194] + " [...]"
