"""Every trtexec line that the project writes or prints, against the options that each release really has.

`trtexec_options.json`: names that samples/common/sampleOptions.cpp of the tags of NVIDIA/TensorRT reads, as releases ->
names, where "00111111100" means that the releases from 8.4.1 to 10.16 have them. trtexec fails on a name it lacks.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from functools import cache
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("onnx")

import msn_deploy
from msn_deploy.core.errors import InputError
from msn_deploy.engine import TARGETS, BuildOptions, find_target, write_device_script
from msn_deploy.engine.dla import has_dla
from msn_deploy.engine.trtexec import ROUTES, lacking, lines_for, number_of, options_for, route_of
from msn_deploy.machine.jetpacks import JETPACKS, numbers_of
from msn_deploy.model.opened import open_model

FIXTURE = json.loads(Path(__file__).with_name("trtexec_options.json").read_text(encoding="utf-8"))
RELEASES = tuple(FIXTURE["releases"].split())
JETSONS = [target for target in TARGETS if target.jetson]
CHOICES = [
    {"optimization_level": level, "version_compatible": compatible, "dla": dla, "plugins": plugins}
    for level, compatible, dla, plugins in product((None, 5), (False, True), (None, 0), ((), (Path("/x/lib.so"),)))
]
# Fails on an option that the release lacks, as trtexec does; else writes its words down, and the engine.
STUB = """#!/bin/sh
if [ "$1" = --help ]; then echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec --help"; exit 0; fi
for word in "$@"; do
    case " {names} " in *" ${{word%%=*}} "*) ;; *) echo "Unknown option: $word" >&2; exit 1 ;; esac
    case $word in --saveEngine=*) echo plan >"${{word#*=}}" ;; esac
done
printf '%s\\n' "$@" >>"{log}"
"""


@cache
def options_of(release):
    """Return the names that a release takes: those of the nearest in the table, of its minor release or before."""
    at = max(at for at, each in enumerate(RELEASES) if numbers_of(each)[:2] <= numbers_of(release)[:2])
    rows = FIXTURE["options"].items()
    return frozenset(f"--{name}" for mask, names in rows if mask[at] == "1" for name in names.split())


def unknown(words, release):
    return {word.partition("=")[0] for word in words if word.startswith("-")} - options_of(release)


def test_the_table_is_that_of_the_tags():
    """Facts that were looked up one by one in the tags."""
    assert len(RELEASES) == 11
    for name, first, last in (
        ("--builderOptimizationLevel", "8.6.1", "11.1"),
        ("--versionCompatible", "8.6.1", "11.1"),
        ("--staticPlugins", "8.6.1", "11.1"),
        ("--memPoolSize", "8.4.1", "11.1"),
        ("--workspace", "8.0.1", "8.6.1"),
        ("--stronglyTyped", "10.3.0", "11.1"),
        ("--adjustForDLA", "10.16", "11.1"),
        ("--fp16", "8.0.1", "10.16"),
        ("--calib", "8.0.1", "10.16"),
    ):
        have = [release for release in RELEASES if name in options_of(release)]
        assert (name, have[0], have[-1]) == (name, first, last)


@pytest.mark.parametrize("release", [*RELEASES, "8.6.2", "10.16.2", "11.4.1"])
def test_no_release_is_given_an_option_that_it_lacks(release):
    route = route_of(release)
    for precision, choice in product(("fp32", "fp16", "int8"), CHOICES):
        options = BuildOptions(**choice)
        words = options_for(route, ["--minShapes=x:1", "--optShapes=x:1", "--maxShapes=x:1"], precision, options)
        asked = {
            "--optimization-level": choice["optimization_level"],
            "--version-compatible": choice["version_compatible"],
        }
        expected = [] if numbers_of(release) >= (8, 6) else [name for name, value in asked.items() if value]
        assert lacking(route, options) == expected
        assert bool(unknown(words, release)) is bool(expected)


def test_every_release_of_every_jetpack_has_its_route():
    assert [route_of(row.tensorrt) for row in JETPACKS] == [
        *("8.0", "8.0", "8.4", "8.4", "8.4", "8.6", "10", "10", "10", "10", "10"),
    ]
    assert (number_of("8.5.2"), number_of("10.3.0"), number_of("10.16.2.10"), number_of("11.4.1")) == (
        *(8502, 100300, 101602, 110401),
    )


@pytest.mark.parametrize("target", JETSONS, ids=lambda target: target.name)
def test_the_lines_shown_are_those_that_the_targets_releases_take(target):
    """A line per release, unless it lacks an option or the DLA; what none has is refused with option and releases."""
    shown = set()
    for precision, choice in product(target.precisions, CHOICES):
        if choice["dla"] is not None and not target.dla_cores:
            continue
        table = Path("/x/t.calib") if choice["dla"] is not None and precision == "int8" else None
        options = BuildOptions(**choice, timing_cache=Path("/x/t.cache"), calibration_table=table)
        able = [each for each in target.tensorrt if choice["dla"] is None or has_dla(each)]
        able += ["11.4.1"] if choice["dla"] is not None and target.name.startswith("agx-orin") else []
        new = choice["optimization_level"] is not None or choice["version_compatible"]
        fit = [each for each in able if not new or numbers_of(each) >= (8, 6)]
        call = {"target": target, "shapes": [], "precision": precision, "options": options}
        call["quantised"] = Path("/x/n.int8.onnx") if table else None
        if not fit:
            with pytest.raises(InputError, match=rf"-.*` needs? TensorRT 8\.6 or later; .* has {re.escape(able[0])}"):
                lines_for(Path("n.onnx"), Path("n.engine"), **call)
            continue
        lines = lines_for(Path("n.onnx"), Path("n.engine"), **call)
        told = [each for key in lines for each in key.removeprefix("TensorRT ").split(", ")]
        assert sorted(told, key=numbers_of) == fit
        for key, words in lines.items():
            assert words[0] == "trtexec"
            for release in key.removeprefix("TensorRT ").split(", "):
                assert unknown(words, release) == set()
                assert ("--calib=t.calib" in words) is (table is not None and release != "11.4.1")
                assert ("--adjustForDLA" in words) is (choice["dla"] is not None and release == "11.4.1")
        shown |= {tuple(words) for words in lines.values()}
    assert shown


@pytest.fixture
def device(save, tmp_path):
    """Return a function that writes a script, and runs it beside a trtexec of a release: (code, words, stderr)."""

    def run(release, *, target, precision, **options):
        (tmp_path / "log").write_text("")
        onnx = save("net.onnx", **{"fp16": {"half": True}, "int8": {"int8": True}}.get(precision, {}))
        made = write_device_script(
            open_model(onnx, step="test"),
            tmp_path / "net.engine",
            target=find_target(target),
            precision=precision,
            options=BuildOptions(**options),
        )
        stub = tmp_path / "trtexec"
        stub.write_text(
            STUB.format(number=number_of(release), names=" ".join(options_of(release)), log=tmp_path / "log")
        )
        stub.chmod(0o755)
        env = {"PATH": "/usr/bin:/bin", "TRTEXEC": str(stub)}
        done = subprocess.run(["sh", made.script], env=env, capture_output=True, text=True, timeout=60)
        return done.returncode, (tmp_path / "log").read_text().split(), done.stderr

    return run


@pytest.mark.parametrize("release", [*RELEASES, "11.4.1"])
def test_the_script_gives_each_release_what_it_takes_and_refuses_the_rest(device, release):
    for precision, options in (("fp32", {}), ("fp16", {"batch": None}), ("int8", {"timing_cache": Path("t.cache")})):
        code, words, told = device(release, target="agx-orin", precision=precision, **options)
        assert (code, told) == (0, "")
        assert "--onnx=net.onnx" in words
    for option, value in (("optimization_level", 4), ("version_compatible", True)):
        code, words, told = device(release, target="agx-orin", precision="fp16", **{option: value})
        if numbers_of(release) >= (8, 6):
            assert code == 0, told
            assert {"--builderOptimizationLevel=4", "--versionCompatible"} & set(words)
        else:
            assert (code, words) == (2, [])
            assert f"{ROUTES[route_of(release)].title}, which is here, lacks --{option.replace('_', '-')}" in told
    code, words, told = device(release, target="agx-orin", precision="fp16", dla=1)
    if has_dla(release):
        assert (code, told) == (0, "")
        assert ("--adjustForDLA" in words) is (numbers_of(release)[0] == 11)
    else:
        assert (code, words) == (3, [])
        assert "has no DLA" in told


SHELLS = {name: path for name in ("dash", "busybox") if (path := shutil.which(name))}


@pytest.mark.parametrize("jetpack", JETPACKS, ids=lambda row: row.name)
@pytest.mark.parametrize("shell", ["dash", "busybox"])
def test_small_shells_build_on_every_jetpack(save, tmp_path, shell, jetpack):
    """By trtexec: ranges of sizes, replicates, a timing cache; and INT8 on the DLA where the JetPack has one."""
    if shell not in SHELLS:
        pytest.skip(f"no {shell} here")
    release, folder = jetpack.tensorrt, tmp_path / "it's here"
    folder.mkdir()
    target = next(each for each in reversed(JETSONS) if each.compute_capability in jetpack.serves)
    half = save("net.onnx", batch="N", half=numbers_of(release)[0] > 8)
    onnx = Path(shutil.move(half, folder / "net.onnx"))
    (folder / "t.calib").write_text("TRT-8000-EntropyCalibration2\nx: 3f800000\n")
    plain = {"replicates": 2, "workspace_mib": 64}
    cases = [("fp16", plain, 2), ("fp16", {"timing_cache": Path("t.cache")}, 1)]
    if target.dla_cores and has_dla(release):
        cases.append(("int8", {"dla": 1, "calibration_table": folder / "t.calib"}, 1))
    stub = tmp_path / "trtexec"
    stub.write_text(STUB.format(number=number_of(release), names=" ".join(options_of(release)), log=tmp_path / "log"))
    stub.chmod(0o755)
    for precision, options, count in cases:
        made = write_device_script(
            open_model(onnx, step="test"),
            folder / f"{precision}{count}.engine",
            target=target,
            precision=precision,
            options=BuildOptions(**options),
        )
        command = [SHELLS[shell], *(["sh"] if shell == "busybox" else []), made.script]
        env = {"PATH": "/usr/bin:/bin", "TRTEXEC": str(stub)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, cwd="/")
        assert (done.returncode, done.stderr) == (0, "")
        assert len(list(folder.glob(f"{precision}{count}*.engine"))) == count
    assert not [*folder.glob("*.partial"), *folder.glob("*.engine.calib")]


@pytest.mark.parametrize(
    ("release", "has"),
    [("8.0.1", True), ("8.6.2", True), ("10.7.0", True), ("10.8.0", False), ("10.16.2", False), ("11.0", False),
     ("11.4.0", False), ("11.4.1", True), ("11.5.0", True)],
)  # fmt: skip
def test_which_releases_have_a_dla(device, release, has):
    """Sources: TensorRT documentation 11.4.0 and 11.4.1, "Working with DLA"."""
    assert has_dla(release) is has
    code, _, _ = device(release, target="agx-orin", precision="fp16", dla=0)
    assert code == (0 if has else 3)


def test_an_option_that_no_release_of_the_target_has_is_refused_before_anything_is_written(save, tmp_path):
    with pytest.raises(InputError) as caught:
        write_device_script(
            open_model(save(), step="test"),
            tmp_path / "x.engine",
            target=find_target("xavier-nx"),
            precision="fp32",
            options=BuildOptions(optimization_level=1, version_compatible=True),
        )
    first, second = str(caught.value).splitlines()
    assert first == (
        "`--optimization-level` and `--version-compatible` need TensorRT 8.6 or later; "
        "Jetson Xavier NX has 8.2.1 and 8.5.2."
    )
    assert second == "Leave them out."
    assert not (tmp_path / "x.build.sh").exists()


def test_the_lines_in_scripts_and_pages_are_trtexecs_too():
    """What a bundle runs, in every release; what pages and messages show, in the releases named on the line, or one."""
    package = Path(msn_deploy.__file__).parent
    scripts = [*package.glob("pipeline/bundle_scripts/*"), package / "engine/device_build.sh"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in scripts).replace("\\\n", " ")
    calls = [line for line in text.splitlines() if '"$trtexec" --' in line and "--help" not in line]
    assert len(calls) >= 2
    for line in calls:
        names = re.findall(r"(--[A-Za-z]+)=", line)
        assert names
        assert [release for release in RELEASES if set(names) - options_of(release)] == []
    pages = [package.parent / "README.md", *(package.parent / "docs").glob("**/*.md")]
    if not pages[0].exists():
        pytest.skip("the package is installed without its pages")
    shown = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines() if "trtexec --" in line]
    assert shown
    for line in shown:
        command, _, releases = line.partition("#")
        words = shlex.split(command.strip())[1:]
        named = re.findall(r"\d+\.\d+\.\d+", releases)
        assert (all if named else any)(not unknown(words, release) for release in named or RELEASES), line
