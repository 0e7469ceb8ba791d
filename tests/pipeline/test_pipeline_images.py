"""Which images a model is followed to, and which have to be typed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo, Preprocess
from msn_deploy.pipeline.images import has_inputs, own_data, split_for

PREP = Preprocess(height_px=8, width_px=8, channels=1, mean=(0.5,), std=(0.5,))


def _info(data: str, **more: Any) -> ModelInfo:
    return ModelInfo(net="cnn3", norm="bn", data=data, preprocess=PREP, **more)


def test_a_known_name_on_this_machine_is_taken() -> None:
    assert own_data(_info("digits")) == "digits"
    assert has_inputs(_info("digits"), None)
    assert len(split_for(_info("digits"), PREP, None, "test").labels) == 364
    assert own_data(None) == own_data(_info("")) == ""
    assert not has_inputs(None, None)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_folder_that_only_the_file_names_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, absolute: bool
) -> None:
    for name in ("train/a", "test/a"):
        (tmp_path / "my photos" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "my photos" / name / "0.png")
    monkeypatch.chdir(tmp_path)
    source = str(tmp_path / "my photos") if absolute else "my photos"
    with pytest.raises(InputError, match=r"not the name of a data set[\s\S]*`--data '.*my photos'`"):
        split_for(_info(source), PREP, None, "test")
    assert len(split_for(_info(source), PREP, source, "test").images) == 1
    assert not has_inputs(_info(source), None)
    assert "trained on" in caplog.text
    assert has_inputs(_info(source), source)


def test_nothing_is_downloaded_because_a_file_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MSN_DEPLOY_DATA", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("msn_deploy.data.names.download", None)
    with pytest.raises(InputError, match=r"'svhn', which would have to be downloaded[\s\S]*`--data svhn`"):
        split_for(_info("svhn"), PREP, None, "test")


def test_a_pipe_that_a_file_names_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match="is not the name of a data set"):
        split_for(_info(str(tmp_path / "pipe.npz")), PREP, None, "test")
    with pytest.raises(InputError, match="is not a plain file: it is a pipe"):
        split_for(_info(""), PREP, str(tmp_path / "pipe.npz"), "test")
