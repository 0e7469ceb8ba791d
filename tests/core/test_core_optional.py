"""The door to optional packages: what torch makes when it is loaded lies in the user's own folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import msn_deploy
from msn_deploy.core.optional import require

TRAIN = "import torch; torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1).step(); import torch._dynamo"


@pytest.mark.slow
def test_torch_leaves_no_folder_of_its_own_in_tmp(tmp_path: Path) -> None:
    for name in ("tmp", "home"):
        (tmp_path / name).mkdir()
    code = f"from msn_deploy.core.optional import require; require('torch', step='train'); {TRAIN}"
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "MSN_DEPLOY_HOME": str(tmp_path / "home")}
    env.pop("TORCHINDUCTOR_CACHE_DIR", None)
    env["PYTHONPATH"] = str(Path(msn_deploy.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["torchinductor"]


@pytest.mark.parametrize("home", ["own", "none", "given"])
def test_where_torch_keeps_what_it_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below_a_file: Path, home: str
) -> None:
    monkeypatch.setenv("MSN_DEPLOY_HOME", str(below_a_file if home == "none" else tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "given")
    if home != "given":
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    require("torch", step="train")
    expected = {"own": str(tmp_path / "torchinductor"), "none": None, "given": "given"}[home]
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == expected
