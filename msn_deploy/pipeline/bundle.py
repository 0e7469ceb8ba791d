"""`bundle`: one tarball with all that a device needs to build, check and measure a run, without a network.

Models with their sidecars, recipes, wheels, and scripts in POSIX sh that also serve a JetPack whose Python is too old.
The same inputs give the same bytes: names sorted, no times, no owners, no compression (wheels are compressed).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import tarfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Literal

from msn_deploy import __version__
from msn_deploy.core.artifacts import ASIDE, publish, read_sidecar, sha256_of, sidecar_of, sidecar_path
from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.partials import partial_folder
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.reader import record
from msn_deploy.engine import BuildOptions, OrtRunner, Target
from msn_deploy.engine.device_script import DLA_RELEASES, LIBRARY, assignments, library_text, with_options
from msn_deploy.machine.device import TREE_COPY, board_words
from msn_deploy.machine.jetpacks import l4t_majors
from msn_deploy.machine.targets import check_precision
from msn_deploy.model.opened import OpenModel, open_model
from msn_deploy.pipeline.verify import read_folder
from msn_deploy.pipeline.wheels import PYTHONS, gather_wheels
from msn_deploy.pipeline.with_cpp import cpp_files
from msn_deploy.pipeline.with_deepstream import deepstream_files
from msn_deploy.pipeline.with_triton import triton_files

Extra = Literal["cpp", "deepstream", "triton"]
EXTRAS: Mapping[Extra, Callable[[Sequence[OpenModel], BuildOptions], Mapping[str, bytes]]] = {
    "cpp": cpp_files,
    "deepstream": deepstream_files,
    "triton": triton_files,
}
"""What `--with` adds: the files for all models, by their path in the bundle."""
_EXTRA_LINES: Mapping[Extra, str] = {
    "cpp": """\
A C++ program that runs the engines; its folder has to lie outside of this one, in which nothing may be added:

    cmake -S cpp -B ../msn-infer && cmake --build ../msn-infer && ctest --test-dir ../msn-infer
    ../msn-infer/msn-infer cpp/models/NAME.json engines/NAME.engine IMAGE...""",
    "deepstream": "Gst-nvinfer's configurations for the engines, with a pipeline to try: deepstream/README.txt",
    "triton": "A model repository of Triton from the engines, in DIR: sh triton/repository.sh DIR",
}
_KINDS = ("onnx", "timing-cache", "calibration-table", "fold-certificate", "device-script")
SCRIPTS = resources.files("msn_deploy.pipeline") / "bundle_scripts"
"""What runs on a device, in sh."""
_SCRIPTS = ("bench.sh", "build.sh", "common.sh", "eval.sh", "install.sh", "step", "verify")
# Scripts and SHA256SUMS quote nothing, and a name of a tar file has 100 characters at most.
_PLAIN_NAME = re.compile(rf"(({re.escape(ASIDE)}|[\w+-][\w.+-]*)/)*[\w+-][\w.+-]*", re.ASCII)
_LONGEST_NAME, _LONGEST_PATH = 100, 200
_README = """\
For {title} ({target}), packed by msn-deploy {version}. Nothing here needs a network.

    ./verify [DIGEST]
    ./install.sh     msn-deploy into .venv beside this file (JetPack 6 and later)
    ./build.sh       engines into engines/; refuses any other device
    ./eval.sh DATA   how often each model is right
    ./bench.sh       report/, to be copied back
{more}
JetPack before 6 has a Python older than 3.10: build.sh and bench.sh drive its trtexec there.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledModel:
    """One ONNX file of a bundle: its path there, precision, SHA-256, and what its metadata says it is ("" if not)."""

    file: str
    precision: str
    sha256: str
    net: str
    norm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleReport:
    """What was packed. digest: SHA-256 of SHA256SUMS, which covers every other file; `./verify DIGEST` checks it.

    sha256: of the tarball, to be checked before it is unpacked: `verify` is part of it. left_out: models in a precision
    that the target lacks.
    """

    path: Path
    bytes: int
    target: str
    sha256: str
    digest: str
    models: tuple[BundledModel, ...]
    files: int
    wheels: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def bundle(
    run: Path,
    out: Path,
    *,
    target: Target,
    wheels: Path | None = None,
    with_wheels: bool = True,
    options: BuildOptions | None = None,
    pythons: Sequence[str] = PYTHONS,
    extras: Sequence[Extra] = (),
    keep: bool = False,
    progress: Progress = silent,
) -> BundleReport:
    """Pack a run folder for a device.

    Args:
        run: The folder.
        out: The tarball to write.
        target: A Jetson.
        wheels: A folder to take wheels from; None downloads them.
        with_wheels: False packs none: scripts and trtexec only.
        options: How build.sh builds engines; it decides by itself about replicates and the timing cache.
        pythons: Versions of Python on the device.
        extras: What else to pack, of EXTRAS.
        keep: Take the tarball that is there, if it was packed from the same files.
        progress: Told of the wheels.

    Raises:
        InputError: The folder has no ONNX files that the target can use, or one that leaves more than its batch open;
            a name would have to be quoted in a shell; wheels are missing or must not come along; a model does not suit
            one of the extras.
    """
    options = options or BuildOptions()
    if not target.jetson:
        raise InputError(f"{target.name} is not a Jetson; a bundle is for one.\n`msn-deploy targets` lists them.")
    _check_names([out.stem])
    contents: dict[str, bytes | Path] = dict(_run_files(run))
    _check_names(contents)
    found = _models(contents)
    models = [each for each in found if each[0].precision in target.precisions]
    left_out = [model.file for model, _, _ in found if model.precision not in target.precisions]
    if not models:
        check_precision(target, found[0][0].precision)
    for name in left_out:
        del contents[name]
        contents.pop(sidecar_path(Path(name)).as_posix(), None)
    _check_shapes(options, [onnx for _, _, onnx in models])
    contents |= {f"recipes/{Path(model.file).stem}.json": recipe for model, recipe, _ in models if recipe is not None}
    names = [model for model, _, _ in models]
    contents["models.list"] = "".join(f"{m.precision} {m.file} {Path(m.file).stem}\n" for m in names).encode()
    contents["bundle.env"] = _environment(
        target, _baseline(names), _timing_cache(contents), pythons if with_wheels else ()
    ).encode()
    contents["options.sh"] = _options([onnx for _, _, onnx in models], target, options).encode()
    contents[LIBRARY] = library_text().encode()
    contents |= {name: (SCRIPTS / name).read_bytes() for name in _SCRIPTS}
    for extra in extras:
        contents |= EXTRAS[extra]([onnx for _, _, onnx in models], options)
    more = "".join(f"\n{_EXTRA_LINES[extra]}\n" for extra in extras)
    readme = _README.format(title=target.title, target=target.name, version=__version__, more=more)
    contents["README.txt"] = readme.encode()
    config = {
        "target": target.name,
        "pythons": list(pythons) if with_wheels else [],
        "wheels": _wheels_key(wheels) if with_wheels else "",
        "files": hashlib.sha256(_sums(contents)).hexdigest(),
    }
    if keep and (kept := _kept(out, config, names)) is not None:
        return kept
    with partial_folder() as scratch:
        packed: list[Path] = []
        if with_wheels:
            packed = gather_wheels(scratch, source=wheels, pythons=pythons, progress=progress)
        contents |= {f"wheels/{path.name}": path for path in packed}
        _check_names(contents)
        contents["MANIFEST.json"] = _manifest(contents, target, names, pythons if with_wheels else ())
        contents["SHA256SUMS"] = sums = _sums(contents)
        facts = {
            "digest": hashlib.sha256(sums).hexdigest(),
            "files": len(contents),
            "wheels": [path.name for path in packed],
            "left_out": left_out,
        }
        publish(
            out,
            lambda partial: write_tarball(partial, contents, top=out.stem, executable=(*_SCRIPTS,)),
            kind="bundle",
            parents=[onnx.as_parent() for _, _, onnx in models],
            config=config,
            facts=facts,
        )
    report = _kept(out, config, names)
    if report is None:
        raise InputError(f"{out} was changed while it was written.\nType the same command again.")
    return report


def find_extras(names: Iterable[str]) -> tuple[Extra, ...]:
    """Return the extras of these names, each once. Raises InputError for any other name."""
    found = list[Extra]()
    for name in dict.fromkeys(names):
        known = next((extra for extra in EXTRAS if extra == name), None)
        if known is None:
            raise InputError(f"--with {name}: there is no such extra{did_you_mean(name, list(EXTRAS))}")
        found.append(known)
    return tuple(found)


def _wheels_key(wheels: Path | None) -> str:
    """Return a hash of what the wheels are made of: this package, and those of a given folder."""
    own = sorted(Path(str(resources.files("msn_deploy"))).rglob("*"))
    given = sorted(wheels.glob("*")) if wheels is not None else []
    files = [path for path in (*own, *given) if path.is_file() and path.suffix != ".pyc"]
    return hashlib.sha256(b"".join(os.fsencode(f"{path.name} {sha256_of(path)}\n") for path in files)).hexdigest()


def _kept(out: Path, config: Mapping[str, object], models: Sequence[BundledModel]) -> BundleReport | None:
    """Return what a tarball holds that was packed so, as its sidecar says; None if there is none, or another."""
    if not out.is_file() or not sidecar_path(out).is_file():
        return None
    side = read_sidecar(out)
    if side.kind != "bundle" or side.config != config or side.sha256 != sha256_of(out):
        return None
    plain = {"bytes": side.bytes, "target": config["target"], "sha256": side.sha256, **side.facts}
    return record(BundleReport, plain, source=f"the sidecar of {out}", path=out, models=tuple(models))


def _sums(contents: Mapping[str, bytes | Path]) -> bytes:
    return "".join(f"{_digest(contents[name])}  {name}\n" for name in sorted(contents)).encode()


def write_tarball(path: Path, contents: Mapping[str, bytes | Path], *, top: str, executable: Collection[str]) -> None:
    """Write a ustar archive of one folder `top`: names sorted, times and owners zero, nothing but plain files.

    contents: path in the folder -> bytes, or the file that holds them. Raises ValueError for a path that leads out.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(contents):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or top in ("", ".", ".."):
                raise ValueError(f"{top}/{name} would unpack outside of its folder")
            content = contents[name]
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.mode = 0o755 if name in executable else 0o644
            entry.size = len(content) if isinstance(content, bytes) else content.stat().st_size
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as stream:
                archive.addfile(entry, stream)


def _run_files(run: Path) -> Mapping[str, Path]:
    """Return what a device needs of a run folder, by its path in the bundle: models, what belongs to them, sidecars."""
    if not os.path.isdir(run):
        raise InputError(f"{run} is not a folder.\n`bundle` takes the output folder of a run.")
    found: dict[str, Path] = {}
    for entry in read_folder(run):
        path = run / entry.name
        is_onnx = path.suffix == ".onnx"
        if not is_onnx and (entry.sidecar is None or entry.sidecar.kind not in _KINDS):
            continue
        if entry.verdict == "broken":
            raise InputError(f"{path} is broken: {entry.why}.\n`msn-deploy verify {run}` tells more.")
        found[f"models/{entry.name}"] = path
        if (side := sidecar_of(path)).is_file():
            found[f"models/{sidecar_path(Path(entry.name)).as_posix()}"] = side
    for path in found.values():
        if not path.resolve().is_relative_to(run.resolve()):
            raise InputError(f"{path} is a link out of {run}; a bundle holds what is in the folder.\nCopy it there.")
    return found


def _models(contents: Mapping[str, bytes | Path]) -> list[tuple[BundledModel, bytes | None, OpenModel]]:
    """Look through every ONNX file, with its recipe as JSON where it carries one; InputError if there is none."""
    found = []
    for name, path in sorted(contents.items()):
        if not (isinstance(path, Path) and name.startswith("models/") and name.endswith(".onnx")):
            continue
        model = open_model(path, step="bundle")
        OrtRunner(model, threads=1).close()  # what ONNX Runtime does not load is not packed
        info = model.info
        recipe = (json.dumps(info.recipe, indent=2, sort_keys=True) + "\n").encode() if info and info.recipe else None
        entry = BundledModel(
            file=name,
            precision=model.precision,
            sha256=model.sha256,
            net=info.net if info else "",
            norm=info.norm if info else "",
        )
        found.append((entry, recipe, model))
    if not found:
        raise InputError("the folder holds no ONNX file to build an engine from.\nMake one with `msn-deploy export`.")
    stems = [Path(model.file).stem for model, _, _ in found]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice:
        raise InputError(f"the folder holds {twice}.onnx twice; their engines would have one name.\nRename one.")
    return found


def _check_shapes(options: BuildOptions, models: Sequence[OpenModel]) -> None:
    """Refuse a shape that is for none of the models."""
    used = {each for model in models for each in options.meant_for(model).shapes}
    left = next((each for each in options.shapes if each not in used), None)
    if left is not None:
        raise InputError(
            f"`--shapes {left}`: no model of the folder leaves sizes of such an input open.\nLeave it out."
        )


def _baseline(models: Sequence[BundledModel]) -> str:
    """Return the model that others are measured against: BN in the precision that most others have, else none."""
    ranked = sorted((m for m in models if m.norm == "bn"), key=lambda m: (m.precision != "fp32", m.file))
    return Path(ranked[0].file).stem if ranked else ""


def _timing_cache(contents: Mapping[str, bytes | Path]) -> str:
    """Return the packed timing cache that build.sh starts from: the first, "" if there is none."""
    for name, path in sorted(contents.items()):
        if isinstance(path, Path) and sidecar_path(path).is_file() and read_sidecar(path).kind == "timing-cache":
            return name
    return ""


def _environment(target: Target, baseline: str, timing_cache: str, pythons: Sequence[str]) -> str:
    """Return bundle.env: what the scripts have to know, as assignments of sh."""
    words = board_words(target)
    values = {
        "TARGET": target.name,
        "TARGET_TITLE": target.title,
        "TARGET_PARTS": " ".join(words.parts),
        "TARGET_NOT_PARTS": " ".join(words.not_parts),
        "TARGET_BOARD": f"*{words.mine[0]}*",
        "TARGET_BOARD_TOO": f"*{words.mine[-1]}*",
        "TARGET_NOT_BOARD": f"*{words.not_mine}*" if words.not_mine else "",
        "TREE_COPY": TREE_COPY,
        "TARGET_L4T": " ".join(l4t_majors(target.compute_capability)),
        "BASELINE": baseline,
        "TIMING_CACHE": timing_cache,
        "PYTHONS": " ".join(pythons),
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _options(models: Sequence[OpenModel], target: Target, options: BuildOptions) -> str:
    """Return options.sh: how each engine is built. TensorRT 8 makes FP16 from the FP32 file, NAME.fp16 of NAME."""
    engines = {model.path.stem: (model, model.precision) for model in models}
    halves = {f"{model.path.stem}.fp16": (model, "fp16") for model in models if model.precision == "fp32"}
    dla = "" if options.dla is None else str(options.dla)
    return assignments({"dla": dla, "dla_releases": DLA_RELEASES}) + with_options(
        {**halves, **engines}, target=target, options=options
    )


def _manifest(
    contents: Mapping[str, bytes | Path], target: Target, models: Sequence[BundledModel], pythons: Sequence[str]
) -> bytes:
    files = [
        {"path": name, "bytes": _size(contents[name]), "sha256": _digest(contents[name])} for name in sorted(contents)
    ]
    value = {
        "schema": 1,
        "msn_deploy": __version__,
        "target": target.name,
        "pythons": list(pythons),
        "models": [asdict(model) for model in models],
        "files": files,
    }
    return (json.dumps(value, indent=2) + "\n").encode()


def _check_names(names: Iterable[str]) -> None:
    """Raise InputError for a name that a shell would have to quote, or that is too long for a tar file."""
    for name in names:
        if not _PLAIN_NAME.fullmatch(name):
            raise InputError(
                f"{name[:200]!r} holds what a shell would have to quote.\nRename it: letters, digits, . _ + and -."
            )
        longest = max(map(len, name.split("/")))
        if longest > _LONGEST_NAME or len(name) > _LONGEST_PATH:
            raise InputError(
                f"{name[:40]}... has {longest} characters in a name, {len(name)} in all; a bundle takes "
                f"{_LONGEST_NAME} and {_LONGEST_PATH}.\nRename it."
            )


def _digest(content: bytes | Path) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.read_bytes()).hexdigest()


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
