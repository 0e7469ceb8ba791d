"""What the tests of several packages share: a small recipe, networks with statistics that are not neutral, digits."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from warm_simplifier import WarmSimplifiers

import msn_deploy  # noqa: F401 - before any test imports onnxruntime: it switches the telemetry of that off

if TYPE_CHECKING:
    from torch import nn

    from msn_deploy.core.recipes import Recipe
    from msn_deploy.engine.plan import Here

PLAN_FACTS: dict[str, Any] = {
    "backend": "tensorrt",
    "backend_version": "10.3.0.30",
    "target": "orin-nano-8gb",
    "compute_capability": "8.7",
    "device": "Orin",
    "precision": "int8",
    "dla_core": None,
    "version_compatible": False,
    "hardware_compatible": False,
    "machine": {
        "arch": "aarch64",
        "jetson": "NVIDIA Jetson Orin Nano Developer Kit",
        "l4t": "36.4.3",
        "memory_gib": 7.4,
        "memory_free_gib": 5.1,
        "driver": None,
        "gpu_nodes": ("/dev/nvhost-gpu",),
        "container": False,
    },
}
# Files that take longest, so that they start first and no worker waits for the other in the end (Makefile).
LONGEST = (
    "test_docs.py", "test_pipeline_sweep.py", "test_benchmarks.py", "test_pipeline_tasks.py", "test_cli_kill.py",
    "test_cli_wheel.py", "test_pipeline_with_cpp.py", "test_cli_suite.py", "test_cli_bad_input.py", "test_cli_demo.py",
    "test_fuzz.py", "test_kills.py", "test_offline.py", "test_pipeline_bench.py", "test_graph_fold_random.py",
    "test_model_opset_nodes.py", "test_paper.py", "test_peers_graphs.py", "test_training_distributed.py",
)  # fmt: skip

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch: small tensors only lose by more


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True, scope="session")
def home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the caches and the trusted plans of whoever runs it; processes that tests start inherit that."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSN_DEPLOY_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def logging_as_at_first() -> Iterator[None]:
    """A command sets up logging for its whole process, and one may have run in a fixture of a module, before this one.

    What a test hears then would depend on the order of tests, and names that are not text in what it hears end the
    process that reports it.
    """
    _forget_logging()
    yield
    _forget_logging()


@pytest.fixture(autouse=True)
def process_as_at_first() -> Iterator[None]:
    """What a test leaves must not reach those that come later in its process, which differ from run to run.

    A run with torch sets its threads for the whole process, and other threads give a training other bits; mypy sets
    how deep Python may nest.
    """
    deepest = sys.getrecursionlimit()
    yield
    sys.setrecursionlimit(deepest)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def operators_parsed_once() -> None:
    """torch.onnx.export parses the source of 500 functions each time, and lists torch's operators 50 times over.

    That is half of an export of a small network, and the suite exports several hundred.
    """
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    if exporter is None or hasattr(exporter, "parsed"):
        return
    registry = exporter.ONNXRegistry
    exporter.parsed = functools.cache(registry.from_torchlib)

    def from_torchlib(**opset: int) -> Any:
        made = copy.copy(exporter.parsed(**opset))
        made.functions = {name: list(each) for name, each in made.functions.items()}  # an export may add its own
        return made

    registry.from_torchlib = staticmethod(from_torchlib)
    lists = sys.modules["torch._export.utils"]
    lists._materialize_cpp_cia_ops = functools.cache(lists._materialize_cpp_cia_ops)


@pytest.fixture(scope="session")
def warm_simplifiers() -> Iterator[WarmSimplifiers]:
    """Simplifiers that need not load onnxsim."""
    with contextlib.closing(WarmSimplifiers()) as warm:
        yield warm


@pytest.fixture(autouse=True)
def onnxsim_loaded_once(warm_simplifiers: WarmSimplifiers) -> None:
    """An export starts a process that loads onnxsim, for a second; its own tests start it as it is."""
    simplify = sys.modules.get("msn_deploy.graph.simplify")
    if simplify is not None:
        simplify._worker = warm_simplifiers.start


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT interrupt: what a shell has started in the background ignores it, and so would the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _forget_logging() -> None:
    logger = logging.getLogger("msn_deploy")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)  # unlike an assignment, it also forgets which levels were enabled


@pytest.fixture(scope="session")
def steady_clock() -> Callable[..., AbstractContextManager[None]]:
    """Return a context in which `bench` takes about 1 ms, or as told, for each query, however busy the machine is."""
    from msn_deploy.bench import measure

    @contextmanager
    def steady(query_ms: int = 1) -> Iterator[None]:
        draw, now = random.Random(0), 0

        def clock() -> int:
            nonlocal now
            now += query_ms * draw.randrange(900_000, 1_100_000)
            return now

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(measure.__kwdefaults__, "clock", clock)
            yield

    return steady


@pytest.fixture
def forge_plan(tmp_path: Path) -> Callable[..., Path]:
    """Write net.engine with a sidecar that fits `orin`; keywords replace single facts."""
    from msn_deploy.core.artifacts import Parent, publish

    def forge(content: bytes = b"a plan", *, onnx: str = "net.int8.onnx", kind: str = "engine", **facts: Any) -> Path:
        path = tmp_path / "net.engine"
        parent = Parent(role="onnx", file=onnx, sha256=hashlib.sha256(b"the model").hexdigest())
        publish(
            path,
            lambda partial: partial.write_bytes(content) and None,
            kind=kind,
            parents=[parent],
            facts={**PLAN_FACTS, **facts},
        )
        return path

    return forge


@pytest.fixture
def orin() -> Callable[..., Here]:
    """The machine that forged plans fit: an Orin Nano with TensorRT 10.3.0; keywords replace parts of it."""
    from msn_deploy.engine.plan import Here
    from msn_deploy.machine.device import DeviceFacts, Gpu

    def make(gpu: Any = ("Orin", "8.7"), versions: Any = None, **machine: Any) -> Here:
        facts = {**PLAN_FACTS["machine"], **machine}
        return Here(
            machine=DeviceFacts(**facts),
            gpu=gpu and Gpu(name=gpu[0], compute_capability=gpu[1]),
            versions={"tensorrt": "10.3.0"} if versions is None else versions,
        )

    return make


@pytest.fixture(scope="session")
def small_recipe() -> Callable[..., Recipe]:
    """The built-in recipe of a net, with a norm, narrow; further keywords override its training options."""
    from msn_deploy.core.recipes import load_recipe

    def make(net: str = "cnn3", norm: str = "msn", *, width: int = 2, **train: Any) -> Recipe:
        return replace(load_recipe(f"{net}_bn"), width=width).override(norm=norm, **train)

    return make


@pytest.fixture(scope="session")
def unsettle() -> Callable[[nn.Module, int], nn.Module]:
    """Move every norm of a network away from its neutral start, seeded, and set evaluation mode; return it."""
    import torch
    from torch import nn

    def move(model: nn.Module, seed: int = 0) -> nn.Module:
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in model.modules():
                for name, low, high in (
                    ("running_mean", -0.5, 0.3),
                    ("running_var", 0.4, 1.6),
                    ("gain", 1.2, 2.4),
                    ("shift", 0.1, 0.5),
                ):
                    tensor = getattr(module, name, None)
                    if isinstance(tensor, torch.Tensor):
                        tensor.uniform_(low, high, generator=rng)
                if type(module) in (nn.Conv2d, nn.Linear):  # torch's own start lets the signal of seven layers die
                    nn.init.kaiming_normal_(module.weight, generator=rng)
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.affine:
                    module.weight.uniform_(0.6, 1.6, generator=rng)
                    module.bias.uniform_(0.1, 0.5, generator=rng)
        return model.eval()

    return move


@pytest.fixture(scope="session")
def small_net(small_recipe: Callable[..., Recipe], unsettle: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A seeded, untrained, narrow network of a net and a norm, its statistics not neutral, in evaluation mode."""
    import torch

    from msn_deploy.nets import build_net

    def make(net: str = "cnn3", norm: str = "msn", *, width: int = 2, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build_net(small_recipe(net, norm, width=width), classes=10)
        return unsettle(model, seed)

    return make


@pytest.fixture(scope="session")
def digits() -> Callable[..., NDArray[np.float32]]:
    """The first test digits as a network's input (N, 1, side, side), mean 0 and deviation 1."""
    from msn_deploy.data import load_split, to_input
    from msn_deploy.data.preprocess import measured_preprocess

    def load(count: int, side: int = 28) -> NDArray[np.float32]:
        images = load_split("digits", "test", height_px=side, width_px=side, channels=1).first(count).images
        return to_input(images, measured_preprocess(images))

    return load


@pytest.fixture
def below_a_file(tmp_path: Path) -> Path:
    """A path that no one, root included, can write to: its folder is a file."""
    (tmp_path / "file").write_bytes(b"in the way")
    return tmp_path / "file" / "out.bin"
