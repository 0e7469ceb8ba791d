"""Who gives TensorRT the memory for outputs whose size the data decide (NonMaxSuppression, NonZero)? An allocator.

TensorRT asks it for memory and tells it the shape while it queues a run, hence before that call returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msn_deploy.engine.build_log import Messages
from msn_deploy.engine.cuda import Cuda, Pair


class DecidedOutputs:
    """Buffers and last shapes of such outputs, by name. dtypes: of each, by numpy's name."""

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
