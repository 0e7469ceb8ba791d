"""A stand-in for the GPU: a TensorRT whose engines are numpy functions, and CUDA whose stream is a list.

What is queued happens in `wait`, as on a GPU: a runner that reads its output too early, copies too little, or queues in
another order gets other numbers. Addresses are keys into `Gpu.memory`. `log` holds what was freed, in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from types import SimpleNamespace

import numpy as np

from msn_deploy.engine.cuda import CudaError, Pair
from msn_deploy.engine.tensors import TYPES

CLASSES = 5
WEIGHT = np.random.default_rng(5).standard_normal((3 * 8 * 8, CLASSES)).astype(np.float32)


def logits(images):
    """What the engine computes."""
    return images.reshape(len(images), -1).astype(np.float32) @ WEIGHT


class Gpu:
    """Memory and one stream; who opens it while it is in use gets another stream. refuse: the call that fails."""

    def __init__(self, log=None, refuse=None):
        self.log = [] if log is None else log
        self.refuse = refuse
        self.memory, self.queued, self.pairs = {}, [], []
        self.recording = None
        self.captures = self.launches = 0
        self.mapped = False
        self.is_open = True
        self.stream, self.is_taken = 4711, False
        self.current_in = {get_ident()}  # threads
        self.streams = {self.stream: self}

    def __call__(self, *, graphs, wait=None, mapped=False):
        if self.is_taken and self.is_open:
            other = Gpu(self.log, self.refuse)
            other.memory, other.pairs, other.streams = self.memory, self.pairs, self.streams
            other.stream = self.stream + len(self.streams)
            self.streams[other.stream] = other
            return other(graphs=graphs, wait=wait, mapped=mapped)
        self.is_taken = True
        self.graphs, self.waits, self.mapped = graphs, wait, mapped
        return self

    def _check(self, call):
        assert self.is_open, f"{call} after close"
        assert get_ident() in self.current_in, f"{call} in a thread without the context"
        if self.refuse == call:
            raise CudaError(f"CUDA says {call} failed: out of memory.")

    def queue(self, work):
        (self.queued if self.recording is None else self.recording).append(work)

    def allocate(self, shape, dtype):
        self._check("allocate")
        address = 0x1000 * (len(self.memory) + 1)
        host = np.full(shape, np.nan if "float" in dtype else 1, dtype)
        self.memory[address] = host if self.mapped else host.copy()
        self.pairs.append(Pair(host, address, mapped=self.mapped))
        return self.pairs[-1]

    def copy(self, pair, rows, *, to_device):
        self._check("copy")
        assert self.recording is None
        if pair.mapped:
            return
        device = self.memory[pair.device]

        def work():
            source, target = (pair.host, device) if to_device else (device, pair.host)
            target[:rows] = source[:rows]

        self.queue(work)

    @contextmanager
    def here(self):
        entered = get_ident() not in self.current_in
        self.current_in.add(get_ident())
        yield
        if entered:
            self.current_in.remove(get_ident())

    def used_bytes(self):
        return 3 << 30

    def timed(self, work):
        self._check("timed")
        work()

    def wait(self):
        self._check("wait")
        for work in self.queued:
            work()
        self.queued = []
        return 2.0

    def capture(self, work):
        self._check("capture")
        assert self.graphs
        assert not self.queued, "a capture while work is queued"
        self.captures += 1
        self.recording = []
        work()
        recorded, self.recording = self.recording, None

        def launch():
            self.launches += 1
            self.queued += recorded

        return launch

    def close(self):
        if self.is_open:
            self.log.append("cuda")
        self.is_open = False


class Logged:
    """Something whose end goes into the log."""

    _log: list | None = None  # until it is made

    def __init__(self, log, name):
        self._log, self._name = log, name

    def __del__(self):
        if self._log is not None:
            self._log.append(self._name)


@dataclass(frozen=True)
class Net:
    """What an engine is: inputs as name -> (dtype, shape, profile), outputs as name -> (dtype, shape), -1 for open.

    shapes: of the outputs, by the shapes of the inputs; -1 where the data decide. compute: named arrays to named
    arrays. on_host: tensors that lie on the host alone.
    """

    inputs: Mapping
    outputs: Mapping
    shapes: Callable
    compute: Callable
    on_host: frozenset = frozenset()


def images_net(shape, profile, dtypes, inputs, outputs, made):
    """All inputs are of one shape; the first output is of their sum, a further one twice that."""
    names = [*inputs, *outputs]
    kinds = {name: dtypes[min(at, len(dtypes) - 1)] for at, name in enumerate(names)}

    def compute(feeds):
        answer = logits(sum(feeds[name] for name in inputs))
        return {name: times * answer for times, name in enumerate(outputs, 1)}

    return Net(
        inputs={name: (kinds[name], shape, profile) for name in inputs},
        outputs={name: (kinds[name], (shape[0], CLASSES) if shape else ()) for name in outputs},
        shapes=lambda given: dict.fromkeys(outputs, (given[inputs[0]][0], CLASSES) if made is None else made),
        compute=compute,
    )


def module(
    gpu,
    *,
    shape=(4, 3, 8, 8),
    profile=((1, 3, 8, 8), (4, 3, 8, 8), (4, 3, 8, 8)),
    dtypes=("float32", "float32"),
    inputs=("x",),
    outputs=("logits",),
    made=None,
    net=None,
    dla_cores=0,
    refuse=None,
    version="10.3.0.30",
    rtx=False,
    inspected="{}",
    layers=None,
):
    """A TensorRT for `gpu` that knows one engine. refuse: the call that fails, as TensorRT does: with a message.

    net: the engine; one of images_net if not given. inspected: what the engine's inspector says. layers: ms of each; a
    profiler hears n times that in its n-th run.
    """
    net = net or images_net(shape, profile, dtypes, inputs, outputs, made)
    trt = SimpleNamespace(__version__=version)
    trt.seen = seen = SimpleNamespace(plan=None, host_code=False, dla=None, strategy=None, shapes=[])
    trt.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    trt.TensorLocation = SimpleNamespace(HOST="host", DEVICE="device")
    if rtx:
        trt.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")

    class ILogger:
        def __init__(self):
            pass

    class IProfiler:
        def __init__(self):
            self.begun = True  # the base was called, which pybind11 needs

    class IOutputAllocator(IProfiler):
        pass

    trt.ILogger, trt.IProfiler, trt.IOutputAllocator = ILogger, IProfiler, IOutputAllocator
    trt.LayerInformationFormat = SimpleNamespace(JSON="json")
    names = [*net.inputs, *net.outputs]

    def fails(call, logger):
        if refuse == call:
            logger.log(1, f"Error Code 2: {call} went wrong (. In foo at /x/y.cpp:3)")
        return refuse == call

    class Context(Logged):
        def __init__(self, logger):
            super().__init__(gpu.log, "context")
            self.logger, self.shapes, self.addresses, self.allocators = logger, {}, {}, {}
            self.profiler, self.profiled = None, 0

        def set_input_shape(self, name, wanted):
            assert name in net.inputs
            assert all(type(size) is int for size in wanted)
            if fails("set_input_shape", self.logger):
                return False
            self.shapes[name] = tuple(wanted)
            seen.shapes.append(wanted[0] if wanted else None)
            return True

        def get_tensor_shape(self, name):
            return net.shapes(self.shapes)[name]

        def set_tensor_address(self, name, address):
            assert type(address) is int
            self.addresses[name] = address
            return not fails("set_tensor_address", self.logger)

        def set_output_allocator(self, name, allocator):
            assert allocator.begun
            self.allocators[name] = allocator
            return not fails("set_output_allocator", self.logger)

        def execute_async_v3(self, stream):
            own = gpu.streams[stream]
            shapes, addresses = dict(self.shapes), dict(self.addresses)  # not the context, which would live on

            def answers():
                return net.compute(
                    {
                        name: gpu.memory[addresses[name]][: math.prod(shapes[name])].reshape(shapes[name])
                        for name in net.inputs
                    }
                )

            if self.allocators:  # what the data decide is known when they are: TensorRT waits for them
                own.wait()
                for name, array in answers().items():
                    if name in self.allocators:
                        addresses[name] = self.allocators[name].reallocate_output(name, 0, array.nbytes, 256)
                        self.allocators[name].notify_shape(name, array.shape)
                if not all(addresses.values()):
                    return False

            def work():
                for name, array in answers().items():
                    answer = array.ravel()
                    if name in net.on_host:
                        pair = next(each for each in gpu.pairs if each.host.ctypes.data == addresses[name])
                        pair.host[: answer.size] = answer
                        continue
                    target = gpu.memory[addresses[name]][: answer.size]
                    target[:] = answer[: target.size]

            own.queue(work)
            if self.profiler is not None:
                assert own.recording is None
                assert self.profiler.begun
                self.profiled += 1
                for name, ms in (layers or {}).items():
                    self.profiler.report_layer_time(name, ms * self.profiled)
            return not fails("execute_async_v3", self.logger)

    class Engine(Logged):
        num_io_tensors = len(names)

        def __init__(self, logger):
            super().__init__(gpu.log, "engine")
            self.logger = logger
            if rtx:
                self.create_runtime_config = lambda: SimpleNamespace(cuda_graph_strategy="none")

        def get_tensor_name(self, index):
            return names[index]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.INPUT if name in net.inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_location(self, name):
            return trt.TensorLocation.HOST if name in net.on_host else trt.TensorLocation.DEVICE

        def get_tensor_shape(self, name):
            return {**net.inputs, **net.outputs}[name][1]

        def get_tensor_profile_shape(self, name, index):
            assert index == 0
            assert -1 in net.inputs[name][1]
            return net.inputs[name][2]

        def get_tensor_dtype(self, name):
            return SimpleNamespace(name=TYPES[{**net.inputs, **net.outputs}[name][0]])

        def create_engine_inspector(self):
            return SimpleNamespace(get_engine_information=lambda form: inspected if form == "json" else "")

        def create_execution_context(self, settings=None):
            seen.strategy = settings and settings.cuda_graph_strategy
            return None if fails("create_execution_context", self.logger) else Context(self.logger)

    class Runtime(Logged):
        num_DLA_cores = dla_cores  # noqa: N815
        engine_host_code_allowed = False
        DLA_core = None

        def __init__(self, logger):
            if fails("Runtime", logger):
                raise TypeError("pybind11::init(): factory function returned nullptr")
            super().__init__(gpu.log, "runtime")
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            seen.plan, seen.host_code, seen.dla = plan, self.engine_host_code_allowed, self.DLA_core
            return None if fails("deserialize_cuda_engine", self.logger) else Engine(self.logger)

    trt.Runtime = Runtime
    return trt
