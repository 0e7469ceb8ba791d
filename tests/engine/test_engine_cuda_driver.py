"""What calls the driver, over one that has no GPU; pycuda and cuda-bindings where `make cuda-test` has built them."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
from cuda_real import ENDS, FOLDER, PACKAGES, Driver

from msn_deploy.machine.device import Gpu

ASK = "from msn_deploy.machine.device import first_gpu; print(first_gpu())"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    return Driver(tmp_path_factory.mktemp("driver"))


def test_the_driver_is_asked_for_its_gpu_without_a_context(driver):
    ran = driver.run(ASK)
    assert ran.calls[-1] == str(Gpu(name="Fake GPU", compute_capability="8.7"))
    assert not {"retain", "push"} & set(ran.calls)


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet"])
def test_a_driver_without_a_gpu_offers_none(driver, call):
    assert driver.run(ASK, fail=call).calls[-1] == "None"


# The packages


@pytest.fixture(params=PACKAGES)
def kind(request):
    """A way to CUDA whose package is there."""
    module = {"PyCuda": "pycuda", "BindingsCuda": "cuda"}[request.param]
    if not (FOLDER / module).is_dir() and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: `make cuda-test`")
    return request.param


BEGIN = ["cuInit", "cuDeviceGet"]
MADE = ["retain", "push", "stream", "event", "event"]
FREED = ["free event", "free event", "free stream", "pop", "release"]


def of(calls):
    """Leave out where a device is looked up, which pycuda does more than once."""
    return [call for at, call in enumerate(calls) if call != "cuDeviceGet" or at == 1]


def test_a_run_takes_these_calls_and_frees_all_before_the_context_goes(driver, kind):
    ran = driver.drive(kind, "closed", packages=FOLDER)
    assert (ran.code, ran.stderr) == (0, "")
    assert of(ran.calls) == [
        *BEGIN,
        *MADE,
        *("host", "device", "to device", "record", "record", "to host", "wait", "1.5 [7.0, 7.0, 0.0, 0.0] 85"),
        *("free device", "free host", *FREED, "end"),
    ]


@pytest.mark.parametrize("wait", ["spin", "sleep"])
def test_how_to_wait_is_said_before_the_context_is_retained(driver, kind, wait):
    ran = driver.drive(kind, "closed", packages=FOLDER, wait=wait)
    assert (ran.code, ran.stderr) == (0, "")
    assert of(ran.calls)[:5] == [*BEGIN, "state", wait, "retain"]


def test_mapped_buffers_are_allocated_once_and_not_copied(driver, kind):
    ran = driver.drive(kind, "closed", packages=FOLDER, mapped=True)
    assert (ran.code, ran.stderr) == (0, "")
    assert of(ran.calls) == [
        *BEGIN,
        *MADE,
        *("mapped host", "pointer", "record", "record", "wait", "1.5 [7.0, 7.0, 7.0, 7.0] 85"),
        *("free host", *FREED, "end"),
    ]
    refused = driver.drive(kind, "closed", packages=FOLDER, mapped=True, fail="map")
    assert (refused.code, "retain" in refused.calls) == (1, False)
    assert "this GPU cannot map" in refused.stderr


@pytest.mark.parametrize("end", ENDS)
def test_every_end_releases_what_was_retained_and_leaves_nothing_on_stderr(driver, kind, end):
    ran = driver.drive(kind, end, packages=FOLDER)
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.calls.count("retain") == ran.calls.count("release") >= 1
    assert ran.calls.count("push") == ran.calls.count("pop")
    assert "cuCtxDetach" not in ran.calls
    assert "end" in ran.calls


@pytest.mark.parametrize("call", ["cuInit", "stream", "event"])
def test_what_does_not_open_says_which_call_and_keeps_no_context(driver, kind, call):
    ran = driver.drive(kind, "closed", packages=FOLDER, fail=call)
    assert ran.code == 1
    assert "CUDA says cu" in ran.stderr.splitlines()[-2]
    assert "failed: out of memory" in ran.stderr.splitlines()[-2]
    assert not any(word in ran.stderr for word in ("PyCUDA WARNING", "PyCUDA ERROR", "clean-up"))
    assert ran.calls.count("retain") == ran.calls.count("release")
    assert "cuCtxDetach" not in ran.calls


def test_a_graph_is_captured_and_replayed(driver):
    if not (FOLDER / "cuda").is_dir() and importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-bindings is not installed: `make cuda-test`")
    code = """
from msn_deploy.engine.cuda import BindingsCuda
cuda = BindingsCuda()
launch = cuda.capture(lambda: print("recorded", flush=True))
launch()
cuda.close()
"""
    ran = driver.run(code, packages=FOLDER)
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.calls == [
        *BEGIN,
        *MADE,
        *("begin capture", "recorded", "end capture", "instantiate", "free graph", "launch", "free instance"),
        *FREED,
    ]
