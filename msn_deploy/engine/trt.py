"""How does a plan run? By the tensor API that TensorRT has had since 8.5, and TensorRT-RTX has too."""

from __future__ import annotations

import atexit
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice, shorten
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.core.optional import require
from msn_deploy.engine.backends import load_plugins
from msn_deploy.engine.build_log import Messages, logger_of
from msn_deploy.engine.cuda import Cuda, CudaError, Pair, Wait, Work, open_cuda
from msn_deploy.engine.plan import TITLES, Plan, what_is_here
from msn_deploy.engine.preflight import check_version
from msn_deploy.engine.runner import check_feeds, sizes_text
from msn_deploy.engine.tensors import TYPES
from msn_deploy.machine.jetpacks import numbers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEP = "running an engine"
_TYPES = {theirs: ours for ours, theirs in TYPES.items() if ours != "bfloat16"}  # numpy lacks it
_Shape = tuple[int, ...]


class Runtime(Protocol):
    """What is used of trt.Runtime."""

    num_DLA_cores: int  # noqa: N815
    DLA_core: int
    engine_host_code_allowed: bool
    deserialize_cuda_engine: Callable[[bytes], Any]


class Engine(Protocol):
    """What is used of trt.ICudaEngine."""

    num_io_tensors: int
    get_tensor_name: Callable[[int], str]
    get_tensor_mode: Callable[[str], Any]
    get_tensor_shape: Callable[[str], _Shape]
    get_tensor_profile_shape: Callable[[str, int], tuple[_Shape, _Shape, _Shape]]
    get_tensor_dtype: Callable[[str], Any]
    get_tensor_location: Callable[[str], Any]
    create_runtime_config: Callable[[], Any]
    create_execution_context: Callable[..., Any]
    create_engine_inspector: Callable[[], Any]


class Context(Protocol):
    """What is used of trt.IExecutionContext."""

    profiler: Any
    set_input_shape: Callable[[str, _Shape], bool]
    get_tensor_shape: Callable[[str], _Shape]
    set_tensor_address: Callable[[str, int], bool]
    set_output_allocator: Callable[[str, Any], bool]
    execute_async_v3: Callable[[int], bool]


class TrtRunner:
    """A plan in TensorRT or TensorRT-RTX, with one stream and page-locked buffers for its largest inputs.

    last_gpu_ms: what the network alone took on the GPU in the last run, ms, without the copies. Any thread may `run`
    it, one at a time; all else is for the thread that made it, which can keep a query in flight on each of several
    runners: `another`, `submit`, `collect`. Give it a plan that `preflight` returned: loading one runs the code in it.
    """

    # From loading to `close`; each points into the next.
    _context: Context
    _engine: Engine
    _runtime: Runtime

    def __init__(
        self,
        plan: Plan,
        *,
        cuda_graph: bool = False,
        wait: Wait | None = None,
        mapped: bool = False,
        trt: Any = None,
        cuda: Callable[..., Cuda] = open_cuda,
        beside: TrtRunner | None = None,
    ) -> None:
        """Load the plan and run it once, since TensorRT-RTX compiles kernels for this GPU on the way.

        Args:
            plan: What `preflight` returned.
            cuda_graph: Queue the whole network with one call.
            wait: See `open_cuda`.
            mapped: See `open_cuda`.
            trt: The TensorRT module; imported if not given.
            cuda: What opens CUDA.
            beside: A runner of this plan whose engine can serve this one too. See `another`.

        Raises:
            InputError: The plan does not load, has tensors of types that numpy lacks, or cannot be replayed.
            MissingDependency: TensorRT, or a way to CUDA.
            MissingDevice: The GPU is not there, or fails; CudaError too.
        """
        trt = trt if trt is not None else _module(plan)
        check_version(plan, str(trt.__version__), what_is_here())  # what is imported counts, not what is installed
        self.path, self.name, self.info = plan.path, plan.path.name, plan.info
        self.last_gpu_ms = 0.0
        if beside is None:
            self._logger, self._messages = logger_of(trt)
            self._messages.start()
        else:  # the engine tells what goes wrong to the one that it was loaded with
            self._logger, self._messages = beside._logger, beside._messages
        self._trt = trt
        self._thread = get_ident()
        self._asked = (plan, cuda_graph, wait, mapped, cuda)
        self._profiler: Any = None
        self._title = f"{TITLES[plan.backend]} {trt.__version__}"
        rtx_graph = cuda_graph and hasattr(trt, "CudaGraphStrategy")
        self._graph = cuda_graph and not rtx_graph  # TensorRT-RTX captures by itself, when its kernels are final
        self._launch: Work | None = None
        self._shapes: dict[str, _Shape] = {}
        self._made: dict[str, _Shape] = {}
        self._pairs: dict[str, Pair] = {}
        self._cuda = cuda(graphs=self._graph, wait=wait, mapped=mapped)
        atexit.register(self.close)  # after CUDA's own, so that it runs before
        try:
            if beside is None:
                self._load(trt, plan)
            else:
                self._runtime, self._engine = beside._runtime, beside._engine
            self._set_up(trt, rtx_graph=rtx_graph)
            self._take_contract(trt)
            for spec in self.inputs:
                self._pairs[spec.name].host[:] = 0
            self._queue(self._shapes)
            self.finish()
        except BaseException:
            with suppress(CudaError):  # after a failed call, others fail too
                self.close()
            raise

    def another(self) -> TrtRunner:
        """Return a runner of the same engine with a context, a stream and buffers of its own.

        Before TensorRT 10, contexts of an engine that leaves sizes open cannot share its optimization profile, so that
        such an engine is loaded again. Raises as a new runner does.
        """
        plan, cuda_graph, wait, mapped, cuda = self._asked
        fixed = all(None not in (spec.shape or ()) for spec in self.inputs)
        shared = fixed or plan.backend != "tensorrt" or numbers_of(str(self._trt.__version__)) >= (10,)
        return TrtRunner(
            plan,
            cuda_graph=cuda_graph,
            wait=wait,
            mapped=mapped,
            trt=self._trt,
            cuda=cuda,
            beside=self if shared else None,
        )

    def _load(self, trt: Any, plan: Plan) -> None:
        """Load what the plan needs, and deserialise it.

        No TensorRT object is kept in a local variable: the traceback of an error would keep it past `close`.
        """
        load_plugins(trt, self._logger, plan.plugins, title=self._title)
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
                f"{self._title} does not load {self.path}: {self._said('no reason given')}.\n"
                "Build it again here with `msn-deploy build-engine`."
            )

    def _set_up(self, trt: Any, *, rtx_graph: bool) -> None:
        self._context = self._new_context(trt, rtx_graph=rtx_graph)
        if self._context is None:
            raise MissingDevice(
                f"{self._title} cannot set {self.path} up: {self._said('no reason given')}.\n"
                "Most often the GPU has too little memory. Close other programs, or build for a smaller `--batch-size`."
            )

    def _new_context(self, trt: Any, *, rtx_graph: bool) -> Any:
        strategies: Any = getattr(trt, "CudaGraphStrategy", None)
        if rtx_graph and hasattr(strategies, "WHOLE_GRAPH_CAPTURE") and hasattr(self._engine, "create_runtime_config"):
            settings = self._engine.create_runtime_config()
            if hasattr(settings, "cuda_graph_strategy"):
                settings.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
            return self._engine.create_execution_context(settings)
        return self._engine.create_execution_context()

    def _take_contract(self, trt: Any) -> None:
        """Take inputs and outputs from the engine, and give each a buffer for its largest shape."""
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self.inputs = tuple(self._spec(name) for name in names if modes[name] == trt.TensorIOMode.INPUT)
        self.outputs = tuple(self._spec(name) for name in names if modes[name] == trt.TensorIOMode.OUTPUT)
        self._ranges = {spec.name: self._range(spec) for spec in self.inputs}
        least, most = next(iter(self._ranges.values()), ((), ()))
        self.batch_range: tuple[int, int | None] = (least[0], most[0]) if least else (1, None)
        self._set_shapes({name: most for name, (_, most) in self._ranges.items()})
        decided = {spec.name: spec.dtype for spec in self.outputs if -1 in self._made[spec.name]}
        if decided and self._graph:
            raise InputError(
                f"{self.path} makes {', '.join(decided)} of a size that the data decide, so its runs are not alike.\n"
                "Leave `--cuda-graph` out."
            )
        self._decided = DecidedOutputs(self._cuda, decided)
        if decided:
            self._allocator = allocator_of(trt, self._decided, self._messages)  # the context keeps a bare pointer
        for name in decided:
            self._must(self._context.set_output_allocator(name, self._allocator), f"take an allocator for {name}")
        specs = [spec for spec in (*self.inputs, *self.outputs) if spec.name not in decided]
        self._on_host = {
            spec.name for spec in specs if self._engine.get_tensor_location(spec.name) == trt.TensorLocation.HOST
        }
        self._pairs = {spec.name: self._bind(spec) for spec in specs}

    def _spec(self, name: str) -> TensorSpec:
        dtype = self._engine.get_tensor_dtype(name).name
        if dtype not in _TYPES:
            raise InputError(f"{self.path} has tensor {name} of {dtype}; numpy has no such type.")
        shape = tuple(None if size == -1 else int(size) for size in self._engine.get_tensor_shape(name))
        return TensorSpec(name, _TYPES[dtype], shape)

    def _range(self, spec: TensorSpec) -> tuple[_Shape, _Shape]:
        """Return the smallest and the largest shape that an input takes."""
        shape = self._engine.get_tensor_shape(spec.name)
        least = most = shape
        if -1 in shape:
            least, _, most = self._engine.get_tensor_profile_shape(spec.name, 0)
        return tuple(int(size) for size in least), tuple(int(size) for size in most)

    def _bind(self, spec: TensorSpec) -> Pair:
        """Give a tensor its buffers: flat, since its shape may be another in each run. Sizes lie on the host alone."""
        shape = self._shapes.get(spec.name) or self._made.get(spec.name, ())
        pair = self._cuda.allocate((max(math.prod(shape), 1),), spec.dtype)  # an empty one has an address, too
        address = pair.host.ctypes.data if spec.name in self._on_host else pair.device
        self._must(self._context.set_tensor_address(spec.name, address), f"take the address of {spec.name}")
        return pair

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See Runner. Raises InputError also for shapes outside the range that the engine was built for."""
        elsewhere = get_ident() != self._thread
        with self._cuda.here() if elsewhere else nullcontext():
            self.submit(feeds)
            return self.collect()

    def submit(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Queue a run and return at once; `collect` has to follow before the next. Raises as `run`."""
        self._queue(self._placed(feeds))

    def collect(self) -> dict[str, NDArray[Any]]:
        """Wait for the run that `submit` queued, and return what it made."""
        self.finish()
        made = {}
        for spec in self.outputs:
            shape, pair = self._output(spec.name)
            made[spec.name] = pair.host[: math.prod(shape)].reshape(shape).copy()
        return made

    def submit_again(self) -> None:
        """Queue the network once more on what the last run left on the GPU, without copies; `finish` has to follow."""
        self._cuda.timed(self._launch or self._enqueue)

    def run_in_stages(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[float, float, float]:
        """Copy in, compute and copy out, with a wait after each; returns what each took on the GPU, ms."""
        shapes = self._placed(feeds)
        self._set_shapes(shapes)
        if self._graph and self._launch is None:
            self._queue(shapes)
            self.finish()
        taken = []
        for stage in (lambda: self._copy_in(shapes), self._launch or self._enqueue, self._copy_out):
            self._cuda.timed(stage)
            taken.append(self._cuda.wait())
            self._messages.raise_held()
        copy_in, compute, copy_out = taken
        return copy_in, compute, copy_out

    def memory_mib(self) -> float:
        """Return how much memory of the GPU is in use, by all programs."""
        return self._cuda.used_bytes() / 2**20

    def _placed(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, _Shape]:
        """Put feeds into the input buffers; returns their shapes."""
        if not hasattr(self, "_context"):
            raise RuntimeError(f"{self.name} was closed")
        check_feeds(feeds, self.inputs, name=self.name)
        for name, (least, most) in self._ranges.items():
            array = feeds[name]
            if any(not low <= size <= high for low, size, high in zip(least, array.shape, most, strict=True)):
                raise InputError(
                    f"{self.name}: the input {name} takes {sizes_text(least)} to {sizes_text(most)}; it is fed "
                    f"{sizes_text(array.shape)}.\nBuild the engine for those sizes."
                )
            self._pairs[name].host[: array.size].reshape(array.shape)[...] = array
        return {name: feeds[name].shape for name in self._ranges}

    def _output(self, name: str) -> tuple[_Shape, Pair]:
        """Return the shape and the buffers that an output had in the last run that was queued."""
        return self._decided.last(name) if name in self._decided.dtypes else (self._made[name], self._pairs[name])

    def _queue(self, shapes: dict[str, _Shape]) -> None:
        """Queue a run of what the input buffers hold, taken as of these shapes."""
        self._set_shapes(shapes)
        self._copy_in(shapes)
        self._cuda.timed(self._launch or self._enqueue)
        self._copy_out()

    def _copy_in(self, shapes: Mapping[str, _Shape]) -> None:
        for name, shape in shapes.items():
            if name not in self._on_host:
                self._cuda.copy(self._pairs[name], math.prod(shape), to_device=True)

    def _copy_out(self) -> None:
        for name in self._made:
            if name not in self._on_host:
                size, pair = self._output(name)
                self._cuda.copy(pair, math.prod(size), to_device=False)

    def finish(self) -> None:
        """Wait for what is queued, and leave the outputs where they are."""
        self.last_gpu_ms = self._cuda.wait()
        self._messages.raise_held()
        if self._graph and self._launch is None:
            # Not before a plain run of these shapes: that is when TensorRT allocates, which a capture may not hold.
            self._launch = self._cuda.capture(self._enqueue)

    def _set_shapes(self, shapes: dict[str, _Shape]) -> None:
        if shapes == self._shapes:
            return
        self._launch = None  # a graph holds one set of shapes
        self._shapes = {}
        for name, shape in shapes.items():
            self._must(self._context.set_input_shape(name, shape), f"take {sizes_text(shape)} as {name}")
        self._made = {
            spec.name: tuple(int(size) for size in self._context.get_tensor_shape(spec.name)) for spec in self.outputs
        }
        self._shapes = shapes
        for spec in self.outputs:  # smaller inputs need not make smaller outputs
            if spec.name in self._pairs and math.prod(self._made[spec.name]) > self._pairs[spec.name].host.size:
                self._pairs[spec.name] = self._bind(spec)

    def _enqueue(self) -> None:
        done = self._context.execute_async_v3(self._cuda.stream)
        self._messages.raise_held()  # of our allocator, which is why it failed
        self._must(done, "run")

    def report_layers(self, report: Callable[[str, float], None]) -> str:
        """From now on call `report(layer, ms)` for every layer of every run; return what the inspector says of them.

        TensorRT then waits after each run, so runs take longer, and they are not replayed from a graph.
        """
        if not hasattr(self, "_context"):
            raise RuntimeError(f"{self.name} was closed")
        messages = self._messages
        trt: Any = self._trt

        class Profiler(trt.IProfiler):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)  # pybind11 needs the base called by name

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                try:
                    report(layer_name, ms)
                except BaseException as cause:  # into C++ it would abort the process
                    messages.hold(cause)

        self._profiler = Profiler()  # the context keeps a bare pointer
        self._context.profiler = self._profiler
        self._graph, self._launch = False, None
        form = trt.LayerInformationFormat.JSON
        return str(self._engine.create_engine_inspector().get_engine_information(form))

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise CudaError(
                f"{self._title} could not {what} with {self.path}: {self._said('no reason given')}.\n"
                "`msn-deploy doctor` shows what is here."
            )

    def _said(self, otherwise: str) -> str:
        errors = self._messages.errors()
        return errors[0] if errors else shorten(otherwise)

    def close(self) -> None:
        """Free the engine, then the buffers, then CUDA; `run` cannot be called afterwards. May be called twice."""
        atexit.unregister(self.close)
        self._launch = None
        for name in ("_context", "_allocator", "_profiler", "_engine", "_runtime"):
            self.__dict__.pop(name, None)
        self._cuda.close()


class DecidedOutputs:
    """Outputs whose size the data decide (NonMaxSuppression, NonZero): their buffers and last shapes, by name.

    TensorRT asks for the memory and tells the shape while it queues a run. dtypes: of each output, by numpy's name.
    """

    def __init__(self, cuda: Cuda, dtypes: Mapping[str, str]) -> None:
        self._cuda, self.dtypes = cuda, dtypes
        self._pairs: dict[str, Pair] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def room(self, name: str, size: int) -> int:
        """Return the address of a buffer of at least `size` bytes; it only grows."""
        pair = self._pairs.get(name)
        if pair is None or pair.host.nbytes < size:
            import numpy as np  # late: importing this module must stay light

            elements = -(-size // np.dtype(self.dtypes[name]).itemsize)
            pair = self._pairs[name] = self._cuda.allocate((max(elements, 1),), self.dtypes[name])
        return pair.device

    def last(self, name: str) -> tuple[tuple[int, ...], Pair]:
        """Return the shape and the buffers of the last run that was queued."""
        self.room(name, 1)  # TensorRT need not ask for what is empty
        return self.shapes[name], self._pairs[name]


def allocator_of(trt: Any, outputs: DecidedOutputs, messages: Messages) -> Any:
    """Return an IOutputAllocator that uses those buffers; what goes wrong in it is kept in `messages`."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)  # pybind11 needs the base called by name

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            try:
                return outputs.room(tensor_name, size)
            except BaseException as cause:  # into C++ it would abort the process
                messages.hold(cause)
                return 0

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            try:
                outputs.shapes[tensor_name] = tuple(int(each) for each in shape)
            except BaseException as cause:
                messages.hold(cause)

    return Allocator()


def _module(plan: Plan) -> Any:
    """Import the plan's TensorRT."""
    try:
        return require({"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}[plan.backend], step=_STEP)
    except OSError as cause:  # a wheel whose shared libraries do not load
        raise MissingDependency(f"{TITLES[plan.backend]} does not load: {cause}.") from cause
