from __future__ import annotations

import ctypes

import pytest

from msn_deploy.machine.gpu import Gpu, first_gpu


class Driver:
    """A libcuda that knows one GPU; `fails` is the call that reports an error."""

    def __init__(self, fails=""):
        self._fails = fails

    def __getattr__(self, name):
        def call(*args):
            if name == self._fails:
                return 100
            if name == "cuDeviceGetName":
                args[0].value = b"Orin"
            if name == "cuDeviceGetAttribute":
                ctypes.cast(args[0], ctypes.POINTER(ctypes.c_int)).contents.value = {75: 8, 76: 7}[args[1]]
            return 0

        return call


def test_the_driver_names_the_gpu():
    assert first_gpu(lambda name: Driver()) == Gpu(name="Orin", compute_capability="8.7")


@pytest.mark.parametrize("fails", ["cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"])
def test_a_driver_without_a_gpu_is_no_gpu(fails):
    assert first_gpu(lambda name: Driver(fails)) is None


def test_no_driver_is_no_gpu():
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    assert first_gpu(missing) is None
