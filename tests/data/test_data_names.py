"""Data sets by name: where they are looked for, what is said where they are not, and what a download becomes."""

from __future__ import annotations

import gzip
import os
import socket
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.data import load_split, names

GRAY = {"height_px": 28, "width_px": 28, "channels": 1}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No data set of this machine is in the way, and there is no network."""
    monkeypatch.setenv("MSN_DEPLOY_DATA", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    packaged = tmp_path / "packaged"
    for name, known in names.KNOWN.items():
        if known.packaged:
            monkeypatch.setitem(
                names.KNOWN, name, names.Known(hub=known.hub, files=known.files, packaged=str(packaged))
            )
    return tmp_path


def _write_idx(folder: Path, value: int) -> None:
    folder.mkdir(parents=True)
    for stem, head, data in (
        ("images-idx3", struct.pack(">HBBIII", 0, 8, 3, 2, 28, 28), bytes([value] * 2 * 784)),
        ("labels-idx1", struct.pack(">HBBI", 0, 8, 1, 2), bytes([7, 2])),
    ):
        (folder / f"t10k-{stem}-ubyte.gz").write_bytes(gzip.compress(head + data))


def test_a_name_is_looked_for_in_the_users_folder_the_cache_and_the_package(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [
        elsewhere / "packaged",
        elsewhere / "cache/msn-deploy/data/fashion-mnist",
        elsewhere / "own/fashion-mnist",
    ]
    for value, place in enumerate(places, start=1):
        _write_idx(place, value)
        got = load_split("fashion-mnist", "test", **GRAY)
        assert (got.source, int(got.images.max())) == ("fashion-mnist", value)
    monkeypatch.chdir(elsewhere)
    _write_idx(elsewhere / "fashion-mnist", 9)
    assert int(load_split("fashion-mnist", "test", **GRAY).images.max()) == 9


@pytest.mark.parametrize("name", names.KNOWN)
def test_without_a_network_the_files_and_their_folder_are_named(elsewhere: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        load_split(name, "train", **GRAY)
    message = str(caught.value)
    assert f"{elsewhere}/own/{name}" in message
    assert f"{elsewhere}/cache/msn-deploy/data/{name}" in message
    assert "can't be downloaded" in message
    assert f"Put these files into one of the folders: {names.KNOWN[name].files}" in message
    assert len(message.splitlines()) <= 3


def test_without_the_package_it_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"Put these files [\s\S]*or: pip install '\.\[data\]'"):
        load_split("svhn", "test", **GRAY)


def test_an_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(InputError, match="no data called 'cifar-10'; did you mean 'cifar10'"):
        load_split("cifar-10", "test", **GRAY)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_the_hub_gives_becomes_arrays() -> None:
    datasets = pytest.importorskip("datasets")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "id": datasets.Value("int64")}
    )
    rows = {"img": [Image.fromarray(each) for each in pixels], "label": [1, 0, 1], "id": [5, 6, 7]}
    got = names.from_hub(datasets.Dataset.from_dict(rows, features=features), "cifar10")
    np.testing.assert_array_equal(got.images, pixels)
    assert got.labels.tolist() == [1, 0, 1]
    assert got.classes == ("cat", "dog")
    assert names.from_hub(datasets.Dataset.from_dict(rows, features=features), "mnist").classes == tuple("0123456789")
    with pytest.raises(InputError, match="not one image and one class per row"):
        names.from_hub(datasets.Dataset.from_dict({"id": [1]}), "cifar10")


def test_images_of_the_hub_come_through_the_door_of_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` alone would give PostScript to Ghostscript."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat"])})
    rows = datasets.Dataset.from_dict({"img": [{"bytes": eps, "path": None}], "label": [0]}, features=features)
    with pytest.raises(InputError, match=r"svhn\[0\] is not a readable image"):
        names.from_hub(rows, "svhn")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("reachable", [True, False])
def test_without_a_network_the_hub_is_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    """`datasets` reads the variable when it is imported, and otherwise retries for 20 seconds."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(names, "_is_reachable", lambda _: reachable)
    seen = []

    def load_dataset(*_: str, split: str) -> None:
        seen.append((split, os.environ.get("HF_HUB_OFFLINE")))
        raise ConnectionError("no such host")

    fake = types.SimpleNamespace(
        load_dataset=load_dataset, logging=types.SimpleNamespace(set_verbosity_error=lambda: None)
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(InputError, match=r"can't be (downloaded: no such host|reached)\.\nPut these files"):
        load_split("mnist", "test", **GRAY)
    assert seen == [("test", None if reachable else "1")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # so that what the code set is taken back with the fixture's


def test_reachable_is_what_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert names._is_reachable(os.environ["HF_ENDPOINT"])
    assert not names._is_reachable(os.environ["HF_ENDPOINT"])
