"""Weights come out of the checkpoints that other programs write, or the message says which tensors are in the way."""

from __future__ import annotations

import argparse
import logging
import os
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import MOST_BYTES
from msn_deploy.training import load_weights
from msn_deploy.training.weights import read_pickle

Kind = Callable[["Net"], object]


class Net(nn.Module):
    """Convolution, BatchNorm and a layer whose weight has two names."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.embed, self.head = nn.Linear(4, 5, bias=False), nn.Linear(4, 5, bias=True)
        self.head.weight = self.embed.weight
        with torch.no_grad():
            for value in self.state_dict().values():
                value.copy_(torch.rand(value.shape) * 3 + 1)


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return OrderedDict((prefix + name, value) for name, value in tensors.items())


def _lightning(net: Net) -> dict[str, Any]:
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**_prefixed("model.", net.state_dict()), "loss.weight": torch.ones(5)},
        "optimizer_states": [{"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(4, 3, 3, 3)}}}],
        "hyper_parameters": {"lr": 0.1, "args": argparse.Namespace(out=Path("runs/1"), sizes=(1, 2)), "name": "net"},
    }


def _averaged(net: Net) -> object:
    return torch.optim.swa_utils.AveragedModel(net).state_dict()


def _compiled(net: Net) -> object:
    return torch.compile(net, backend="eager").state_dict()


def _compiled_inside(net: Net) -> object:
    net.stem = torch.compile(net.stem, backend="eager")  # type: ignore[assignment]
    return net.state_dict()


def _without_counter(net: Net) -> dict[str, Tensor]:
    return {name: value for name, value in net.state_dict().items() if "num_batches" not in name}


def _counter_taken_out(net: Net) -> dict[str, Tensor]:
    tensors = net.state_dict()  # keeps torch's note that a counter has to be there
    del tensors["stem.1.num_batches_tracked"]
    return tensors


KINDS: dict[str, Kind] = {
    "plain": lambda net: net.state_dict(),
    "plain dict": lambda net: dict(net.state_dict()),
    "state_dict": lambda net: {"epoch": 1, "state_dict": net.state_dict(), "optimizer": {"state": {}}},
    "model": lambda net: {"model": net.state_dict(), "iteration": 7},
    "ema": lambda net: {"ema": net.state_dict(), "updates": 7},
    "model_state_dict": lambda net: {"model_state_dict": net.state_dict(), "loss": torch.ones(())},
    "net": lambda net: {"net": net.state_dict(), "acc": 93.1, "epoch": 3},
    "module": lambda net: {"module": net.state_dict()},
    "nested": lambda net: {"ema": {"decay": 0.99, "module": {"state_dict": net.state_dict()}}},
    "in a list": lambda net: [net.state_dict(), {"lr": 0.1}],
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "state_dict of DataParallel": lambda net: {"state_dict": nn.DataParallel(net).state_dict()},
    "torch.compile": _compiled,
    "torch.compile inside": _compiled_inside,
    "DataParallel of torch.compile": lambda net: _prefixed("module._orig_mod.", net.state_dict()),
    "torch.compile of DataParallel": lambda net: {"model": _prefixed("_orig_mod.module.", net.state_dict())},
    "Lightning": _lightning,
    "Lightning with torch.compile": lambda net: {"state_dict": _prefixed("model._orig_mod.", net.state_dict())},
    "SWA": _averaged,
    "backbone of a larger network": lambda net: {
        **_prefixed("backbone.", net.state_dict()),
        "neck.weight": torch.ones(3, 3),
    },
    "half": lambda net: net.half().state_dict(),
    "bfloat16": lambda net: {"model": net.bfloat16().state_dict()},
    "double": lambda net: net.double().state_dict(),
    "without num_batches_tracked": _without_counter,
    "num_batches_tracked taken out": _counter_taken_out,
    "one name of tied weights": lambda net: {k: v for k, v in net.state_dict().items() if k != "head.weight"},
    "tied, prefixed, without counter": lambda net: _prefixed(
        "module.", {k: v for k, v in _without_counter(net).items() if k != "embed.weight"}
    ),
}


def _require_equal(found: Net, wanted: dict[str, Tensor], *, but: str = "\n") -> None:
    state = found.state_dict()
    assert state.keys() == wanted.keys()
    assert all(
        torch.equal(state[name], value.to(state[name].dtype)) for name, value in wanted.items() if but not in name
    )
    assert found.head.weight is found.embed.weight


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_other_programs(tmp_path: Path, kind: str, zipped: bool) -> None:
    wanted, path = Net(1).state_dict(), tmp_path / "weights.ckpt"
    if kind in ("half", "bfloat16"):
        wanted = getattr(Net(1), kind)().state_dict()
    torch.save(KINDS[kind](Net(1)), path, _use_new_zipfile_serialization=zipped)
    target = Net(2)
    load_weights(target, path)
    _require_equal(target, wanted, but="num_batches" if "num_batches" in kind or "counter" in kind else "\n")


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod.", "a.b.c."])
def test_safetensors_with_and_without_a_prefix(tmp_path: Path, prefix: str) -> None:
    tensors = {name: value.clone() for name, value in _prefixed(prefix, Net(1).state_dict()).items()}
    save_file(tensors, tmp_path / "weights.safetensors")
    target = Net(2)
    load_weights(target, tmp_path / "weights.safetensors")
    _require_equal(target, Net(1).state_dict())


def test_safetensors_of_save_model_hold_tied_weights_once(tmp_path: Path) -> None:
    save_model(Net(1), str(tmp_path / "weights.safetensors"))
    target = Net(2)
    load_weights(target, tmp_path / "weights.safetensors")
    _require_equal(target, Net(1).state_dict())


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.sampled_from(["module", "_orig_mod", "model", "net", "stem", "0", "head", "weight"]), max_size=4),
    keys=st.lists(st.sampled_from(["state_dict", "model", "ema", "net", "module", "a'b"]), max_size=3),
    others=st.sets(st.sampled_from(["n_averaged", "loss.weight", "weight", "0.weight", "ema.stem.0.weight"])),
)
def test_any_prefix_at_any_depth(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], keys: list[str], others: set[str]
) -> None:
    """Others beside the prefix are left; beside names without one they are too much."""
    prefix = "".join(f"{part}." for part in parts)
    content: Any = _prefixed(prefix, Net(1).state_dict())
    plain = prefix.replace("_orig_mod.", "")  # torch.compile's own prefix is taken off before any other
    others = {name for name in others if not plain or not name.startswith((prefix, plain))} - content.keys()
    content |= {name: torch.ones(2) for name in others}
    for key in keys:
        content = {key: content, "epoch": 3}
    path = tmp_path_factory.mktemp("prefix") / "weights.pt"
    torch.save(content, path)
    target = Net(2)
    if others and not plain:
        with pytest.raises(InputError, match="unexpected"):
            load_weights(target, path)
        return
    load_weights(target, path)
    _require_equal(target, Net(1).state_dict())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (KINDS["plain"], None),
        (KINDS["Lightning"], "['state_dict'] without the prefix 'model.'; left out: loss.weight"),
        (KINDS["SWA"], "the whole file without the prefix 'module.'; left out: n_averaged"),
        (KINDS["torch.compile of DataParallel"], "['model'] without the prefix '_orig_mod.' and 'module.'"),
        (KINDS["bfloat16"], "['model']; 9 tensors are bfloat16, and float32 in the network"),
        (KINDS["nested"], "['ema']['module']['state_dict']"),
    ],
)
def test_one_line_says_what_was_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: Kind, said: str | None
) -> None:
    torch.save(content(Net(1)), tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO, "msn_deploy"):
        load_weights(Net(2), tmp_path / "weights.pt")
    lines = [record.getMessage() for record in caplog.records]
    assert [line.endswith(f"the weights are {said}") for line in lines] == ([True] if said else [])


def test_a_network_in_half_takes_the_weights_in_half(tmp_path: Path) -> None:
    torch.save(Net(1).state_dict(), tmp_path / "weights.pt")
    target = Net(2).half()
    load_weights(target, tmp_path / "weights.pt")
    assert torch.equal(target.stem[0].weight, Net(1).half().stem[0].weight)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"model": Net(1).state_dict(), "ema": Net(3).state_dict()}, [r"\['model'\]", r"\['ema'\]"]),
        (
            {**_prefixed("student.", Net(1).state_dict()), **_prefixed("teacher.", Net(3).state_dict())},
            ["'student.'", "'teacher.'"],
        ),
    ],
)
def test_two_parts_that_fit_are_not_chosen_from(tmp_path: Path, content: object, named: list[str]) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=rf"^2 parts of .*weights\.pt fit the network: .*{named[0]}.*; .*{named[1]}"):
        load_weights(Net(2), tmp_path / "weights.pt")


def test_of_two_state_dicts_the_one_that_fits_is_taken(tmp_path: Path) -> None:
    torch.save({"model": Net(1).state_dict(), "discriminator": nn.Linear(3, 2).state_dict()}, tmp_path / "weights.pt")
    target = Net(2)
    load_weights(target, tmp_path / "weights.pt")
    _require_equal(target, Net(1).state_dict())


def _without(*names: str) -> dict[str, Tensor]:
    return {name: value for name, value in Net(1).state_dict().items() if name not in names}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (_without("stem.0.bias", "head.bias"), r"weights\.pt does not fit .*: missing head\.bias, stem\.0\.bias\.$"),
        (
            {"state_dict": _prefixed("module.", _without("head.bias"))},
            r"\['state_dict'\] .*'module\.'.* missing head\.bias\.$",
        ),
        (
            _without() | {f"aux.{n}": torch.ones(1) for n in range(9)},
            r"unexpected aux\.0, aux\.1, aux\.2, \.\.\. \(9 in all\)",
        ),
        (
            _without("stem.0.weight") | {"stem.0.weight": torch.ones(4, 1, 3, 3)},
            r"size mismatch for stem\.0\.weight: 4x1x3x3, the network's is 4x3x3x3\.$",
        ),
        ({"conv.weight": torch.ones(1)}, r"missing embed\.weight, .*\(9 in all\); unexpected conv\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_counted(tmp_path: Path, content: object, why: str) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=why) as caught:
        load_weights(Net(2), tmp_path / "weights.pt")
    assert len(str(caught.value).splitlines()) == 1


def test_modules_that_rename_what_older_versions_saved_take_it(tmp_path: Path) -> None:
    old = nn.Conv2d(2, 3, 3)
    weight = old.weight.detach()
    gain = weight.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.save({"module.weight_g": gain, "module.weight_v": weight, "module.bias": old.bias}, tmp_path / "weights.pt")
    target = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    load_weights(target, tmp_path / "weights.pt")
    assert torch.allclose(target.weight, weight, rtol=1e-6)


class _Opens:
    """A pickle that creates a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (Net(1), r"a pickled torch module \(.*Net, "),
        ({"model": Net(1), "epoch": 3}, r"a pickled torch module \(.*Net, "),
        ({"state_dict": Net(1).state_dict(), "error": pytest.ExitCode.OK}, r"pickled objects \(.*ExitCode"),
    ],
)
def test_pickled_objects_are_named_and_not_loaded(tmp_path: Path, content: object, what: str, zipped: bool) -> None:
    path = tmp_path / "weights.pt"
    torch.save([content, _Opens(tmp_path / "opened")], path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=rf"t is not a file of plain weights: it holds {what}") as e:
        load_weights(Net(2), path)
    assert not (tmp_path / "opened").exists()
    first, second = str(e.value).splitlines()
    assert first.endswith(".")
    assert "\x1b" not in first
    assert "torch.save(net.state_dict(), 'weights.pt')" in second


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_named(tmp_path: Path) -> None:
    program = torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3))
    torch.jit.save(program, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="it holds a TorchScript program"):
        load_weights(nn.Linear(3, 2), tmp_path / "weights.pt")


def _claims(path: Path, *, zipped: bool) -> Path:
    """Write a checkpoint whose pickle makes 1.5 GB out of a number."""
    made = b"\x80\x02}X\x01\0\0\0acbuiltins\nbytearray\nJ" + struct.pack("<i", 1_500_000_000) + b"\x85Rs."
    if zipped:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in (("version", b"3\n"), ("data.pkl", made), ("byteorder", b"little")):
                archive.writestr(f"archive/{name}", content)
    else:
        path.write_bytes(made)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_number_in_a_pickle_does_not_take_memory(tmp_path: Path, zipped: bool) -> None:
    with pytest.raises(InputError, match=r"x\.pt is not a file of plain weights: it makes a bytearray"):
        read_pickle(_claims(tmp_path / "x.pt", zipped=zipped), hint="")


def test_an_archive_that_unpacks_to_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as stored, zipfile.ZipFile(tmp_path / "y.pt", "w", 8) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    monkeypatch.setitem(MOST_BYTES, "weights", 100_000)
    assert (tmp_path / "y.pt").stat().st_size < 10_000
    with pytest.raises(InputError, match=r"y\.pt, unpacked, has 391 KiB; files of weights of up to"):
        read_pickle(tmp_path / "y.pt", hint="")


def test_an_archive_whose_entry_does_not_begin_as_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    raw = path.read_bytes()
    path.write_bytes(b"PK\x03\x05" + raw[4:])  # data.pkl, the first
    with pytest.raises(InputError, match=r"w\.pt: w/data\.pkl .*BadZipFile"):
        read_pickle(path, hint="")
