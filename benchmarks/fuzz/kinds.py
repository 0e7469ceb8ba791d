"""Which command lines meet which files, and which of these files are mutated."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz.mutations import mutated, sparse_size
from fuzz.names import with_odd_names
from fuzz.options import with_odd_options

CWD = "a/b/c"
"""Where commands run, seen from the folder of an input: what a path in a file climbs out of is still in that folder."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of input.

    files: what of the seeds comes where, seen from the working directory. changed: which of it is mutated, as a regular
    expression of whole paths; empty: none, see `lines`. lines: command lines, of which one is taken.
    """

    files: tuple[tuple[str, str], ...]
    changed: str
    lines: tuple[str, ...]
    weight: int = 1


_RUN = ("run", "in")
_TEXTS = ("texts", "in")
_DIGIT = ("texts/digit.png", "in/digit.png")
_HOME = ("home", "home")


def _data(name: str, *lines: str, model: str = "", changed: str = "", weight: int = 2) -> Kind:
    models = [(f"tasks/{each}.onnx", f"in/{each}.onnx") for each in model.split()]
    return Kind(
        files=((f"data/{name}", f"in/{name}"), *models),
        changed=changed or rf"in/{name}/.*",
        lines=(*(f"eval in/{each}.onnx --data in/{name}" for each in model.split()), *lines),
        weight=weight,
    )


_ONNX = "--samples 16 --data digits"
KINDS: dict[str, Kind] = {
    "checkpoint": Kind(
        files=(
            ("run/c.safetensors", "in/c.safetensors"),
            ("run/c.safetensors.json", "in/c.safetensors.json"),
            _DIGIT,
            ("texts/r.toml", "in/r.toml"),
        ),
        changed=r"in/c\.safetensors",
        lines=(
            "export in/c.safetensors --no-simplify --out out/x.onnx",
            "eval in/c.safetensors --samples 16",
            "info in/c.safetensors",
            "eval in/c.safetensors --samples 16 --json out/eval.json",
            "infer in/c.safetensors in/digit.png",
            "train in/r.toml --weights in/c.safetensors --epochs 1 --samples 16 --out out",
            "verify in",
            "bench in/c.safetensors --seconds 0.5 --threads 1",
        ),
        weight=8,
    ),
    "onnx": Kind(
        files=(("run/m.onnx", "in/m.onnx"), ("run/m.onnx.json", "in/m.onnx.json"), _DIGIT),
        changed=r"in/m\.onnx",
        lines=(
            *("export in/m.onnx --no-simplify --out out/x.onnx",) * 3,
            "export in/m.onnx --out out/x.onnx",
            *(f"eval in/m.onnx {_ONNX}", "eval in/m.onnx --samples 16", "info in/m.onnx") * 2,
            *(f"calibrate in/m.onnx {_ONNX} --method minmax --out out/q.onnx",) * 2,
            "infer in/m.onnx in/digit.png --save out",
            "build-engine in/m.onnx --target orin-nano-8gb --precision fp16 --out out/e.engine",
            "bench in/m.onnx --seconds 0.5 --threads 1 --json out/b.json",
            "verify in",
        ),
        weight=12,
    ),
    "sidecar": Kind(
        files=(_RUN, _DIGIT),
        changed=r"in/[^/]*\.json",
        lines=(
            *("verify in", "verify in --no-data", "verify in --json out/v.json") * 2,
            "bundle in --target orin-nano-8gb --no-wheels --out out/b.tar",
            "infer in/e.engine in/digit.png",
            "eval in/m.onnx --samples 16",
        ),
        weight=8,
    ),
    "plan": Kind(
        files=(
            ("run/e.engine", "in/e.engine"),
            ("run/e.plan.json", "in/e.plan.json"),
            ("run/m.int8.onnx", "in/m.int8.onnx"),
            _DIGIT,
            _HOME,
        ),
        changed=r"in/e\.(engine|plan\.json)",
        lines=(
            "eval in/e.engine",
            "info in/e.engine",
            "infer in/e.engine in/digit.png",
            "bench in/e.engine --seconds 0.5",
            "verify in",
        ),
        weight=6,
    ),
    "bench": Kind(
        files=(
            ("run/bench.json", "in/bench.json"),
            ("run/.msn-deploy/bench.json.json", "in/.msn-deploy/bench.json.json"),
            ("run/bench.json", "in/base.json"),
        ),
        changed=r"in/(bench|base)\.json",
        lines=(
            "bench in/bench.json --against in/base.json",
            "bench in/bench.json --against in/base.json --html out/r.html --markdown out/g.md --junit out/g.xml",
            "bench in/bench.json --against in/base.json --fail-if slower:3% --json out/b.json",
            "verify in",
        ),
        weight=8,
    ),
    "state": Kind(
        files=(("state", "out"), _TEXTS),
        changed=r"out/r\.(state\.safetensors|history\.jsonl|state\.safetensors\.json|safetensors)",
        lines=("train in/r.toml --samples 32 --resume --out out",),
        weight=4,
    ),
    "trust": Kind(
        files=(("run/e.engine", "in/e.engine"), ("run/e.plan.json", "in/e.plan.json"), _DIGIT, _HOME),
        changed=r"home/trusted\.jsonl",
        lines=("eval in/e.engine", "infer in/e.engine in/digit.png", "bench in/e.engine"),
        weight=2,
    ),
    "cache": Kind(
        files=(("run/m.onnx", "in/m.onnx"), _HOME),
        changed=r"home/calibration/.*",
        lines=("calibrate in/m.onnx --samples 16 --data digits --method minmax --out out/q.onnx",),
        weight=3,
    ),
    "table": Kind(
        files=(("run/m.onnx", "in/m.onnx"), ("texts/t.cache", "in/t.cache")),
        changed=r"in/t\.cache",
        lines=(
            "build-engine in/m.onnx --precision int8 --dla 0 --target orin-nx-16gb --calibration-table in/t.cache "
            "--out out/e.engine",
        ),
    ),
    "t7": Kind(
        files=(("weights/Conv_a.t7", "in/Conv_a.t7"),),
        changed=r"in/Conv_a\.t7",
        lines=("import-checkpoint in/Conv_a.t7 --out out/x.safetensors",),
        weight=3,
    ),
    "weights": Kind(
        files=(("weights/w.pt", "in/w.pt"), ("texts/net.py", "in/net.py")),
        changed=r"in/w\.pt",
        lines=("export in/net.py:net --weights in/w.pt --input-shape 1,1,8,8 --no-simplify --out out/x.onnx",),
        weight=3,
    ),
    "calibration-recipe": Kind(
        files=(("run/m.onnx", "in/m.onnx"), _TEXTS),
        changed=r"in/c\.toml",
        lines=("calibrate in/m.onnx --recipe in/c.toml --out out/q.onnx",),
        weight=2,
    ),
    "recipe": Kind(
        files=(_TEXTS,),
        changed=r"in/r\.toml",
        lines=(
            *("train in/r.toml --epochs 1 --samples 16 --out out",) * 4,
            "train in/r.toml --epochs 1 --samples 16 --out out --norm bn --json out/t.json",
            "study in/r.toml --norms bn,msn --epochs 1 --samples 16 --out out",
        ),
        weight=6,
    ),
    "suite": Kind(
        files=(_TEXTS,),
        changed=r"in/s\.toml",
        lines=(
            "suite in/s.toml --plan --out out",
            "suite in/s.toml --plan --out out --runs out/runs",
            "suite in/s.toml --plan",
        ),
        weight=4,
    ),
    "preparation": Kind(
        files=(("run/m.onnx", "in/m.onnx"), _TEXTS),
        changed=r"in/(p\.toml|k\.txt|k\.json)",
        lines=(
            "export in/m.onnx --preprocess in/p.toml --no-simplify --out out/x.onnx",
            "export in/m.onnx --task classification --classes in/k.txt --no-simplify --out out/x.onnx",
            "export in/m.onnx --task classification --classes in/k.json --no-simplify --out out/x.onnx",
        ),
        weight=3,
    ),
    "data-idx": _data("idx", "calibrate in/grey.onnx --data in/idx --samples 16 --out out/q.onnx", model="grey"),
    "data-cifar": _data("cifar", model="cifar", weight=1),
    "data-svhn": _data("svhn", model="svhn"),
    "data-coco": Kind(
        files=(
            ("data/coco", "in/coco"),
            ("tasks/boxes.onnx", "in/boxes.onnx"),
            ("tasks/coco-masks.onnx", "in/coco-masks.onnx"),
            _TEXTS,
        ),
        changed=r"in/coco/(all\.json|all\.json|images/0\.png)",
        lines=(
            *(
                "eval in/boxes.onnx --data in/coco/all.json",
                "eval in/coco-masks.onnx --data in/coco",
                "eval in/boxes.onnx --data in/coco",
            )
            * 2,
            "train in/detector.toml --data in/coco --epochs 1 --samples 4 --out out",
        ),
        weight=4,
    ),
    "data-yolo": _data("yolo", model="boxes", changed=r"in/yolo/(data\.yaml|labels/.*|images/val/0\.png)", weight=4),
    "data-masks": Kind(
        files=(("data/masks", "in/masks"), ("tasks/masks.onnx", "in/masks.onnx"), _TEXTS),
        changed=r"in/masks/(masks/.*|classes\.txt|images/0\.png)",
        lines=(
            *("eval in/masks.onnx --data in/masks",) * 3,
            "train in/unet.toml --data in/masks --epochs 1 --samples 4 --out out",
        ),
        weight=2,
    ),
    "data-depth": _data("depth", model="depth", changed=r"in/depth/depth_mm/.*"),
    "data-wanted": _data("wanted", model="wanted"),
    "data-table": _data(
        "table", model="two values labels vector", changed=r"in/table/(labels\.csv|labels\.csv|img/0\.png)", weight=4
    ),
    "data-arrays": Kind(
        files=(
            ("data/arrays", "in/arrays"),
            *((f"tasks/{name}.onnx", f"in/{name}.onnx") for name in ("two", "value", "masks", "depth")),
        ),
        changed=r"in/arrays/.*",
        lines=(
            *(f"eval in/{name}.onnx --data in/arrays/set.npz" for name in ("two", "masks")),
            "eval in/value.onnx --data in/arrays/values.npz",
            *(f"eval in/{name}.onnx --data in/arrays/maps.npz" for name in ("masks", "depth")),
            "calibrate in/two.onnx --data in/arrays/set.npz --samples 16 --out out/q.onnx",
        ),
        weight=4,
    ),
    "data-feeds": Kind(
        files=(("data/feeds", "in/feeds"), ("tasks/arrays.onnx", "in/arrays.onnx")),
        changed=r"in/feeds/.*",
        lines=(
            *(
                f"calibrate in/arrays.onnx --data in/feeds/feeds.{kind} --samples 16 --out out/q.onnx"
                for kind in ("npz", "npy")
            ),
            "bench in/arrays.onnx --data in/feeds/feeds.npz --seconds 0.5 --threads 1",
            "export in/arrays.onnx --data in/feeds/feeds.npz --no-simplify --out out/x.onnx",
        ),
        weight=3,
    ),
    "data-folders": _data(
        "folders", "calibrate in/two.onnx --data in/folders --samples 16 --out out/q.onnx", model="two"
    ),
    "data-images": Kind(
        files=(("data/images", "in/images"), ("tasks/two.onnx", "in/two.onnx")),
        changed=r"in/images/.*",
        lines=(
            "infer in/two.onnx {changed}",
            "infer in/two.onnx in/images --json -",
            "infer in/two.onnx in/images --save out --json out/told.json",
            "calibrate in/two.onnx --data in/images --samples 16 --out out/q.onnx",
        ),
        weight=8,
    ),
    "names": Kind(
        files=(
            _RUN,
            _TEXTS,
            ("data/folders", "in/folders"),
            ("tasks/two.onnx", "in/two.onnx"),
            ("weights/Conv_a.t7", "in/Conv_a.t7"),
        ),
        changed="",
        lines=(
            "eval {m.onnx} --samples 16",
            "infer in/m.onnx {digit.png}",
            "infer in/two.onnx {folders}",
            "infer {m.onnx} in/digit.png --save out/NAME",
            "export {m.onnx} --no-simplify --out out/NAME.onnx",
            "export {c.safetensors} --no-simplify --out out/NAME.onnx",
            "calibrate {m.onnx} --data digits --samples 16 --method minmax",
            "calibrate in/two.onnx --data {folders} --samples 16 --out out/NAME.onnx",
            "bench {m.onnx} --seconds 0.5 --threads 1 --html out/NAME.html --json out/NAME.json",
            "bench {bench.json} --against in/bench.json --junit out/NAME.xml",
            "build-engine {m.onnx} --target orin-nano-8gb --precision fp32",
            "build-engine in/m.onnx --target orin-nano-8gb --precision fp32 --out out/NAME.engine",
            "verify {folders}",
            "verify in",
            "bundle in --target orin-nano-8gb --no-wheels --out out/NAME.tar",
            "bundle {folders} --target orin-nano-8gb --no-wheels --out out/b.tar",
            "train {r.toml} --epochs 1 --samples 16 --out out/NAME",
            "eval in/two.onnx --data {folders}",
            "import-checkpoint {Conv_a.t7} --out out/NAME.safetensors",
            "suite {s.toml} --plan --out out/NAME",
            "eval {e.engine}",
            "NAME",
            "export {net.py}:net --input-shape 1,1,8,8 --no-simplify --out out/x.onnx",
            "train in/r.toml --set name=NAME --epochs 1 --samples 16 --out out",
            "eval in/m.onnx --data NAME",
            "train NAME",
            "suite NAME --plan",
            "calibrate in/m.onnx --recipe NAME",
        ),
        weight=12,
    ),
    "options": Kind(
        files=(_RUN, _TEXTS, ("data/folders", "in/folders"), ("weights/w.pt", "in/w.pt")),
        changed="",
        lines=("",),
        weight=12,
    ),
}


@dataclass(frozen=True)
class Input:
    """One input: the command line, and which file of it was changed, for people."""

    kind: str
    args: list[str]
    changed: str


def is_slow(line: str) -> bool:
    """Whether a command line trains or exports a network of torch, whose imports alone take as long as many inputs."""
    return line.startswith(("train", "study")) or bool(re.match(r"export .*(\.safetensors|net\.py)", line))


def prepare(index: int, seed: int, seeds: Path, folder: Path, *, quick: bool = False) -> Input:
    """Lay out the files of an input in an empty folder, mutated, and return what to run in its CWD.

    quick: leave out command lines that are slow.
    """
    rng = Random(f"{seed}/{index}")
    names = [name for name, kind in KINDS.items() if not quick or not all(map(is_slow, kind.lines))]
    name = rng.choices(names, [KINDS[each].weight for each in names])[0]
    kind = KINDS[name]
    place = folder / CWD
    for below in ("in", "out", "victim", "tmp", "home"):
        (place / below).mkdir(parents=True)
    (place / "victim" / "net.safetensors").write_bytes(b"of somebody else")
    for source, target in kind.files:
        _copy(seeds / source, place / target)
    line = rng.choice([each for each in kind.lines if not (quick and is_slow(each))])
    if name == "options":
        return Input(name, with_odd_options(rng, leave_out=is_slow if quick else None), "")
    if name == "names":
        return Input(name, *with_odd_names(line, place, rng))
    paths = [path for path in sorted(place.rglob("*")) if path.is_file()]
    fitting = [path for path in paths if re.fullmatch(kind.changed, path.relative_to(place).as_posix())]
    path = rng.choice(fitting)
    told = path.relative_to(place).as_posix()
    _change(path, told, rng)
    for more in fitting if rng.random() < 0.1 else ():
        if more != path and more.is_file():
            _change(more, more.name, rng)
    return Input(name, shlex.split(line.replace("{changed}", told)), told)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def _change(path: Path, name: str, rng: Random) -> None:
    """Mutate a file; once in a while put something else than a file in its place."""
    if (size := sparse_size(rng)) is not None:
        os.truncate(path, size)
        return
    if rng.random() < 0.02:
        path.unlink()
        match rng.randrange(8):
            case 0:
                os.mkfifo(path)
            case 1:
                path.mkdir()
            case 2:
                path.symlink_to(path.name)
            case 3:
                path.symlink_to("/dev/zero")
            case 4:
                path.symlink_to("/proc/self/mem")
            case 5:
                path.symlink_to("gone")
            case 6:
                path.symlink_to("/dev/stdin")
            case _:
                path.symlink_to("/etc/hostname")
        return
    path.write_bytes(mutated(name, path.read_bytes(), rng))
