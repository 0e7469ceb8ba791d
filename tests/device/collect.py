"""On a Jetson: run what could not be proved without one, into one file to send back. `make device-test`.

docs/guides/first-run.md says what to expect of each step. Needs nothing but Python 3.10 and this checkout; a step that
fails or hangs does not keep the others from running, and the file is written anew after each.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = "pytest pytest-xdist hypothesis scikit-learn scipy"  # of the tests; linters and browsers stay at home
KEEP = 40_000  # characters of what a step says: its start and its end


@dataclass(frozen=True, kw_only=True)
class Step:
    """One line of sh. expected: the exit codes that are fine; any of a fact, which may be missing on a board."""

    name: str
    line: str
    limit_s: float = 120
    expected: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a step; code None: it was ended at its limit."""

    step: Step
    code: int | None
    seconds: float
    said: str

    @property
    def verdict(self) -> str:
        if self.code is None:
            return "TOO LONG"
        if self.step.expected is None:
            return "fact"
        return "ok" if self.code in self.step.expected else "FAILED"


FACTS = (
    ("machine", "uname -a; cat /etc/os-release | head -n 3; free -m; nproc"),
    ("L4T", "cat /etc/nv_tegra_release; dpkg-query -W nvidia-jetpack nvidia-l4t-core"),
    ("device tree", "tr '\\0' '\\n' </proc/device-tree/model; tr '\\0' '\\n' </proc/device-tree/compatible"),
    ("packages", "dpkg-query -W '*nvinfer*' '*tensorrt*' 'cuda-toolkit*' 'libcudnn*' 'nvidia-container*' 'docker*'"),
    ("device files", "id; ls -lR /dev/nvgpu; ls -l /dev/nv* /dev/dri"),
    ("power mode", "nvpmodel -q; cat /var/lib/nvpmodel/status; grep POWER_MODEL /etc/nvpmodel.conf"),
    ("clocks", "for f in /sys/class/devfreq/*; do echo $f; cat $f/min_freq $f/max_freq $f/cur_freq; done"),
    ("heat", "for z in /sys/class/thermal/thermal_zone*; do echo $z; cat $z/type $z/temp; grep . $z/trip_point_*; "
     "ls -l $z | grep cdev; done; for c in /sys/class/thermal/cooling_device*; do cat $c/type $c/cur_state; done"),
    ("power rails", "cd /sys/class/hwmon; grep . hwmon*/name hwmon*/*label hwmon*/*_input hwmon*/update_interval"),
    ("trtexec", "PATH=$PATH:/usr/src/tensorrt/bin trtexec --help"),
    ("docker", "docker info; cat /etc/docker/daemon.json; head -n 40 /etc/cdi/* /var/run/cdi/*"),
)  # fmt: skip


def steps(venv: str = ".venv-device") -> list[Step]:
    """Return all steps, in order: facts, then the suite, then the chain from a network to a measurement."""
    msn, python = f"{venv}/bin/msn-deploy", f"{venv}/bin/python"
    chain = "device-test/runs"
    return [
        *(Step(name=name, line=line) for name, line in FACTS),
        # JetPack's TensorRT is among the system's packages.
        Step(name="environment", line=f"/usr/bin/python3 -m venv --system-site-packages {venv}", expected=(0,)),
        Step(
            name="install",
            line="PATH=$PATH:/usr/local/cuda/bin "
            f"{python} -m pip install --quiet --editable '.[jetson,export]' {TOOLS}",
            limit_s=3600,
            expected=(0,),
        ),
        Step(name="versions", line=f"{python} -m pip list"),
        Step(name="doctor", line=f"{msn} doctor", expected=(0,)),
        Step(name="doctor as JSON", line=f"{msn} doctor --json", expected=(0,)),
        Step(
            name="tests of engines",
            line=f"{python} -m pytest -p no:cacheprovider -rs tests/gpu",
            limit_s=1800,
            expected=(0,),
        ),
        Step(
            name="suite",
            line=f"{python} -m pytest -p no:cacheprovider -m 'not slow' --durations=20 tests/machine tests/engine "
            "tests/bench tests/core tests/data tests/model tests/quant tests/tasks tests/report",
            limit_s=3600,
            expected=(0,),
        ),
        Step(name="train", line=f"{msn} train cnn3_msn --epochs 2 --out {chain}", limit_s=1800, expected=(0,)),
        Step(name="export", line=f"{msn} export {chain}/cnn3_msn.safetensors --out {chain}/n.onnx", expected=(0,)),
        Step(name="calibrate", line=f"{msn} calibrate {chain}/n.onnx --out {chain}/n.int8.onnx", expected=(0,)),
        *(
            Step(
                name=f"build {precision}",
                line=f"{msn} build-engine {chain}/{source} --precision {precision} --target auto "
                f"--out {chain}/n.{precision}.engine",
                limit_s=900,
                expected=(0,),
            )
            for precision, source in (("fp32", "n.onnx"), ("fp16", "n.onnx"), ("int8", "n.int8.onnx"))
        ),
        *(
            Step(
                name=f"eval {name}",
                line=f"{msn} eval {chain}/{name} --data digits",
                limit_s=600,
                expected=(0,),
            )
            for name in ("n.onnx", "n.fp32.engine", "n.fp16.engine", "n.int8.engine")
        ),
        # 4: the machine was too restless, which the words say; a finding as well
        Step(
            name="bench",
            line=f"{msn} bench {chain}/n.fp16.engine {chain}/n.int8.engine --baseline {chain}/n.fp32.engine --energy",
            limit_s=1800,
            expected=(0, 4),
        ),
        Step(name="kernel messages", line="dmesg | tail -n 100"),
    ]


def run(step: Step, *, root: Path = ROOT) -> Outcome:
    """Run a step to its end or its limit, with all that it started."""
    began = time.monotonic()
    process = subprocess.Popen(
        ["sh", "-c", step.line],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    code: int | None = None
    try:
        said, _ = process.communicate(timeout=step.limit_s)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
    text = said.decode(errors="replace")
    if len(text) > KEEP:
        text = f"{text[: KEEP // 2]}\n... {len(text) - KEEP} characters left out ...\n{text[-KEEP // 2 :]}"
    return Outcome(step=step, code=code, seconds=time.monotonic() - began, said=text)


def page(outcomes: Sequence[Outcome], left: int) -> str:
    """Return the file: a line per step, then what each said."""
    lines = [f"{each.verdict:<9}{each.seconds:8.1f} s  {each.step.name}" for each in outcomes]
    if left:
        lines.append(f"not run yet: {left} steps")
    for each in outcomes:
        lines += ["", f"==== {each.step.name}: exit {each.code}", f"$ {each.step.line}", each.said.rstrip()]
    return "\n".join(lines) + "\n"


def collect(todo: Sequence[Step], out: Path, *, root: Path = ROOT) -> int:
    """Run all steps; returns how many failed or took too long."""
    outcomes: list[Outcome] = []
    for at, step in enumerate(todo, 1):
        sys.stdout.write(f"[{at}/{len(todo)}] {step.name}\n")
        sys.stdout.flush()
        outcomes.append(run(step, root=root))
        partial = out.with_name(out.name + ".partial")
        partial.write_text(page(outcomes, len(todo) - at), encoding="utf-8")
        partial.replace(out)
    return sum(each.verdict in ("FAILED", "TOO LONG") for each in outcomes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("device-test.txt"))
    to = parser.parse_args().out
    failed = collect(steps(), to)
    sys.stdout.write(f"{failed} steps failed. Send {to} back: it holds what each said, and no file of yours.\n")
    sys.exit(1 if failed else 0)
