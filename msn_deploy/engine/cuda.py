"""How does the host talk to the GPU? The only file that knows pycuda and NVIDIA's cuda-bindings.

A runner needs four things of CUDA, on one stream of the primary context, which is also TensorRT's: a pair of buffers
(`allocate`), asynchronous copies between them (`copy`), the GPU's own time of some work (`timed`, `wait`), and a CUDA
graph of it (`capture`). Both packages are thin over the same driver calls; pycuda has none for graphs, and none that
say how to wait, so that one goes to the driver's library.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice
from msn_deploy.core.optional import install

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
_CAN_MAP = 19  # CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY
_MAPPED = 2  # CU_MEMHOSTALLOC_DEVICEMAP
Work = Callable[[], None]

Wait = Literal["spin", "sleep"]
"""How a thread waits for the GPU: it looks all the time, or the operating system wakes it."""
# CU_CTX_SCHED_SPIN, CU_CTX_SCHED_BLOCKING_SYNC, and the mask of those bits. What CUDA does if it is not told differs:
# on a desktop it spins, on a Jetson the power mode decides.
WAITS: Mapping[Wait, int] = {"spin": 1, "sleep": 4}
_WAIT_BITS = 7


def parse_wait(text: str | None) -> Wait | None:
    """Read one of WAITS. Raises InputError for anything else."""
    if text is None or text in WAITS:
        return cast("Wait | None", text)
    raise InputError(f"`--wait {text}`: a thread waits for the GPU in one of the ways {', '.join(WAITS)}.")


class CudaError(MissingDevice):
    """A CUDA call failed: which one, and what the driver says of it."""


@dataclass(slots=True)
class Pair:
    """The same array twice: page-locked on the host, and at an address on the GPU. mapped: both are one memory."""

    host: NDArray[Any]
    device: int
    mapped: bool = False

    def forget(self) -> None:
        """Let go of the host's memory before it is freed."""
        self.host = self.host[:0].copy()


class Cuda(Protocol):
    """One stream on the first GPU. All methods raise CudaError.

    All are called from the thread that opened it, where its context is current; from another one, at another time,
    within `here`.
    """

    stream: int

    def allocate(self, shape: Sequence[int], dtype: str) -> Pair:
        """Return a pair of buffers of a shape and a numpy dtype; their content is undefined."""
        ...

    def copy(self, pair: Pair, rows: int, *, to_device: bool) -> None:
        """Queue the copy of the first `rows` rows, to the GPU or back; a mapped pair needs none."""
        ...

    def timed(self, work: Work) -> None:
        """Queue `work` between two events."""
        ...

    def wait(self) -> float:
        """Wait for all that is queued; returns the GPU's time between the last two events, ms."""
        ...

    def used_bytes(self) -> int:
        """Return how much of the GPU's memory is in use, by all programs; on a Jetson the host has the same."""
        ...

    def capture(self, work: Work) -> Work:
        """Record what `work` queues, without running it; returns what queues the recording, which replaces the last."""
        ...

    def here(self) -> AbstractContextManager[None]:
        """Make the context current in this thread, another one than that which opened it, meanwhile."""
        ...

    def close(self) -> None:
        """Free everything; it may be called twice."""
        ...


def open_cuda(*, graphs: bool = False, wait: Wait | None = None, mapped: bool = False) -> Cuda:
    """Return pycuda's CUDA, or that of cuda-bindings where pycuda is not installed.

    Args:
        graphs: Only one that has `capture`.
        wait: How this process waits for the GPU; None leaves it to CUDA.
        mapped: Give out pairs that are one memory, which saves the copies (zero-copy).

    Raises:
        MissingDependency: Neither package is installed.
        CudaError: There is no GPU or driver, or `mapped` is asked of a GPU that cannot.
    """
    causes = []
    for kind in (BindingsCuda,) if graphs else (PyCuda, BindingsCuda):
        try:
            return kind(wait=wait, mapped=mapped)
        except ImportError as cause:
            causes.append(str(cause))
    why = "a CUDA graph needs cuda-bindings" if graphs else "running an engine needs pycuda or cuda-bindings"
    raise MissingDependency(
        f"{why}, which could not be imported ({'; '.join(causes)}).\n"
        f"pycuda, on a Jetson: {install('jetson')}\n"
        f"cuda-bindings, anywhere: {install('gpu')}; for CUDA 12 also: pip install 'cuda-bindings==12.*'"
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

    def __init__(self, *, wait: Wait | None = None, mapped: bool = False) -> None:
        import pycuda.driver as driver

        self._driver, self.error, self._mapped = driver, driver.Error, mapped
        self._held = ExitStack()  # what is to be freed, the last first
        atexit.register(self.close)  # pycuda aborts a process that ends with a context pushed
        try:
            self._start(wait)
        except CudaError:
            self.close()
            raise

    @_explained
    def _start(self, wait: Wait | None) -> None:
        self._driver.init()
        device = self._driver.Device(0)
        if self._mapped:
            _check_mapping(device.get_attribute(self._driver.device_attribute.CAN_MAP_HOST_MEMORY))
        if wait is not None:
            _set_wait(wait)
        if PyCuda._users == 0:
            # What pycuda.autoprimaryctx does, but that one can't be undone before the process ends.
            context = device.retain_primary_context()
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
            context, PyCuda._context = PyCuda._context, None
            # What pycuda has popped it gives up by cuCtxDetach, which does not release a primary context; what it
            # detaches while it takes it for current it releases, but leaves it current for the driver.
            _library().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
            context.detach()

    @_explained
    def allocate(self, shape: Sequence[int], dtype: str) -> Pair:
        if self._mapped:
            flags = self._driver.host_alloc_flags.DEVICEMAP
            host = self._driver.pagelocked_empty(tuple(shape), dtype, mem_flags=flags)
            pair = Pair(host, int(host.base.get_device_pointer()), mapped=True)
            self._held.callback(pair.forget)
            return pair
        host = self._driver.pagelocked_empty(tuple(shape), dtype)
        memory = self._driver.mem_alloc(host.nbytes)
        pair = Pair(host, int(memory))
        self._held.callback(pair.forget)  # page-locked memory goes with the last array over it
        self._held.callback(memory.free)
        return pair

    @_explained
    def copy(self, pair: Pair, rows: int, *, to_device: bool) -> None:
        if pair.mapped:
            return
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

    @_explained
    def used_bytes(self) -> int:
        free, total = self._driver.mem_get_info()
        return int(total - free)

    def capture(self, work: Work) -> Work:
        raise MissingDependency(f"pycuda has no CUDA graphs; cuda-bindings has.\nInstall it with: {install('gpu')}")

    @contextmanager
    def here(self) -> Iterator[None]:
        context = PyCuda._context
        context.push()
        try:
            yield
        finally:
            context.pop()

    @_explained
    def close(self) -> None:
        atexit.unregister(self.close)
        self._held.close()


class BindingsCuda:
    """CUDA by NVIDIA's cuda-bindings, version 12 and later."""

    def __init__(self, *, wait: Wait | None = None, mapped: bool = False) -> None:
        from cuda.bindings import driver

        self._driver, self._mapped = driver, mapped
        self._graph: Any = None
        self._held = ExitStack()  # what is to be freed, the last first
        atexit.register(self.close)
        try:
            self._call("cuInit", 0)
            device = self._call("cuDeviceGet", 0)
            if mapped:
                _check_mapping(self._call("cuDeviceGetAttribute", driver.CUdevice_attribute(_CAN_MAP), device))
            if wait is not None:
                flags = int(self._call("cuDevicePrimaryCtxGetState", device))
                if flags & _WAIT_BITS != WAITS[wait]:
                    self._call("cuDevicePrimaryCtxSetFlags", device, flags & ~_WAIT_BITS | WAITS[wait])
            self._context = self._call("cuDevicePrimaryCtxRetain", device)
            self._later("cuDevicePrimaryCtxRelease", device)
            self._call("cuCtxPushCurrent", self._context)
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
        """Call the driver; returns the first that it gives beside its status."""
        return next(iter(self._values(name, *args)), None)

    def _values(self, name: str, *args: Any) -> list[Any]:
        try:
            status, *values = getattr(self._driver, name)(*args)
        except RuntimeError as cause:  # no driver at all, or one too old to have the call
            raise _error(f"{name}: {cause}") from cause
        if status:
            text = self._driver.cuGetErrorString(status)[1]
            raise _error(f"{name} failed: {text.decode() if text else int(status)}")
        return list(values)

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
        address = self._call("cuMemHostAlloc", size, _MAPPED if self._mapped else 0)
        self._later("cuMemFreeHost", address)
        if self._mapped:
            memory = self._call("cuMemHostGetDevicePointer", address, 0)
        else:
            memory = self._call("cuMemAlloc", size)
            self._later("cuMemFree", memory)
        block: Any = (ctypes.c_char * size).from_address(int(address))
        pair = Pair(np.frombuffer(block, dtype).reshape(shape), int(memory), mapped=self._mapped)
        self._held.callback(pair.forget)
        return pair

    def copy(self, pair: Pair, rows: int, *, to_device: bool) -> None:
        if pair.mapped:
            return
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

    def used_bytes(self) -> int:
        free, total = self._values("cuMemGetInfo")
        return int(total) - int(free)

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

    @contextmanager
    def here(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def close(self) -> None:
        atexit.unregister(self.close)
        self._held.close()


def _library() -> Any:
    """Return the driver's library, which pycuda has loaded."""
    return ctypes.CDLL("libcuda.so.1")


def _set_wait(wait: Wait) -> None:
    """Say how the primary context of the first GPU waits."""
    library = _library()
    device, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
    _ask(library.cuDeviceGet, ctypes.byref(device), 0)
    _ask(library.cuDevicePrimaryCtxGetState, device, ctypes.byref(flags), ctypes.byref(active))
    if flags.value & _WAIT_BITS != WAITS[wait]:  # CUDA before 11 refuses to change a context that is in use
        newest = getattr(library, "cuDevicePrimaryCtxSetFlags_v2", None)
        _ask(newest or library.cuDevicePrimaryCtxSetFlags, device, flags.value & ~_WAIT_BITS | WAITS[wait])


def _ask(function: Any, *args: Any) -> None:
    status = function(*args)
    if status:
        raise _error(f"{function.__name__} failed with status {status}")


def _check_mapping(possible: int) -> None:
    if not possible:
        raise CudaError(
            "this GPU cannot map the host's memory, so there are no mapped buffers.\nRun the engine without them."
        )


def _error(text: str) -> CudaError:
    return CudaError(f"CUDA says {text.rstrip('.')}.\n`msn-deploy doctor` shows what is here.")
