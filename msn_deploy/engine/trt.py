"""How does a plan run? By the tensor API that TensorRT has had since 8.5, and TensorRT-RTX has too."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice
from msn_deploy.core.optional import require
from msn_deploy.engine.build_log import logger_of, shorten
from msn_deploy.engine.cuda import Cuda, CudaError, Pair, open_cuda
from msn_deploy.engine.plan import TITLES, Plan, what_is_here
from msn_deploy.engine.preflight import check_version
from msn_deploy.engine.runner import check_images

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_STEP = "running an engine"


class TrtRunner:
    """A plan in TensorRT or TensorRT-RTX, with one stream and page-locked buffers for its largest batch.

    largest_batch: that runs in one piece. last_gpu_ms: what the network alone took on the GPU in the last call, ms,
    without the copies; of several batches their sum. To be used from the thread that made it. Give it a plan that
    `preflight` returned: loading one runs the code in it.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        cuda_graph: bool = False,
        trt: Any = None,
        cuda: Callable[..., Cuda] = open_cuda,
    ) -> None:
        """Load the plan and run it once, since TensorRT-RTX compiles kernels for this GPU on the way.

        cuda_graph: queue the whole network with one call. trt: the TensorRT module, imported if not given.
        Raises InputError for a plan that does not load or has other than one input and output, MissingDependency,
        MissingDevice (CudaError too).
        """
        trt = trt if trt is not None else _module(plan)
        check_version(plan, str(trt.__version__), what_is_here())  # what is imported counts, not what is installed
        self.path = plan.path
        self.name = plan.path.name
        self.info = plan.info
        self.precision = plan.precision
        self.last_gpu_ms = 0.0
        self._logger, self._messages = logger_of(trt)
        self._messages.start()
        self._trt = trt
        self._profiler: Any = None
        self._title = f"{TITLES[plan.backend]} {trt.__version__}"
        rtx_graph = cuda_graph and hasattr(trt, "CudaGraphStrategy")
        self._graph = cuda_graph and not rtx_graph  # TensorRT-RTX captures by itself, when its kernels are final
        self._runtime = self._engine = self._context = self._launch = None
        self._rows = 0
        self._cuda = cuda(graphs=self._graph)
        atexit.register(self.close)  # after CUDA's own, so that it runs before
        try:
            self._load(trt, plan, rtx_graph=rtx_graph)
            self._input.host[:] = 0
            self._run_rows(self.largest_batch)
        except BaseException:
            with suppress(CudaError):  # after a failed call, others fail too
                self.close()
            raise

    def _load(self, trt: Any, plan: Plan, *, rtx_graph: bool) -> None:
        """Deserialise, and take the contract from the engine: one input with its range of batches, one output.

        No TensorRT object is kept in a local variable: the traceback of an error would keep it past `close`.
        """
        try:
            self._runtime = trt.Runtime(self._logger)
        except Exception as cause:  # without a GPU; pybind11 makes a nullptr a TypeError
            raise MissingDevice(
                f"{self._title} cannot start: {self._said(str(cause))}.\n`msn-deploy doctor` shows what is here."
            ) from cause
        if plan.version_compatible:  # such a plan brings its own runtime library; it was found to be trusted
            self._runtime.engine_host_code_allowed = True
        if plan.dla_core is not None:
            cores = self._runtime.num_DLA_cores
            if plan.dla_core >= cores:
                raise MissingDevice(
                    f"{self.path} was built for DLA core {plan.dla_core}, and {self._title} finds {cores} here.\n"
                    "Build it again without `--dla`."
                )
            self._runtime.DLA_core = plan.dla_core
        self._engine = self._runtime.deserialize_cuda_engine(plan.data)
        if self._engine is None:
            raise InputError(
                f"{self._title} does not load {self.path}: {self._said('it gave no reason')}.\n"
                "Build it again here with `msn-deploy build-engine`."
            )
        self._context = self._new_context(trt, rtx_graph=rtx_graph)
        if self._context is None:
            raise MissingDevice(
                f"{self._title} cannot set {self.path} up: {self._said('it gave no reason')}.\n"
                "Most often the GPU has too little memory. Close other programs, or build for a smaller `--batch-size`."
            )
        self._take_contract(trt)

    def _new_context(self, trt: Any, *, rtx_graph: bool) -> Any:
        strategies = getattr(trt, "CudaGraphStrategy", None)
        if rtx_graph and hasattr(strategies, "WHOLE_GRAPH_CAPTURE") and hasattr(self._engine, "create_runtime_config"):
            settings = self._engine.create_runtime_config()
            if hasattr(settings, "cuda_graph_strategy"):
                settings.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
            return self._engine.create_execution_context(settings)
        return self._engine.create_execution_context()

    def _take_contract(self, trt: Any) -> None:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        if len(inputs) != 1 or len(outputs) != 1:
            raise InputError(f"{self.path} has {len(inputs)} inputs and {len(outputs)} outputs; one of each is run.")
        self.input_name, output = inputs[0], outputs[0]
        shape = tuple(int(size) for size in self._engine.get_tensor_shape(self.input_name))
        if not shape or -1 in shape[1:]:
            raise InputError(f"{self.path} takes {shape}; only the batch may be open.\nBuild it for one image size.")
        self.input_shape: tuple[int | None, ...] = tuple(None if size == -1 else size for size in shape)
        self._least = self.largest_batch = shape[0]
        if shape[0] == -1:
            smallest, _, largest = self._engine.get_tensor_profile_shape(self.input_name, 0)
            self._least, self.largest_batch = int(smallest[0]), int(largest[0])
        self._set_rows(self.largest_batch)
        made = tuple(int(size) for size in self._context.get_tensor_shape(output))
        if made[:1] != (self.largest_batch,) or -1 in made:
            raise InputError(f"{self.path} makes {made} of {self.largest_batch} images; one row for each is read.")
        self._input = self._bind(trt, self.input_name, (self.largest_batch, *shape[1:]))
        self._output = self._bind(trt, output, made)

    def _bind(self, trt: Any, name: str, shape: tuple[int, ...]) -> Pair:
        """Give a tensor its buffers."""
        dtype = self._engine.get_tensor_dtype(name)
        known = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16"}
        if dtype not in known:
            raise InputError(f"{self.path} has tensor {name} of {dtype}; floats are fed and read.")
        pair = self._cuda.allocate(shape, known[dtype])
        self._must(self._context.set_tensor_address(name, pair.device), f"take the address of {name}")
        return pair

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (N, C, H, W) to float32 (N, classes), for any N.

        More images than the engine's largest batch run in several. Fewer than its smallest share the buffer with images
        from before, and what comes of those is dropped. Raises InputError if the shape does not fit.
        """
        import numpy as np  # late: importing this module must stay light

        if self._context is None:
            raise RuntimeError(f"{self.name} was closed")
        check_images(batch, self.input_shape, name=self.name)
        logits = np.empty((len(batch), *self._output.host.shape[1:]), dtype=np.float32)
        gpu_ms = 0.0
        for start in range(0, len(batch), self.largest_batch):
            part = batch[start : start + self.largest_batch]
            rows = max(len(part), self._least)
            self._input.host[: len(part)] = part
            self._run_rows(rows)
            logits[start : start + len(part)] = self._output.host[: len(part)]
            gpu_ms += self.last_gpu_ms
        self.last_gpu_ms = gpu_ms
        return logits

    def _run_rows(self, rows: int) -> None:
        """Run what lies in the first rows of the input buffer."""
        self._set_rows(rows)
        self._cuda.copy(self._input, rows, to_device=True)
        self._cuda.timed(self._launch or self._enqueue)
        self._cuda.copy(self._output, rows, to_device=False)
        self.last_gpu_ms = self._cuda.wait()
        if self._profiler is not None:
            self._messages.raise_held()
        if self._graph and self._launch is None:
            # Not before a plain run of this shape: that is when TensorRT allocates, which a capture may not hold.
            self._launch = self._cuda.capture(self._enqueue)

    def _set_rows(self, rows: int) -> None:
        if rows == self._rows:
            return
        self._launch = None  # a graph holds one shape
        self._must(
            self._context.set_input_shape(self.input_name, (rows, *self.input_shape[1:])), f"take a batch of {rows}"
        )
        self._rows = rows

    def _enqueue(self) -> None:
        self._must(self._context.execute_async_v3(self._cuda.stream), "run")

    def report_layers(self, report: Callable[[str, float], None]) -> str:
        """From now on call `report(layer, ms)` for every layer of every run; return what the inspector says of them.

        TensorRT then waits after each run, so runs take longer, and they are not replayed from a graph.
        """
        if self._context is None:
            raise RuntimeError(f"{self.name} was closed")
        messages = self._messages

        class Profiler(self._trt.IProfiler):  # type: ignore[misc]
            def __init__(self, trt: Any) -> None:
                trt.IProfiler.__init__(self)  # pybind11 needs the base called by name

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                try:
                    report(layer_name, ms)
                except BaseException as cause:  # into C++ it would abort the process
                    messages.hold(cause)

        self._profiler = Profiler(self._trt)  # the context keeps a bare pointer
        self._context.profiler = self._profiler
        self._graph, self._launch = False, None
        form = self._trt.LayerInformationFormat.JSON
        return str(self._engine.create_engine_inspector().get_engine_information(form))

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise CudaError(
                f"{self._title} could not {what} with {self.path}: {self._said('it gave no reason')}.\n"
                "`msn-deploy doctor` shows what is here."
            )

    def _said(self, otherwise: str) -> str:
        errors = self._messages.errors()
        return errors[0] if errors else shorten(otherwise)

    def close(self) -> None:
        """Free the engine, then the buffers, then CUDA; `run` cannot be called afterwards. May be called twice."""
        atexit.unregister(self.close)
        self._launch = None
        self._context = None  # before its engine, which goes before its runtime: each points into the next
        self._profiler = None
        self._engine = None
        self._runtime = None
        self._cuda.close()


def _module(plan: Plan) -> Any:
    """Import the plan's TensorRT."""
    try:
        return require({"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}[plan.backend], step=_STEP)
    except OSError as cause:  # a wheel whose shared libraries do not load
        raise MissingDependency(f"{TITLES[plan.backend]} does not load: {cause}.") from cause
