"""Both ways to CUDA, pycuda and cuda-bindings, as stand-ins."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest
from cuda_packages import BindingsDriver, PyCudaDriver

from msn_deploy.core.errors import MissingDependency
from msn_deploy.engine.cuda import BindingsCuda, CudaError, PyCuda, open_cuda


def install(monkeypatch, name, module):
    """Put a stand-in where `import a.b.c` finds it."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    monkeypatch.setitem(sys.modules, name, module)
    if len(parts) > 1:
        monkeypatch.setattr(sys.modules[".".join(parts[:-1])], parts[-1], module, raising=False)


def absent(monkeypatch, *names):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def pycuda(monkeypatch):
    driver = PyCudaDriver()
    install(monkeypatch, "pycuda.driver", driver)
    monkeypatch.setattr("msn_deploy.engine.cuda._library", lambda: driver.library)
    yield driver
    assert PyCuda._users == 0


@pytest.fixture
def bindings(monkeypatch):
    driver = BindingsDriver()
    absent(monkeypatch, "pycuda", "pycuda.driver")
    install(monkeypatch, "cuda.bindings.driver", driver)
    return driver


@pytest.fixture(params=["pycuda", "bindings"])
def driver(request):
    return request.getfixturevalue(request.param)


def round_trip(cuda):
    """Send two of four rows there, wipe the host, and get them back; returns what arrived, and the time."""
    pair = cuda.allocate((4, 3), "float16")
    assert pair.host.shape == (4, 3)
    assert pair.host.dtype == np.float16
    pair.host[:] = np.arange(12).reshape(4, 3)
    cuda.copy(pair, 2, to_device=True)
    pair.host[:] = -1
    ran = []
    cuda.timed(lambda: ran.append("work"))
    cuda.copy(pair, 2, to_device=False)
    took = cuda.wait()
    assert ran == ["work"]
    return pair.host.tolist(), took


def test_rows_go_there_and_back_and_the_gpu_says_how_long(driver):
    cuda = open_cuda()
    assert type(cuda) is (PyCuda if isinstance(driver, PyCudaDriver) else BindingsCuda)
    rows, took = round_trip(cuda)
    assert rows == [[0, 1, 2], [3, 4, 5], [-1, -1, -1], [-1, -1, -1]]
    assert took == 1.5
    assert isinstance(cuda.stream, int)
    cuda.close()
    cuda.close()
    assert driver.memory == {}


def test_the_context_is_current_in_another_thread_while_it_is_needed_and_no_longer(driver):
    cuda = open_cuda()

    def elsewhere():
        before = list(driver.log)
        with cuda.here():
            inside = driver.log[len(before) :]
        return inside, driver.log[len(before) + len(inside) :]

    with ThreadPoolExecutor(1) as pool:
        entered, left = pool.submit(elsewhere).result()
    assert (entered, left) in ((["push"], ["pop"]), (["cuCtxPushCurrent"], ["cuCtxPopCurrent"]))
    cuda.close()


def test_memory_in_use_is_what_is_not_free(driver):
    cuda = open_cuda()
    assert cuda.used_bytes() == 3 << 30
    cuda.close()


def test_pycuda_frees_all_before_its_context_goes_and_releases_it_once(pycuda):
    one, two = open_cuda(), open_cuda()
    round_trip(one)
    assert pycuda.log.count("push") == 1
    one.close()
    assert "release" not in pycuda.log
    round_trip(two)
    two.close()
    assert pycuda.log[-2:] == ["pop", "release"]
    assert (pycuda.log.count("release"), pycuda.log.count("cuCtxDetach")) == (1, 0)
    assert (pycuda.log.count("free Stream"), pycuda.log.count("free Event"), pycuda.log.count("free")) == (2, 4, 2)
    assert pycuda.stack == 0
    three = open_cuda()
    three.close()
    assert pycuda.log.count("push") == 2


def test_bindings_free_all_before_the_context_goes(bindings):
    cuda = open_cuda()
    round_trip(cuda)
    bindings.log.clear()
    cuda.close()
    assert bindings.log == [
        "cuMemFree",
        "cuMemFreeHost",
        "cuEventDestroy",
        "cuEventDestroy",
        "cuStreamDestroy",
        "cuCtxPopCurrent",
        "cuDevicePrimaryCtxRelease",
    ]


def test_the_marks_stand_around_the_work(driver):
    cuda = open_cuda()
    driver.log.clear()
    cuda.timed(lambda: driver.log.append("work"))
    assert [call.removeprefix("cuEvent").lower() for call in driver.log] == ["record", "work", "record"]
    cuda.close()


def test_a_graph_is_recorded_then_launched_and_replaced(bindings):
    cuda = open_cuda(graphs=True)
    ran = []
    bindings.log.clear()
    launch = cuda.capture(lambda: ran.append("work"))
    assert bindings.log == ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy"]
    launch()
    launch()
    assert ran == ["work"]
    assert bindings.log[4:] == ["cuGraphLaunch"] * 2
    cuda.capture(lambda: None)
    assert bindings.log[6] == "cuGraphExecDestroy"
    bindings.log.clear()
    cuda.close()
    assert bindings.log.index("cuGraphExecDestroy") < bindings.log.index("cuStreamDestroy")


def test_a_recording_that_fails_is_ended_all_the_same(bindings):
    cuda = open_cuda(graphs=True)

    def fails():
        raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        cuda.capture(fails)
    assert bindings.log[-1] == "cuStreamEndCapture"
    cuda.close()


def test_graphs_are_asked_of_bindings_even_where_pycuda_is(pycuda, monkeypatch):
    install(monkeypatch, "cuda.bindings.driver", BindingsDriver())
    cuda = open_cuda(graphs=True)
    assert type(cuda) is BindingsCuda
    cuda.close()
    cuda = open_cuda()
    with pytest.raises(MissingDependency, match="pycuda has no CUDA graphs"):
        cuda.capture(lambda: None)
    cuda.close()


@pytest.mark.parametrize("graphs", [False, True])
def test_without_a_package_both_ways_to_get_one_are_told(monkeypatch, graphs):
    absent(monkeypatch, "pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.driver")
    with pytest.raises(MissingDependency, match="cuda-bindings, which could not be imported") as caught:
        open_cuda(graphs=graphs)
    assert ("needs pycuda or cuda-bindings" in str(caught.value)) is not graphs
    assert "'.[gpu]'" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("call", ["init", "push", "Stream", "Event"])
def test_pycuda_that_cannot_start_says_which_call_and_leaves_no_context(pycuda, call):
    pycuda.fail = call
    with pytest.raises(CudaError, match=f"CUDA says {call} failed: out of memory") as caught:
        open_cuda()
    assert caught.value.exit_code == 3
    assert pycuda.stack == 0
    if call in ("Stream", "Event"):
        assert pycuda.log.count("retain") == pycuda.log.count("release") == 1


@pytest.mark.parametrize("call", ["Memory", "to device", "to host", "record", "wait"])
def test_every_error_of_pycuda_is_ours(pycuda, call):
    cuda = open_cuda()
    pycuda.fail = call
    with pytest.raises(CudaError, match=f"CUDA says {call} failed: out of memory"):
        round_trip(cuda)
    pycuda.fail = None
    cuda.close()


@pytest.mark.parametrize(
    "call",
    ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent", "cuStreamCreate", "cuEventCreate"],
)
@pytest.mark.parametrize("how", ["fail", "missing"])
def test_bindings_that_cannot_start_say_which_call_and_leave_no_context(bindings, call, how):
    setattr(bindings, how, call)
    words = f"CUDA says {call} failed: out of memory" if how == "fail" else f"CUDA says {call}: function {call} not"
    with pytest.raises(CudaError, match=words):
        open_cuda()
    kept = bindings.log.count("cuDevicePrimaryCtxRetain") - (call == "cuDevicePrimaryCtxRetain")
    assert bindings.log.count("cuDevicePrimaryCtxRelease") == kept


@pytest.mark.parametrize(
    "call", ["cuMemHostAlloc", "cuMemAlloc", "cuMemcpyHtoDAsync", "cuEventRecord", "cuStreamSynchronize"]
)
def test_every_error_of_bindings_is_ours(bindings, call):
    cuda = open_cuda()
    bindings.fail = call
    with pytest.raises(CudaError, match=f"CUDA says {call} failed: out of memory"):
        round_trip(cuda)
    bindings.fail = None
    cuda.close()
    assert bindings.memory == {}


# How to wait, and buffers that are one memory


@pytest.mark.parametrize(("wait", "flags"), [("spin", 17), ("sleep", 20), (None, 16)])
def test_how_to_wait_is_said_before_the_context_is_made_and_keeps_the_other_flags(driver, wait, flags):
    cuda = open_cuda(wait=wait)
    cuda.close()
    assert driver.flags == flags
    said, made = {"spin", "sleep", "cuDevicePrimaryCtxSetFlags"}, ("retain", "cuDevicePrimaryCtxRetain")
    order = ["said" if call in said else "made" for call in driver.log if call in said or call in made]
    assert order == (["said", "made"] if wait else ["made"])


def test_a_second_user_that_waits_alike_changes_nothing(driver):
    one, two = open_cuda(wait="spin"), open_cuda(wait="spin")
    assert driver.log.count("spin") + driver.log.count("cuDevicePrimaryCtxSetFlags") == 1
    two.close()
    one.close()


def test_a_wait_that_cannot_be_changed_any_more_is_an_error(pycuda):
    """CUDA before 11 refuses it while the context is in use."""
    one = open_cuda(wait="spin")
    pycuda.fail = "flags"
    with pytest.raises(CudaError, match="cuDevicePrimaryCtxSetFlags_v2 failed with status 708"):
        open_cuda(wait="sleep")
    pycuda.fail = None
    one.close()


def test_a_mapped_pair_is_one_memory_and_nothing_is_copied(driver):
    cuda = open_cuda(mapped=True)
    pair = cuda.allocate((4, 3), "float16")
    pair.host[:] = np.arange(12).reshape(4, 3)
    driver.log.clear()
    cuda.copy(pair, 4, to_device=True)
    there = driver.memory[pair.device].view(np.float16).reshape(4, 3)
    assert there.tolist() == np.arange(12).reshape(4, 3).tolist()
    there[:] = 5
    cuda.copy(pair, 4, to_device=False)
    assert (pair.host == 5).all()
    assert (pair.mapped, driver.log) == (True, [])
    cuda.close()


def test_a_gpu_that_cannot_map_says_so_and_no_context_is_made(driver):
    driver.maps = False
    with pytest.raises(CudaError, match="cannot map") as caught:
        open_cuda(mapped=True)
    assert caught.value.exit_code == 3
    assert not {"retain", "cuDevicePrimaryCtxRetain"} & set(driver.log)
    open_cuda().close()  # copies work there
