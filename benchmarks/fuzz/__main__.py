"""`make fuzz`: mutated inputs of every kind, and benchmarks/results/<machine>/fuzz.json of what came of them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import traceback
from importlib import metadata
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked process has none of its parent's threads

ROOT = Path(__file__).resolve().parents[2]
_RESULTS = ROOT / "benchmarks" / "results"
_WORK = ROOT / "runs" / "fuzz"
_PACKAGES = ("numpy", "onnx", "onnxruntime", "pillow", "pydantic", "safetensors", "torch", "typer")


def main() -> int:
    """Run what the command line asks for, and return 1 if anything was found."""
    from msn_deploy.machine.environment import machine_name, read_environment

    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=300, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--only", metavar="INDEX,...", help="run these inputs of the seed again, and print what they do"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N")
    parser.add_argument("--quick", action="store_true", help="no command that trains or exports a network of torch")
    parser.add_argument("--work", type=Path, default=_WORK, help="seeds, results so far and what failed are kept here")
    parser.add_argument("--out", type=Path, default=_RESULTS / machine_name(read_environment()) / "fuzz.json")
    args = parser.parse_args()
    from fuzz.campaign import counted, one, results_of, warm_up
    from fuzz.seeds import make_seeds

    seeds = _forked(make_seeds, args.work / f"seeds{'-quick' * args.quick}", quick=args.quick)
    warm_up(seeds, quick=args.quick)
    failed = args.work / "failed"
    if args.only:
        for index in map(int, args.only.split(",")):
            print(json.dumps(vars(one(index, args.seed, seeds, quick=args.quick, keep=failed)), indent=2))
        return 0
    results = results_of(
        args.seed,
        range(args.inputs),
        seeds,
        args.work / f"seed-{args.seed}",
        jobs=args.jobs,
        quick=args.quick,
        keep=failed,
    )
    told = counted(args.seed, results)
    for result in results:
        for what, of in result.faults:
            print(f"{result.index:6} {what:10} {result.kind:18} {result.line[:100]}\n{'':18}{of[:300]}")
    print(json.dumps({key: value for key, value in told.items() if key not in ("found", "exit_codes_by_kind")}))
    _write(args.out, told)
    return int(any(told["faults"].values()))


def _forked(make, folder: Path, *, quick: bool) -> Path:
    """Make the seeds in a process of their own: torch has threads after a training, which no fork would have."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            make(folder, quick=quick)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the seeds could not be made; see above")
    return folder


def _write(path: Path, told: dict) -> None:
    """Put the counts of a seed to those of others; a seed that is run again replaces its own."""
    before = json.loads(path.read_text()) if path.is_file() else {"runs": []}
    runs = sorted(
        [*(each for each in before["runs"] if each["seed"] != told["seed"]), told], key=lambda each: each["seed"]
    )
    total = {what: sum(each["faults"][what] for each in runs) for what in told["faults"]}
    about = {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}}
    value = {"inputs": sum(each["inputs"] for each in runs), "faults": total, "versions": about, "runs": runs}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
