"""The comparison of exporters on a tiny network: every arm has a row, and a peer that is wrong is seen to be."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

pytestmark = pytest.mark.slow

pytest.importorskip("msn_deploy.graph.evaluate")
pytest.importorskip("msn_deploy.model.identity")

PEERS = Path(__file__).resolve().parent.parent / "benchmarks" / "peers"
TINY = """
from torch import nn
from graphs_nets import Case
from resnet18 import conv_bn

def plain():
    return nn.Sequential(*conv_bn(3, 8, 3), nn.ReLU(), *conv_bn(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))

BN = Case(net="tiny", norm="bn", shape=(3, 8, 8), plain=plain, source=__file__ + ":bn")
MSN = BN._replace(norm="msn", source=__file__ + ":msn", converted=True)
bn, msn = BN.make, MSN.make
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(PEERS))
    try:
        import export_time
        import graphs
        import graphs_arms
        import graphs_nets
        import graphs_table

        yield SimpleNamespace(
            graphs=graphs, arms=graphs_arms, nets=graphs_nets, table=graphs_table.table, export_time=export_time
        )
    finally:
        sys.path.remove(str(PEERS))


@pytest.fixture(scope="module")
def tiny(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("tiny") / "tiny.py"
    path.write_text(TINY, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("tiny", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def broken(graph: ModelProto) -> ModelProto:
    """Return the graph with one weight a thousandth off."""
    result = ModelProto()
    result.CopyFrom(graph)
    weight = max(result.graph.initializer, key=lambda each: np.prod(each.dims))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.001, weight.name))
    return result


def lazy(graph: ModelProto) -> ModelProto:
    raise RuntimeError("not today")


@pytest.fixture(scope="module")
def built(bench: Any, tiny: Any) -> Iterator[dict[str, Any]]:
    """The rows of the tiny networks, by their names in CASES; MSN with one peer that takes it at the third try."""
    tries = iter(range(9))

    def picky(graph: ModelProto) -> ModelProto:
        if next(tries) < 2:
            raise ValueError("no spectral norms, please")
        return graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.graphs, "CASES", {"tiny_bn": tiny.BN, "tiny_msn": tiny.MSN})
        patch.setattr(bench.graphs, "BATCHES", (2,))
        patch.setattr(bench.graphs, "THREADS", (1,))
        patch.setitem(bench.arms.PEERS, "broken", broken)
        patch.setitem(bench.arms.PEERS, "lazy", lazy)
        of_bn = bench.arms.build(tiny.BN, (2,))
        patch.setattr(bench.arms, "PEERS", {"picky": picky})
        yield {"tiny_bn": of_bn, "tiny_msn": bench.arms.build(tiny.MSN, (2,))}


def test_every_arm_has_a_row_and_a_wrong_one_is_seen(
    bench: Any, tiny: Any, built: dict[str, Any], tmp_path: Path
) -> None:
    options = {"seconds": 0.1, "batches": [2], "threads": [1]}
    out = tmp_path / "result.json"
    result = bench.graphs.read_result(out, options)
    result["networks"]["tiny_bn"] = bench.graphs.one_network(tiny.BN, built["tiny_bn"], seconds=0.1)
    bench.graphs.write(result, out)
    result = bench.graphs.read_result(out, options)
    assert set(result) == {"schema", "what", "options", "versions", "environment", "networks"}
    (entry,) = result["networks"].values()
    assert set(entry) == {"net", "norm", "shape", "rows", "latency"}
    assert list(entry["rows"]) == ["torch", "onnxsim", "onnxslim", "ORT extended", "ORT all", "broken", "lazy", "ours"]

    ours, wrong = entry["rows"]["ours"], entry["rows"]["broken"]
    assert ours["is_exact"]
    assert ours["exact_in"] == "float64"
    assert ours["norms_left"] == {}
    assert len(ours["off_float64"]) == 2  # the second network has negative gains
    assert not wrong["is_exact"]
    assert 1e-5 < wrong["exact"] < 1e-2
    (case,) = entry["latency"]
    assert case["best"] not in ("broken", "ours")
    for row in case["rows"].values():
        ratio, low, high = row["to_best"]
        assert low <= ratio <= high

    lines = bench.table(result).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split(" | ")[1] for line in lines if "WRONG" in line] == ["broken"]
    assert any("lazy | " in line and "RuntimeError: not today" in line for line in lines)
    with pytest.raises(SystemExit, match="other options"):
        bench.graphs.read_result(out, {**options, "seconds": 9})


def test_a_peer_that_fails_on_msn_is_given_the_folded_network(built: dict[str, Any]) -> None:
    picky, ours = built["tiny_msn"]["picky"].facts, built["tiny_msn"]["ours"].facts
    assert picky["given"] == "folded first"
    assert "no spectral norms" in picky["note"]
    assert picky["is_exact"]
    assert ours["is_exact"]


def test_graphs_of_different_networks_are_compared_with_the_peers_of_batch_norm(
    bench: Any, built: dict[str, Any]
) -> None:
    entry = bench.graphs.across_norms(built, seconds=0.1)
    names = list(entry["rows"])
    assert names[-2:] == ["bn: ours", "msn: ours"]
    assert "bn: broken" not in names
    (case,) = entry["latency"]
    assert case["best"].startswith("bn: ")
    assert case["best"] != "bn: ours"


def test_activations_neither_die_nor_explode(bench: Any) -> None:
    import torch

    for name in ("vgg7_bn", "vgg7_msn", "mobilenetv2_bn"):
        case = bench.nets.CASES[name]
        model = case.make(negative=0.3)
        with torch.no_grad():
            y = model(bench.nets.inputs(case.shape, 4, seed=5))
        assert 0.1 < y.std() < 10, name
        assert y.std(0).mean() > 0.05, name


def test_every_way_of_exporting_writes_a_file(bench: Any, tiny: Any, tmp_path: Path) -> None:
    timed = bench.export_time
    for name, export in timed.ARMS.items():
        export(tiny.BN.source, tmp_path / f"{name}.onnx", 8)
        assert (tmp_path / f"{name}.onnx").stat().st_size > 10_000
    alone = tmp_path / "alone.py"  # a process of its own finds no module of the benchmarks
    alone.write_text("from torch import nn\n\ndef net():\n    return nn.Conv2d(3, 128, 5)\n", encoding="utf-8")
    timed.by_command(f"{alone}:net", tmp_path / "command.onnx", 8)
    assert (tmp_path / "command.onnx").stat().st_size > 10_000
    timed.by_script(f"{timed.resnet18.__file__}:resnet18_32", tmp_path / "script.onnx", 32)
    assert (tmp_path / "script.onnx").stat().st_size > 40_000_000
    assert (tmp_path / "command.fold.json").is_file()
