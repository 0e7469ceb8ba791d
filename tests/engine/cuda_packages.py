"""Stand-ins for pycuda.driver and cuda.bindings.driver: memory is numpy's, and `log` holds what was called.

The packages themselves are driven in test_engine_cuda_driver.py, where they are installed.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import numpy as np


class PyCudaDriver(ModuleType):
    """pycuda.driver: a stack of contexts, objects that die with their last reference. fail: the call that fails.

    A context is given up as by pycuda 2026.1: `detach` releases a primary one, and the last reference to one that was
    not detached calls cuCtxDetach, which is not for primary ones. maps: whether the GPU maps the host's memory.
    """

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("pycuda.driver")
        self.log, self.memory, self.stack, self.fail = [], {}, 0, None
        self.maps, self.flags = True, 16
        driver = self
        self.host_alloc_flags = SimpleNamespace(DEVICEMAP=2)
        self.device_attribute = SimpleNamespace(CAN_MAP_HOST_MEMORY="maps")

        class Thing:
            def __init__(self, *args):
                self.name = type(self).__name__
                assert driver.stack, "no context is active"
                driver.said(self.name)

            def __del__(self):
                driver.log.append(f"free {self.name}" if driver.stack else f"{self.name} outlived its context")

        class Stream(Thing):
            handle = 85

            def __init__(self, flags):
                assert flags == 1
                super().__init__()

            def synchronize(self):
                driver.said("wait")

        class Event(Thing):
            def record(self, stream):
                assert isinstance(stream, Stream)
                driver.said("record")

            def time_till(self, end):
                assert end is not self
                return 1.5

        class Memory(Thing):
            def __init__(self, size):
                super().__init__()
                self.address = 0x1000 * (len(driver.memory) + 1)
                driver.memory[self.address] = np.zeros(size, np.uint8)

            def __int__(self):
                return self.address

            def free(self):
                driver.said("free")
                del driver.memory[self.address]

        class Context:
            valid, current = True, False

            def __init__(self):
                driver.said("retain")

            def push(self):
                driver.said("push")
                driver.stack, self.current = driver.stack + 1, True

            def pop(self):
                driver.said("pop")
                driver.stack -= 1

            def detach(self):
                assert self.current, "detached while another is current"
                driver.stack, self.valid = driver.stack - 1, False
                driver.log.append("release")

            def __del__(self):
                if self.valid:
                    driver.log.append("cuCtxDetach")

        self.Stream, self.Event, self.mem_alloc = Stream, Event, Memory
        self.Device = lambda at: SimpleNamespace(
            retain_primary_context=Context, get_attribute=lambda which: int(getattr(driver, which))
        )

    def said(self, call):
        if self.fail == call:
            raise self.Error(f"{call} failed: out of memory")
        self.log.append(call)

    def init(self):
        self.said("init")

    def mem_get_info(self):
        self.said("memory")
        return 5 << 30, 8 << 30

    def pagelocked_empty(self, shape, dtype, mem_flags=0):
        host = np.asarray(HostAllocation(np.zeros(shape, dtype), 0x1000 * (len(self.memory) + 1)))
        if mem_flags:
            self.said("map")
            self.memory[host.base.address] = host
        return host

    # What is asked of the driver's library beside pycuda: a call returns a status, and fills what it is given.

    @property
    def library(self):
        """The driver's library, as ctypes shows it."""

        def get_state(device, flags, active):
            flags._obj.value, active._obj.value = self.flags, self.stack > 0
            return 0

        def set_flags(device, flags):
            self.log.append({17: "spin", 20: "sleep"}.get(flags, flags))
            self.flags = flags
            return 708 if self.fail == "flags" else 0

        def pop(context):
            self.log.append("pop")
            return 0

        set_flags.__name__ = "cuDevicePrimaryCtxSetFlags_v2"
        return SimpleNamespace(
            cuDeviceGet=lambda device, at: 0,
            cuDevicePrimaryCtxGetState=get_state,
            cuDevicePrimaryCtxSetFlags_v2=set_flags,
            cuCtxPopCurrent_v2=pop,
        )

    def memcpy_htod_async(self, dest, src, stream):
        assert src.flags["C_CONTIGUOUS"]
        assert stream.handle == 85
        self.said("to device")
        self.memory[dest][: src.nbytes] = src.view(np.uint8).ravel()

    def memcpy_dtoh_async(self, dest, src, stream):
        assert stream.handle == 85
        self.said("to host")
        dest.view(np.uint8).reshape(-1)[:] = self.memory[src][: dest.nbytes]


class HostAllocation:
    """What a page-locked array of pycuda's is a view of."""

    def __init__(self, array, address):
        self.array, self.address = array, address
        self.__array_interface__ = array.__array_interface__

    def get_device_pointer(self):
        return self.address


class BindingsDriver(ModuleType):
    """cuda.bindings.driver: a tuple (status, *values) of every call; `log` holds the calls."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUdevice_attribute = int

    def __init__(self):
        super().__init__("cuda.bindings.driver")
        self.log, self.fail, self.missing, self.memory, self.made = [], None, None, {}, 0
        self.maps, self.flags, self.mapped = True, 16, set()

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*args):
            self.log.append(name)
            if name == "cuDevicePrimaryCtxSetFlags":
                self.flags = args[1]
            if name == self.missing:
                raise RuntimeError(f"function {name} not found")
            if name == "cuGetErrorString":
                return 0, b"out of memory"
            if name == self.fail:
                return 2, None
            return 0, *self._values(name, *args)

        return call

    def _values(self, name, *args):
        if name == "cuDeviceGetAttribute":
            assert args[0] == 19
            return (int(self.maps),)
        if name == "cuDevicePrimaryCtxGetState":
            return (self.flags, 0)
        if name == "cuMemGetInfo":
            return (5 << 30, 8 << 30)
        if name == "cuMemHostGetDevicePointer":
            assert (args[0] in self.mapped, args[1]) == (True, 0)
            return (args[0],)
        if name in ("cuMemHostAlloc", "cuMemAlloc"):
            block = np.zeros(args[0], np.uint8)
            self.memory[block.ctypes.data] = block
            if args[1:] == (2,):  # CU_MEMHOSTALLOC_DEVICEMAP
                self.mapped.add(block.ctypes.data)
            return (block.ctypes.data,)
        if name.startswith("cuMemcpy"):
            to, source = (int(args[0]), int(args[1]))
            self.memory[to][: args[2]] = self.memory[source][: args[2]]
            return ()
        if name in ("cuMemFree", "cuMemFreeHost"):
            self.memory.pop(args[0])
            return ()
        if name == "cuEventElapsedTime":
            assert args[0] != args[1]
            return (1.5,)
        if name.startswith(("cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuStreamCreate", "cuEventCreate")) or name in (
            "cuStreamEndCapture",
            "cuGraphInstantiate",
            "cuCtxPopCurrent",
        ):
            self.made += 1
            return (self.made,)
        return ()
