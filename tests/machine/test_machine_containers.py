"""The `docker run` line: what this machine's Docker takes, and the group of its device files."""

import os
import subprocess
from pathlib import Path

import pytest

from msn_deploy.machine.containers import COPIES, GPU_FLAGS, MOUNTED, docker_run, gpu_flags

RUNTIME, CDI, _ = GPU_FLAGS
DAEMON = "etc/docker/daemon.json"
REGISTERED = '{"default-runtime": "nvidia", "runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}}'
# As nvidia-ctk writes it on a Tegra: hundreds of mounts first, and the kind, by alphabet, last.
DESCRIPTION = "cdiVersion: 0.5.0\ncontainerEdits:\n  mounts:\n" + "  - hostPath: /usr/lib/aarch64-linux-gnu/x\n" * 4000
DESCRIPTION += "devices:\n- name: all\nkind: nvidia.com/gpu\n"


@pytest.mark.parametrize(
    ("files", "flags"),
    [
        ({DAEMON: REGISTERED}, {"nvidia": RUNTIME}),
        ({"etc/cdi/nvidia.yaml": DESCRIPTION}, {"CDI": CDI}),  # JetPack 7.2: Docker knows no runtime of that name
        ({"var/run/cdi/nvidia.yaml": DESCRIPTION, DAEMON: "{}"}, {"CDI": CDI}),
        ({"run/cdi/n.json": '{"kind":"nvidia.com/gpu"}', DAEMON: REGISTERED}, {"nvidia": RUNTIME, "CDI": CDI}),
        ({"etc/cdi/nvidia.yaml": DESCRIPTION, DAEMON: '{"features": {"cdi": false}}'}, {}),
        ({"etc/cdi/other.yaml": "kind: nvidia.com/pva\n"}, {}),
        ({DAEMON: '{"registry-mirrors": ["https://nvidia.example"]}'}, {}),
        ({DAEMON: '{"runtimes": "nvidia"'}, {}),
        ({DAEMON: '["nvidia"]'}, {}),
        ({}, {}),
    ],
)  # fmt: skip
def test_flags_are_those_that_docker_knows(tmp_path, files, flags):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert gpu_flags(tmp_path) == flags
    assert list(gpu_flags(tmp_path).values()) == [flag for flag in GPU_FLAGS if flag in flags.values()]


@pytest.mark.parametrize("gpu", GPU_FLAGS)
def test_the_line_is_sh_and_holds_flag_cache_mounts_and_group(tmp_path, gpu):
    """Run with a stand-in of docker: quotes and the group's number are what the shell makes of them."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvhost-gpu").touch()
    (tmp_path / "docker").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/words\n')
    (tmp_path / "docker").chmod(0o755)
    line = docker_run(tmp_path, gpu=gpu)
    assert "$(stat -c %g /dev/nvhost-gpu)" in line
    for name in COPIES:
        (tmp_path / name).write_bytes(b"one\0two\0")
    line = line.replace("/dev/nvhost-gpu", "/dev/null").replace("/proc/device-tree/", f"{tmp_path}/")
    line = line.replace(">/tmp/nv_jetson_$f", f">{tmp_path}/copy_$f")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PWD": str(tmp_path)}
    subprocess.run(["sh", "-c", line + " doctor"], env=env, cwd=tmp_path, check=True, timeout=60)
    words = (tmp_path / "words").read_text().split("\n")
    assert words[:3] == ["run", "--rm", gpu]
    assert words[words.index("--group-add") + 1] == str(Path("/dev/null").stat().st_gid)
    mounts = [f"{name}:{name}:ro" for name in (*MOUNTED, *(f"/tmp/nv_jetson_{name}" for name in COPIES))]
    assert {*mounts, "msn-cache:/cache", f"{tmp_path}:/data"} <= set(words)
    assert words[-3:] == ["msn-deploy", "doctor", ""]
    assert [(tmp_path / f"copy_{name}").read_text() for name in COPIES] == ["one\ntwo\n"] * 2
