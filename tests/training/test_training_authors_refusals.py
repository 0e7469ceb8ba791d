"""What is not wholly a checkpoint of the paper's authors is refused, named, and never executed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from authors_cases import Tensors, published, write
from safetensors.torch import save_file
from torch import Tensor

from msn_deploy.core.errors import InputError
from msn_deploy.training import import_checkpoint
from msn_deploy.training.authors import read_authors


def _without(name: str) -> Callable[[Tensors], Any]:
    return lambda net: net.pop(name)


def _set(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Any]:
    return lambda net: net.update({name: change(net.get(name, torch.ones(2)))})


def _filled(name: str, value: float, at: int | slice = 0) -> Callable[[Tensors], Any]:
    return lambda net: net[name].flatten()[at].fill_(value)


@pytest.mark.parametrize(
    ("kind", "harm", "why"),
    [
        ("msn", _without("main.3.weight"), "has no key main.3.weight, though it looks like an MSN network for MNIST"),
        ("msn", _without("fc.renorm"), "has no key fc.renorm"),
        ("msn", _without("main.1.running_mean"), "has no key main.1.running_mean"),
        ("bn", _without("main.7.num_batches_tracked"), "has no key main.7.num_batches_tracked"),
        ("none", _without("fc.bias"), "has no key fc.bias, though it looks like a network without a norm for MNIST"),
        ("svhn", _without("classifier.0.weight"), "has no key classifier.0.weight, though .* BatchNorm .* for SVHN"),
        ("bn", _set("main.9.foo", torch.clone), "has an odd key main.9.foo, though it looks like a BatchNorm network"),
        ("svhn", _set("features.1.weight", torch.clone), "has an odd key features.1.weight"),
        ("svhn", _set("features.0.renorm", torch.clone), "has an odd key features.0.renorm"),
        ("msn", _set("fc.weight", lambda w: w[:, :4096]), r"fc.weight is \(10, 4096\), expected \(10, 8192\)"),
        ("sn", _set("main.0.bias", lambda b: b[:15]), r"main.0.bias is \(15,\), expected \(16,\)"),
        ("svhn", _set("features.23.weight", lambda w: w[:, :, :1]), r"features.23.weight is \(256, 128, 1, 3\)"),
        ("msn", _set("main.3.renorm", lambda r: r.view(1)), r"main.3.renorm is \(1,\), expected \(1, 1\)"),
        ("msn", _filled("main.3.renorm", 1.5), "main.3.renorm is 1.5; our layers have no such factor"),
        ("sn", _filled("fc.renorm", 0.5), "fc.renorm is 0.5; our layers have no such factor"),
        ("msn", _filled("main.4.running_var", 1.25), "main.4.running_var lies between 1 and 1.25; MSN leaves it at 1"),
        ("bn", _filled("main.4.running_var", -0.5), "main.4.running_var holds a negative variance, -0.5"),
        ("sn", _filled("main.2.weight", 0.0, slice(None)), "main.2.weight is 0 throughout and has no spectral norm"),
        ("bn", _filled("main.1.bias", float("nan")), "main.1.bias has 1 of 16 values not finite"),
        ("svhn", _filled("features.0.weight", float("inf")), "features.0.weight has 1 of 864 values not finite"),
        ("none", _set("fc.bias", torch.Tensor.double), "fc.bias is torch.float64 .*, expected plain torch.float32"),
        ("none", _set("fc.bias", torch.Tensor.to_sparse), "fc.bias is torch.float32 .*sparse_coo.*, expected plain"),
        ("none", _set("fc.bias", lambda b: b.to("meta")), "fc.bias is torch.float32 .*, expected plain torch.float32"),
        ("bn", _set("main.1.num_batches_tracked", torch.Tensor.float), "main.1.num_batches_tracked is torch.float32"),
        ("bn", dict.clear, "holds a network of another layout: it is empty"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, kind: str, harm: Callable[[Tensors], Any], why: str) -> None:
    net = published(kind)
    harm(net)
    _refused(write(tmp_path / "X.t7", net), rf"X\.t7:? {why}")


def _refused(path: Path, why: str) -> None:
    out = path.parent / "out.safetensors"
    with pytest.raises(InputError, match=why) as caught:
        import_checkpoint(path, out)
    assert str(path) in str(caught.value)
    assert 1 <= len(str(caught.value).splitlines()) <= 3
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([1, 2], r"X\.t7 holds a list, not a dict of net, acc and epoch"),
        (torch.ones(2), r"X\.t7 holds a Tensor, not a dict"),
        ({"acc": 1.0, "epoch": 1}, r"X\.t7 has no entry 'net'"),
        ({"net": {}, "epoch": 1}, r"X\.t7 has no entry 'acc'"),
        ({"net": {}, "acc": 1.0}, r"X\.t7 has no entry 'epoch'"),
        ({"net": [torch.ones(1)], "acc": 1.0, "epoch": 1}, "'net' is not a dict of names to tensors"),
        ({"net": {"fc.weight": 1.0}, "acc": 1.0, "epoch": 1}, "'net' is not a dict of names to tensors"),
        ({"net": {}, "acc": float("nan"), "epoch": 1}, "'acc' is nan, expected a number of percent"),
        ({"net": {}, "acc": 100.5, "epoch": 1}, "'acc' is 100.5, expected"),
        ({"net": {}, "acc": torch.ones(3, 3), "epoch": 1}, r"'acc' is tensor.*, expected"),
        ({"net": {}, "acc": 1.0, "epoch": -1}, "'epoch' is -1, expected a whole number from 0"),
        ({"net": {}, "acc": 1.0, "epoch": True}, "'epoch' is True, expected"),
        ({"net": {"conv1.weight": torch.ones(1)}, "acc": 1.0, "epoch": 1}, r"first key is conv1\.weight\.\nKnown are"),
        ({"net": {7: torch.ones(1)}, "acc": 1.0, "epoch": 1}, r"first key is 7\.\nKnown are .*MNIST .*SVHN"),
    ],
)
def test_what_is_no_checkpoint_of_the_authors(tmp_path: Path, content: object, why: str) -> None:
    torch.save(content, tmp_path / "X.t7", _use_new_zipfile_serialization=False)
    _refused(tmp_path / "X.t7", why)


class _Bomb:
    """A pickle that creates a folder when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_file_is_refused_and_not_executed(tmp_path: Path, zipped: bool) -> None:
    bomb = {"net": {"fc.weight": _Bomb(tmp_path / "owned")}, "acc": 1.0, "epoch": 1}
    torch.save(bomb, tmp_path / "X.t7", _use_new_zipfile_serialization=zipped)
    _refused(tmp_path / "X.t7", r"X\.t7 is not a file of plain weights")
    assert not (tmp_path / "owned").exists()
    pickle.loads(pickle.dumps(bomb))
    assert (tmp_path / "owned").is_dir()  # it was live


class _NoStorage:
    """A pickle that hands torch a tuple where a tensor's storage belongs."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, ((1.0,), 0, (1,), (1,), False, {})


def test_a_tensor_that_cannot_be_built_is_an_input_error(tmp_path: Path) -> None:
    _refused(write(tmp_path / "X.t7", {"fc.weight": _NoStorage()}), r"X\.t7 is not a file of plain weights")


def test_other_files_under_the_name(tmp_path: Path) -> None:
    path, unreadable = tmp_path / "X.t7", r"X\.t7 is not a file of plain weights \(.*\)\.\nLikely cause: a truncated"
    whole = write(path, published("none")).read_bytes()
    for content in (b"", b"\x80", b"text\n", b"PK\x03\x04" + bytes(40), np.random.default_rng(0).bytes(200)):
        path.write_bytes(content)
        _refused(path, unreadable)
    for kept in (10, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        _refused(path, unreadable)
    save_file(published("none"), path)
    _refused(path, unreadable)
    path.unlink()
    _refused(path, r"X\.t7 does not exist")
    path.mkdir()
    _refused(path, r"X\.t7 is a folder")


def test_single_wrong_bytes_are_an_input_error_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "X.t7"
    whole = write(path, {"main.0.weight": torch.ones(2, 1), "main.0.bias": torch.ones(2)}).read_bytes()
    messages = []
    for at in range(0, len(whole), 4):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 9]) + whole[at + 1 :])
        try:
            read_authors(path)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > len(whole) / 8
    assert all(str(path) in message and len(message.splitlines()) <= 3 for message in messages)


def test_where_the_checkpoint_goes(tmp_path: Path) -> None:
    source = write(tmp_path / "X.t7", published("none"))
    before = source.read_bytes()
    with pytest.raises(InputError, match=r"net\.onnx has to end in \.safetensors"):
        import_checkpoint(source, tmp_path / "net.onnx")
    same = source.rename(tmp_path / "X.safetensors")
    with pytest.raises(InputError, match=r"X\.safetensors is the input itself"):
        import_checkpoint(same, tmp_path / "folder" / ".." / "X.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["X.safetensors"]
    assert same.read_bytes() == before


def test_a_circle_of_links_is_an_input_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.t7").symlink_to("a.t7")
    with pytest.raises(InputError, match=r"a\.t7"):
        import_checkpoint(tmp_path / "a.t7", tmp_path / "a.safetensors")
