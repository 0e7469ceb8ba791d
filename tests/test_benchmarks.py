"""The benchmark scripts measure what they say: the arms train, and are the networks of the package."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import call

from msn_deploy.nets.blocks import Norm
from msn_deploy.nets.densenet_bc import densenet_bc
from msn_deploy.nets.sequential import vgg7

pytestmark = pytest.mark.slow

PEERS = Path(__file__).resolve().parent.parent / "benchmarks" / "peers"


@pytest.fixture(scope="module")
def arms() -> Any:
    sys.path.insert(0, str(PEERS))
    try:
        import train_step_arms
    finally:
        sys.path.remove(str(PEERS))
    return train_step_arms


def _trainer(arms: Any, net: str, arm: str, batch: int, dtype: str = "float32", layout: str = "contiguous") -> Any:
    return arms.Trainer(net, arm, batch=batch, layout=layout, dtype=dtype, device="cpu")


@pytest.mark.parametrize("arm", ["none", "bn", "torch-sn", "torch-sn+mean", "authors", "sn", "msn"])
@pytest.mark.parametrize(("dtype", "layout"), [("float32", "contiguous"), ("bfloat16", "channels_last")])
def test_an_arm_trains(arms: Any, arm: str, dtype: str, layout: str) -> None:
    trainer = _trainer(arms, "vgg7", arm, 8, dtype, layout)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    first = trainer.loss().item()
    trainer.optimizer.param_groups[0]["lr"] = 0.05
    for _ in range(4):
        trainer.step()
    assert trainer.loss().item() < first
    assert all(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("norm", ["none", "bn", "sn", "msn"])
def test_the_arms_are_the_networks_of_the_package(arms: Any, norm: str) -> None:
    shape = {"in_channels": 3, "height_px": 32, "width_px": 32, "classes": 10}
    ours = {
        "vgg7": vgg7(Norm(name=norm), width=32, **shape),
        "densenet_bc": densenet_bc(Norm(name=norm), width=12, **shape),
    }
    for net, model in ours.items():
        measured = _trainer(arms, net, norm, 1).model
        wanted = sorted(tuple(each.shape) for each in model.parameters())
        assert sorted(tuple(each.shape) for each in measured.parameters()) == wanted


@pytest.mark.parametrize(
    ("net", "batch", "most"), [("vgg7", 64, 0.65), ("densenet_bc", 16, 0.56), ("resnet18", 32, 0.62)]
)
def test_msn_saves_memory(arms: Any, net: str, batch: int, most: float) -> None:
    """Counted, not timed: what autograd keeps between forward and backward, against BatchNorm."""
    saved = {arm: _trainer(arms, net, arm, batch).saved_mib() for arm in ("bn", "msn", "none")}
    assert saved["msn"] < most * saved["bn"]
    assert saved["msn"] < 1.15 * saved["none"]


def _clock(step_ns: int) -> Callable[[], int]:
    """Return a clock that moves on by so much with every reading: what is measured no longer hangs on the machine."""
    return count(0, step_ns).__next__


def test_the_script_measures_and_writes(arms: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(PEERS))
    import train_step

    out = tmp_path / "result.json"
    monkeypatch.setattr(train_step, "measure", partial(train_step.measure, clock=_clock(50_000_000)))
    monkeypatch.setitem(train_step.BATCH["cpu"], "vgg7", 4)
    words = ["train_step.py", "--arms", "none,bn", "--threads", "1", "--seconds", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*words, "--only", "vgg7,contiguous,float32,eager"])
    train_step.main()
    (case,) = json.loads(out.read_text(encoding="utf-8"))["cases"]
    assert len(case["steps_ms"]["bn"]) == len(case["steps_ms"]["none"]) >= 20
    assert set(case["steps_ms"]["bn"]) == {50.0}
    assert case["rows"]["none"]["saved_mib"] < case["rows"]["bn"]["saved_mib"]
    assert case["rows"]["none"]["to_bn"] == [1.0, 1.0, 1.0]


@pytest.fixture
def control() -> Any:
    """benchmarks/control.py."""
    sys.path.insert(0, str(PEERS.parent))
    try:
        import control
    finally:
        sys.path.remove(str(PEERS.parent))
    return control


def test_bench_is_asked_where_the_truth_is_known(control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    real = subprocess.Popen

    def watched(command: list[str], **options: Any) -> Any:
        process = real(command, **options)
        if command[1] == "-c":
            started.append(process)
        return process

    monkeypatch.setattr(control.subprocess, "Popen", watched)
    as_process = control._msn_deploy

    def msn_deploy(*words: str) -> None:
        """One of the benchmarks is a process of its own, as all are for users."""
        if "larger" in words[1]:
            as_process(*words)
        else:
            assert call("--quiet", *words).code in (0, control._INVALID)

    monkeypatch.setattr(control, "_msn_deploy", msn_deploy)
    result = control.measured(2, 1, 0.6)
    assert sorted(each["loaded"] for each in result["runs"]["same"]) == [False, True]
    assert sum(result["verdicts"]["same"].values()) == 2
    (larger,) = result["runs"]["larger"]
    assert larger["interval"][0] <= larger["ratio"] <= larger["interval"][1]
    assert result["verdicts"]["larger"] == {larger["verdict"]: 1}
    (load,) = started  # for the one run that says so, and ended with it by force
    assert load.returncode == -signal.SIGKILL


def test_a_run_that_measured_nothing_is_not_told_by_the_result_of_the_last(
    control: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "same.json").write_text("of the run before", encoding="utf-8")
    monkeypatch.setattr(control, "_msn_deploy", lambda *words: None)
    with pytest.raises(FileNotFoundError):
        control.one_run(tmp_path / "same.onnx", tmp_path / "copy.onnx", 1.0)


def test_the_overhead_of_bench_is_measured_over_a_bare_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading of the clock takes 100 ns: `bench` takes two per query, and one of them lies within the latency."""
    monkeypatch.syspath_prepend(str(PEERS.parent))
    import overhead

    monkeypatch.setattr(overhead, "_clock", _clock(100))
    bare = 100 / overhead.CHUNK
    cases = overhead.measured(1e-5)["cases"]
    assert list(cases) == ["call", "network", "runner"]
    for case in cases.values():
        assert case["bare_ns"]["median"] == round(bare, 1)
    for case in (cases["call"], cases["network"]):
        assert case["added_ns"]["median"] == 200
        assert case["reported_ns"]["median"] == round(100 - bare, 1)
        assert case["within_limit"]
    assert cases["runner"]["added_ns"]["median"] == 0


@pytest.mark.parametrize(("net", "norm"), [("cnn3", "bn"), ("vgg7", "msn")])
def test_the_trainer_trains_what_the_bare_loop_beside_it_does(net: str, norm: str) -> None:
    """benchmarks/throughput.py stands on the inside of the trainer, which may move."""
    sys.path.insert(0, str(PEERS.parent))
    try:
        import throughput
    finally:
        sys.path.remove(str(PEERS.parent))
    arms = throughput.trainer_arms(net, norm)
    assert [arm.name for arm in arms] == ["bare loop", "trainer"]
    for arm in arms:
        arm.run()


@pytest.mark.parametrize("net", ["vgg7", "unet"])
def test_compiled_msn_is_one_graph_with_two_passes_per_layer_and_direction(arms: Any, net: str) -> None:
    """A sum and an addition over the activations: what eager does in place and a compiler fuses."""
    passes = {arm: _passes(arms, net, arm) for arm in ("none", "msn")}
    layers = passes["none"][0]["convolution"] - (net == "unet")  # its last convolution has no norm
    for bare, ours in zip(passes["none"], passes["msn"], strict=True):
        more = {name: count - bare[name] for name, count in ours.items() if count != bare[name]}
        assert more.pop("expand", layers) == layers  # no pass: of the mean's gradient
        assert more == {"sum": layers, "add": layers}


def _passes(arms: Any, net: str, arm: str) -> tuple[Counter[str], Counter[str]]:
    """Operations that read or write a batch of activations, of the forward and of the backward graph."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.utils import counters
    from torch._functorch.aot_autograd import make_boxed_func

    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    counters.clear()
    batch = 3  # no number of channels and no side
    trainer = _trainer(arms, net, arm, batch, layout="channels_last")
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    trainer._loss = torch.compile(trainer.loss, backend=backend, fullgraph=True)
    for _ in range(3):
        trainer.step()
    assert len(graphs) == 2, "compiled again"
    assert counters["stats"]["unique_graphs"] == 1
    return _over_activations(graphs[0], batch), _over_activations(graphs[1], batch)


def _over_activations(graph: torch.fx.GraphModule, batch: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for node in graph.graph.nodes:
        values = [each.meta.get("val") for each in (node, *node.all_input_nodes)]
        shapes = [value.shape for value in values if isinstance(value, torch.Tensor)]
        if isinstance(node.target, torch._ops.OpOverload) and any(len(s) == 4 and s[0] == batch for s in shapes):
            found[node.target._opname] += 1
    return found
