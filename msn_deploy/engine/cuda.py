"""How does the host talk to the GPU? The only file that knows pycuda and NVIDIA's cuda-bindings.

A runner needs four things of CUDA, on one stream of the primary context, which is also TensorRT's: a pair of buffers
(`allocate`), asynchronous copies between them (`copy`), the GPU's own time of some work (`timed`, `wait`), and a CUDA
graph of it (`capture`). Both packages are thin over the same driver calls; pycuda has none for graphs.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from msn_deploy.core.errors import MissingDependency, MissingDevice

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
Work = Callable[[], None]


class CudaError(MissingDevice):
    """A CUDA call failed: which one, and what the driver says of it."""


@dataclass(slots=True)
class Pair:
    """The same array twice: page-locked on the host, and at an address on the GPU."""

    host: NDArray[Any]
    device: int

    def forget(self) -> None:
        """Let go of the host's memory before it is freed."""
        self.host = self.host[:0].copy()


class Cuda(Protocol):
    """One stream on the first GPU. All methods raise CudaError; all are called from the thread that opened it."""

    stream: int

    def allocate(self, shape: Sequence[int], dtype: str) -> Pair:
        """Return a pair of buffers of a shape and a numpy dtype; their content is undefined."""
        ...

    def copy(self, pair: Pair, rows: int, *, to_device: bool) -> None:
        """Queue the copy of the first `rows` rows, to the GPU or back."""
        ...

    def timed(self, work: Work) -> None:
        """Queue `work` between two events."""
        ...

    def wait(self) -> float:
        """Wait for all that is queued; returns the GPU's time between the last two events, ms."""
        ...

    def capture(self, work: Work) -> Work:
        """Record what `work` queues, without running it; returns what queues the recording, which replaces the last."""
        ...

    def close(self) -> None:
        """Free everything; it may be called twice."""
        ...


def open_cuda(*, graphs: bool = False) -> Cuda:
    """Return pycuda's CUDA, or that of cuda-bindings where pycuda is not installed; graphs: one that has `capture`.

    Raises MissingDependency without a package, CudaError without a GPU or driver.
    """
    causes = []
    for kind in (BindingsCuda,) if graphs else (PyCuda, BindingsCuda):
        try:
            return kind()
        except ImportError as cause:
            causes.append(str(cause))
    why = "a CUDA graph needs cuda-bindings" if graphs else "running an engine needs pycuda or cuda-bindings"
    raise MissingDependency(
        f"{why}, which could not be imported ({'; '.join(causes)}).\n"
        "Install pycuda on a Jetson with: pip install 'msn-deploy[jetson]'   (compiles against JetPack's CUDA)\n"
        "or cuda-bindings anywhere with: pip install 'msn-deploy[gpu]'   (CUDA 12: pip install 'cuda-bindings==12.*')"
    )


def _explained(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turn pycuda's errors, which name the call, into ours."""

    @functools.wraps(method)
    def checked(self: PyCuda, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except self.error as cause:
            raise _error(str(cause)) from cause

    return checked


class PyCuda:
    """CUDA by pycuda. All of them share one push of the primary context, as pycuda keeps a stack of its own."""

    _context: ClassVar[Any] = None
    _users: ClassVar[int] = 0

    def __init__(self) -> None:
        import pycuda.driver as driver

        self._driver, self.error = driver, driver.Error
        self._held = ExitStack()  # what is to be freed, the last first
        atexit.register(self.close)  # pycuda aborts a process that ends with a context pushed
        try:
            self._start()
        except CudaError:
            self.close()
            raise

    @_explained
    def _start(self) -> None:
        if PyCuda._users == 0:
            # What pycuda.autoprimaryctx does, but that one can't be undone before the process ends.
            self._driver.init()
            context = self._driver.Device(0).retain_primary_context()
            context.push()
            PyCuda._context = context
        PyCuda._users += 1
        self._held.callback(self._leave)
        self._held.callback(self._drop)
        self._stream: Any = self._driver.Stream(_NON_BLOCKING)
        self._events: Any = (self._driver.Event(), self._driver.Event())
        self.stream: int = self._stream.handle

    def _drop(self) -> None:
        self._events = self._stream = None  # pycuda destroys them with the last reference

    @staticmethod
    def _leave() -> None:
        PyCuda._users -= 1
        if PyCuda._users == 0:
            PyCuda._context.pop()
            PyCuda._context = None

    @_explained
    def allocate(self, shape: Sequence[int], dtype: str) -> Pair:
        host = self._driver.pagelocked_empty(tuple(shape), dtype)
        memory = self._driver.mem_alloc(host.nbytes)
        pair = Pair(host, int(memory))
        self._held.callback(pair.forget)  # page-locked memory goes with the last array over it
        self._held.callback(memory.free)
        return pair

    @_explained
    def copy(self, pair: Pair, rows: int, *, to_device: bool) -> None:
        if to_device:
            self._driver.memcpy_htod_async(pair.device, pair.host[:rows], self._stream)
        else:
            self._driver.memcpy_dtoh_async(pair.host[:rows], pair.device, self._stream)

    @_explained
    def timed(self, work: Work) -> None:
        self._events[0].record(self._stream)
        work()
        self._events[1].record(self._stream)

    @_explained
    def wait(self) -> float:
        self._stream.synchronize()
        return float(self._events[0].time_till(self._events[1]))

    def capture(self, work: Work) -> Work:
        raise MissingDependency(
            "pycuda has no CUDA graphs; cuda-bindings has.\nInstall it with: pip install 'msn-deploy[gpu]'"
        )

    @_explained
    def close(self) -> None:
        atexit.unregister(self.close)
        self._held.close()


class BindingsCuda:
    """CUDA by NVIDIA's cuda-bindings, version 12 and later."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._graph: Any = None
        self._held = ExitStack()  # what is to be freed, the last first
        atexit.register(self.close)
        try:
            self._call("cuInit", 0)
            device = self._call("cuDeviceGet", 0)
            context = self._call("cuDevicePrimaryCtxRetain", device)
            self._later("cuDevicePrimaryCtxRelease", device)
            self._call("cuCtxPushCurrent", context)
            self._later("cuCtxPopCurrent")
            self._stream = self._call("cuStreamCreate", _NON_BLOCKING)
            self._later("cuStreamDestroy", self._stream)
            self._events = self._event(), self._event()
        except CudaError:
            self.close()
            raise
        self._held.callback(self._drop_graph)
        self.stream: int = int(self._stream)

    def _call(self, name: str, *args: Any) -> Any:
        """Call the driver; returns what it gives beside its status."""
        try:
            status, *values = getattr(self._driver, name)(*args)
        except RuntimeError as cause:  # no driver at all, or one too old to have the call
            raise _error(f"{name}: {cause}") from cause
        if status:
            text = self._driver.cuGetErrorString(status)[1]
            raise _error(f"{name} failed: {text.decode() if text else int(status)}")
        return values[0] if values else None

    def _later(self, name: str, *args: Any) -> None:
        """Have this called by `close`."""
        self._held.callback(self._call, name, *args)

    def _event(self) -> Any:
        event = self._call("cuEventCreate", 0)
        self._later("cuEventDestroy", event)
        return event

    def allocate(self, shape: Sequence[int], dtype: str) -> Pair:
        import numpy as np

        size = math.prod(shape) * np.dtype(dtype).itemsize
        address = self._call("cuMemHostAlloc", size, 0)
        self._later("cuMemFreeHost", address)
        memory = self._call("cuMemAlloc", size)
        self._later("cuMemFree", memory)
        block: Any = (ctypes.c_char * size).from_address(int(address))
        pair = Pair(np.frombuffer(block, dtype).reshape(shape), int(memory))
        self._held.callback(pair.forget)
        return pair

    def copy(self, pair: Pair, rows: int, *, to_device: bool) -> None:
        part = pair.host[:rows]
        if to_device:
            self._call("cuMemcpyHtoDAsync", pair.device, part.ctypes.data, part.nbytes, self._stream)
        else:
            self._call("cuMemcpyDtoHAsync", part.ctypes.data, pair.device, part.nbytes, self._stream)

    def timed(self, work: Work) -> None:
        self._call("cuEventRecord", self._events[0], self._stream)
        work()
        self._call("cuEventRecord", self._events[1], self._stream)

    def wait(self) -> float:
        self._call("cuStreamSynchronize", self._stream)
        return float(self._call("cuEventElapsedTime", *self._events))

    def capture(self, work: Work) -> Work:
        self._drop_graph()
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            work()
        finally:
            recorded = self._call("cuStreamEndCapture", self._stream)
        graph = self._graph = self._call("cuGraphInstantiate", recorded, 0)
        self._call("cuGraphDestroy", recorded)
        return lambda: self._call("cuGraphLaunch", graph, self._stream)

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._call("cuGraphExecDestroy", graph)

    def close(self) -> None:
        atexit.unregister(self.close)
        self._held.close()


def _error(text: str) -> CudaError:
    return CudaError(f"CUDA says {text.rstrip('.')}.\n`msn-deploy doctor` shows what is here.")
