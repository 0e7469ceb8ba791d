"""Time and largest memory of `msn-deploy export` against torch's exporter with onnxsim: `make export-cost`.

Both are commands in a fresh process, the making of the network included; they take turns. Memory: the largest resident
set of a command or of a process that it started.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from run import HERE, ROOT, environment

NETWORKS = ("timm_resnet18", "timm_densenet121", "smp_Unet_resnet18")
SIDES = (224, 512)
PEER = """
import sys
import onnx, onnxsim, torch, zoo
net = zoo.built(sys.argv[1])
side = int(sys.argv[2])
program = torch.onnx.export(net, (torch.zeros(1, 3, side, side),), dynamo=True, verbose=False)
simplified, _ = onnxsim.simplify(program.model_proto)
onnx.save(simplified, sys.argv[3])
"""


def cost(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Run a command; return its seconds and MiB. Raises RuntimeError if it fails."""
    began = time.perf_counter()
    null = os.open(os.devnull, os.O_WRONLY)
    pid = os.posix_spawn(
        command[0], command, env, file_actions=[(os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
    )
    _, status, used = os.wait4(pid, 0)
    took = time.perf_counter() - began
    os.close(null)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return took, used.ru_maxrss / 1024


def main() -> None:
    """Measure every network at every size and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "xeon-2-cores" / "export-cost.json"
    )
    options = parser.parse_args()
    python = str(environment((ROOT / ".venv" / "networks").resolve()))
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "MSN_DEPLOY_HOME": folder}
        for name, side in ((name, side) for side in SIDES for name in NETWORKS):
            ours = [python, "-m", "msn_deploy", "export", f"{HERE / 'zoo.py'}:{name}", "--input-shape",
                    f"1,3,{side},{side}", "--out", f"{folder}/ours.onnx"]  # fmt: skip
            peer = [python, "-c", PEER, name, str(side), f"{folder}/peer.onnx"]
            found: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
            for at in range(options.rounds):
                for arm in ("ours", "peer") if at % 2 else ("peer", "ours"):
                    found[arm].append(cost(ours if arm == "ours" else peer, env))
            cases.append(_case(name, side, found))
            print(cases[-1], flush=True)
    options.out.write_text(json.dumps({"rounds": options.rounds, "cases": cases}, indent=1) + "\n", encoding="utf-8")


def _case(name: str, side: int, found: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    pairs = list(zip(found["ours"], found["peer"], strict=True))
    times = sorted(ours[0] / peer[0] for ours, peer in pairs)
    sizes = sorted(ours[1] / peer[1] for ours, peer in pairs)
    return {
        "network": name,
        "side_px": side,
        "time_ratio": [statistics.median(times), times[0], times[-1]],
        "memory_ratio": [statistics.median(sizes), sizes[0], sizes[-1]],
        "seconds": {arm: statistics.median(each[0] for each in runs) for arm, runs in found.items()},
        "mib": {arm: statistics.median(each[1] for each in runs) for arm, runs in found.items()},
        "raw": found,
    }


if __name__ == "__main__":
    sys.exit(main())
