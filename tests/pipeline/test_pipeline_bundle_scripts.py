"""The scripts of a bundle, run with sh below faked roots of devices, with faked trtexec and msn-deploy."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import pytest
from bundle_devices import BOARD, ORIN_NANO, built, calls, device, home_of, installed, look_below, onnx_bytes, sh, wheel

from msn_deploy.core.artifacts import publish, unpack
from msn_deploy.core.errors import InputError
from msn_deploy.engine import TARGETS, BuildOptions, find_target, write_device_script
from msn_deploy.engine.tensors import parse_shapes
from msn_deploy.machine.device import board_words
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline.bundle import bundle


def test_trtexec_of_tensorrt_10_takes_the_types_of_the_file(unpacked, tmp_path):
    root = device(tmp_path / "root")
    done = sh(unpacked / "build.sh", root=root)
    assert done.returncode == 0, done.stderr
    assert f"{BOARD}, L4T 36.4.3" in done.stdout
    assert "TensorRT 10.3.0" in done.stdout
    engines = {path.name for path in (unpacked / "engines").glob("*.engine")}
    assert engines == {"net.engine", "net.fp16.engine", "net.int8.engine", "net_bn.engine"}
    assert len(calls(root)) == 4
    assert all(call.endswith("--stronglyTyped") for call in calls(root))


def test_trtexec_of_tensorrt_8_takes_flags_and_fp16_from_the_fp32_file(unpacked, tmp_path):
    root = device(tmp_path / "root", release="35 4.1", tensorrt="8.5.2")
    done = sh(unpacked / "build.sh", "fp16", "int8", root=root)
    assert done.returncode == 0, done.stderr
    options = {call.split("--onnx=")[1].split()[0].rpartition("/")[2]: call.split()[3:] for call in calls(root)}
    assert options == {
        "net.onnx": ["--memPoolSize=workspace:256", "--fp16"],
        "net_bn.onnx": ["--memPoolSize=workspace:256", "--fp16"],
        "net.int8.onnx": ["--memPoolSize=workspace:256", "--int8", "--fp16"],
    }
    assert (unpacked / "engines/net.fp16.engine").read_text() == "plan\n"


@pytest.mark.parametrize("tensorrt", ["8.2.1", "8.5.2", "8.6.2", "10.3.0", "11.4.1"])
def test_a_bundle_builds_with_the_options_of_the_script_of_one_engine(tmp_path, tensorrt):
    """A range of batches, workspace, DLA, two engines: both scripts give trtexec the same words."""
    folder = tmp_path / "run"
    for name, half in (("net.onnx", False), ("net.fp16.onnx", True)):
        content = onnx_bytes(half=half, batch="N")
        publish(folder / name, lambda path, content=content: path.write_bytes(content), kind="onnx")
    target = find_target("agx-orin")
    level = None if tensorrt < "8.6" and tensorrt.startswith("8") else 2
    options = BuildOptions(batch=4, workspace_mib=512, optimization_level=level, dla=1, replicates=2)
    root = device(tmp_path / "root", model="NVIDIA Jetson AGX Orin Developer Kit", tensorrt=tensorrt)
    bundle(folder, tmp_path / "b.tar", target=target, with_wheels=False, options=options)
    with tarfile.open(tmp_path / "b.tar") as archive:
        unpack(archive, tmp_path)
    done = sh(tmp_path / "b/build.sh", "fp16", "--replicates", "2", root=root)
    assert done.returncode == 0, done.stderr
    bundled = calls(root)
    made = write_device_script(
        open_model(folder / "net.fp16.onnx", step="test"),
        folder / "net.fp16.engine",
        target=target,
        precision="fp16",
        options=options,
    )
    env = {"PATH": "/usr/bin:/bin", "TRTEXEC": str(root / "usr/src/tensorrt/bin/trtexec")}
    subprocess.run([made.script], env=env, check=True, capture_output=True, timeout=60)
    own = calls(root)[len(bundled) :]
    assert [line.split()[2:] for line in bundled] == [line.split()[2:] for line in own]
    engines = [line.split()[1].rpartition("/")[2].removeprefix("--saveEngine=") for line in [*bundled, *own]]
    assert engines == ["net.fp16.engine.partial", "net.fp16.r2.engine.partial"] * 2
    for word in ("512", "--minShapes=x:4x1x8x8", "--useDLACore=1"):
        assert word in bundled[0]


def test_shapes_are_for_the_models_that_leave_sizes_open(tmp_path):
    folder = tmp_path / "run"
    for name, batch in (("open.onnx", "N"), ("fixed.onnx", 1)):
        content = onnx_bytes(batch=batch)
        publish(folder / name, lambda path, content=content: path.write_bytes(content), kind="onnx")
    pack = partial(bundle, folder, tmp_path / "b.tar", target=ORIN_NANO, with_wheels=False)
    pack(options=BuildOptions(shapes=(parse_shapes("x=1x1x8x8:2x1x8x8:3x1x8x8"),)))
    with tarfile.open(tmp_path / "b.tar") as archive:
        lines = archive.extractfile("b/options.sh").read().decode().splitlines()
    shaped = [line.split(":")[0].strip() for line in lines if "3x1x8x8" in line]
    assert set(shaped) == {"open", "open.fp16"}
    with pytest.raises(InputError, match=r"--shapes y=1x1`: no model of the folder leaves sizes of such an input open"):
        pack(options=BuildOptions(shapes=(parse_shapes("y=1x1"),)))


def test_a_bundle_for_the_dla_is_refused_where_tensorrt_has_none(run, tmp_path):
    bundle(run, tmp_path / "b.tar", target=find_target("orin-nx"), with_wheels=False, options=BuildOptions(dla=0))
    with tarfile.open(tmp_path / "b.tar") as archive:
        unpack(archive, tmp_path)
    for tensorrt, precision, says in (("10.16.2", "fp16", "has no DLA"), ("10.3.0", "int8", "no Q/DQ network")):
        root = device(tmp_path / tensorrt, model="NVIDIA Orin NX Developer Kit", tensorrt=tensorrt)
        done = sh(tmp_path / "b/build.sh", precision, root=root)
        assert (done.returncode, says in done.stderr, calls(root)) == (3, True, [])


SHELLCHECK = shutil.which(
    "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
)  # its wheel's, first


@pytest.mark.skipif(SHELLCHECK is None, reason="no shellcheck here")
def test_what_is_written_for_a_device_passes_shellcheck(unpacked, run, tmp_path):
    onnx = open_model(run / "net.int8.onnx", step="test")
    made = write_device_script(
        onnx, tmp_path / "it's.engine", target=ORIN_NANO, precision="int8", options=BuildOptions()
    )
    for script, left_out in ((made.script, ()), (unpacked / "options.sh", ("-s", "sh", "-e", "SC2034,SC2154"))):
        subprocess.run([SHELLCHECK, *left_out, script], check=True, timeout=60)


def test_msn_deploy_builds_where_it_is_installed(unpacked, tmp_path):
    root = device(tmp_path / "root")
    installed(unpacked, f'echo "$@" >>{root}/calls\nwhile [ $# -gt 1 ]; do shift; done\necho plan >"$1"\n')
    done = sh(unpacked / "build.sh", "int8", root=root)
    assert done.returncode == 0, done.stderr
    (call,) = calls(root)
    assert call.startswith(
        f"build-engine {unpacked}/models/net.int8.onnx --precision int8 --target orin-nano-8gb "
        f"--timing-cache {unpacked}/engines/timing.cache --out "
    )
    installed(unpacked, "exit 0\n")  # as off the device, where a script is written in place of the engine
    assert sh(unpacked / "build.sh", "int8", root=root).returncode == 3


@pytest.mark.parametrize(
    ("tensorrt", "release", "names"),
    [("8.6.2", "36 3.0", ["net", "net.fp16", "net.int8", "net_bn", "net_bn.fp16"]),
     ("10.3.0", "36 4.3", ["net", "net.fp16", "net.int8", "net_bn"])],
)  # fmt: skip
@pytest.mark.parametrize("replicates", [1, 2])
def test_every_engine_that_was_built_is_measured_and_evaluated(
    unpacked, tmp_path, tensorrt, release, names, replicates
):
    """TensorRT 8 makes FP16 from the FP32 file, and has no use for NAME.fp16.onnx."""
    root = device(tmp_path / "root", tensorrt=tensorrt, release=release)
    build = 'for each; do case $each in *.engine) echo plan >"$each"; done=$each;; esac; done\n'
    build += 'case "$*" in *--replicates*) echo plan >"${done%.engine}.r2.engine";; esac\n'
    installed(unpacked, f'echo "$@" >>{root}/calls\ncase $1 in build-engine) {build};; esac\n')
    done = sh(unpacked / "build.sh", "--replicates", str(replicates), root=root)
    assert done.returncode == 0, done.stderr
    engines = sorted(path.name for path in (unpacked / "engines").glob("*.engine"))
    assert engines == sorted(f"{name}{part}.engine" for name in names for part in ("", ".r2")[:replicates])
    (root / "calls").unlink()
    for script, options in (("bench.sh", ()), ("eval.sh", ("digits",))):
        done = sh(unpacked / script, *options, root=root)
        assert (done.returncode, done.stderr) == (0, "")
    words = [word for call in calls(root)[1:] for word in call.split(" --")[0].split()]
    assert sorted(words) == sorted(["bench", *["eval"] * len(engines), *[f"engines/{name}" for name in engines] * 2])


def test_a_model_without_an_engine_is_named(unpacked, tmp_path):
    root = device(tmp_path / "root")
    assert sh(unpacked / "build.sh", "int8", root=root).returncode == 0
    installed(unpacked, "exit 0\n")
    told = sh(unpacked / "eval.sh", "digits", root=root).stderr
    assert sorted(line.split()[0] for line in told.splitlines()) == ["net", "net.fp16", "net_bn"]


@pytest.mark.parametrize("route", ["trtexec", "msn-deploy"])
def test_one_that_cannot_be_built_does_not_keep_the_others_from_it(unpacked, tmp_path, route):
    root = device(tmp_path / "root", fails="net.int8.")
    built(unpacked, "net.int8", content="of last time")
    if route == "msn-deploy":
        build = 'case "$*" in *net.int8*) exit 4;; *net.fp16*) exit 0;; esac\nwhile [ $# -gt 1 ]; do shift; done\n'
        installed(unpacked, build + 'echo plan >"$1.new"; mv "$1.new" "$1"\n')
    done = sh(unpacked / "build.sh", root=root)
    failed = {"trtexec": (3, " net.int8."), "msn-deploy": (3, " net.fp16 net.int8.")}[route]
    code = 3 if route == "trtexec" else 4  # of the last that failed
    assert (done.returncode, failed[1] in done.stderr.splitlines()[-1]) == (code, True), done.stderr
    assert (unpacked / "engines/net_bn.engine").read_text() == "plan\n"
    assert (unpacked / "engines/net.int8.engine").read_text() == "of last time"


def test_one_that_cannot_be_measured_does_not_keep_the_others_from_it(unpacked, tmp_path):
    assert sh(unpacked / "build.sh", root=device(tmp_path / "root")).returncode == 0
    done = sh(unpacked / "bench.sh", root=device(tmp_path / "root", fails="net.fp16.engine"))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (3, "Not measured: net.fp16.")
    assert done.stdout.count("median") == 3
    installed(unpacked, 'case "$*" in *net.fp16*) exit 2;; esac\n')
    done = sh(unpacked / "eval.sh", "digits", root=tmp_path / "root")
    assert done.returncode == 2
    assert "net_bn" in done.stdout


@pytest.mark.parametrize(
    ("imports", "builds", "measures"),
    [((), "trtexec", "trtexec"),
     (("tensorrt",), "msn-deploy", "trtexec"),
     (("tensorrt", "pycuda.driver"), "msn-deploy", "msn-deploy"),
     (("tensorrt", "cuda.bindings.driver"), "msn-deploy", "msn-deploy")],
)  # fmt: skip
def test_an_environment_without_tensorrt_or_cuda_leaves_the_work_to_trtexec(
    unpacked, tmp_path, imports, builds, measures
):
    root = device(tmp_path / "root")
    called = (
        f'echo "$@" >>{root}/calls\nwhile [ $# -gt 1 ]; do shift; done\ncase $1 in *.engine) echo plan >"$1";; esac\n'
    )
    installed(unpacked, called, imports=imports)
    for script, options, by in (("build.sh", ("int8",), builds), ("bench.sh", (), measures)):
        done = sh(unpacked / script, *options, root=root)
        assert done.returncode == 0, done.stderr
        kinds = {"trtexec" if call.startswith("--") else "msn-deploy" for call in calls(root) if "doctor" not in call}
        assert kinds == {by}
        assert ("trtexec" in done.stderr) is (by == "trtexec")
        (root / "calls").unlink()
    done = sh(unpacked / "eval.sh", "digits", root=root)
    assert done.returncode == (0 if measures == "msn-deploy" else 3)


def test_an_environment_that_was_not_finished_is_none(unpacked, tmp_path):
    root = device(tmp_path / "root")
    installed(unpacked, "exit 9\n")
    assert sh(unpacked / "verify", "--begin", ".venv").returncode == 0  # as install.sh does before all else
    assert sh(unpacked / "build.sh", "int8", root=root).returncode == 0
    assert calls(root)[0].startswith("--onnx=")
    assert sh(unpacked / "eval.sh", "digits", root=root).returncode == 3
    (unpacked / ".venv/half").touch()
    sh(unpacked / "install.sh", root=root)
    assert not (unpacked / ".venv").exists()


def test_the_packed_timing_cache_is_added_to_in_a_copy(unpacked, tmp_path):
    root = device(tmp_path / "root")
    assert sh(unpacked / "build.sh", "int8", root=root).returncode == 0
    assert all(f"--timingCacheFile={unpacked}/engines/timing.cache " in call for call in calls(root))
    cache = unpacked / "engines/timing.cache"
    assert cache.read_bytes() == (unpacked / "models/net.timing").read_bytes()
    cache.write_text("what a build added")
    built(unpacked)
    assert sh(unpacked / "build.sh", "int8", root=root).returncode == 0
    assert cache.read_text() == "what a build added"
    assert sh(unpacked / "verify").returncode == 0


def test_replicates_are_built_without_a_timing_cache_and_measured_together(unpacked, tmp_path):
    root = device(tmp_path / "root")
    assert sh(unpacked / "build.sh", "--replicates", "3", "int8", root=root).returncode == 0
    names = [f"net.int8{part}.engine" for part in ("", ".r2", ".r3")]
    assert [path.name for path in sorted((unpacked / "engines").glob("*.engine"))] == names
    assert len(calls(root)) == 3
    assert "timing" not in "".join(calls(root))
    installed(unpacked, f'echo "$@" >>{root}/calls\n')
    assert sh(unpacked / "bench.sh", root=root).returncode == 0
    assert calls(root)[-1].startswith("bench " + " ".join(f"engines/{name}" for name in names) + " --json")
    shutil.rmtree(unpacked / ".venv")
    assert sh(unpacked / "verify", "--begin", ".venv").returncode == 0
    for count, left in (("2", names[:2]), ("1", names[:1])):
        done = sh(unpacked / "build.sh", "--replicates", count, "int8", root=root)
        assert (done.returncode, f"{names[int(count)]} of an earlier call is removed" in done.stdout) == (0, True)
        assert sorted(path.name for path in (unpacked / "engines").iterdir() if ".int8." in path.name) == sorted(
            each for name in left for each in (name, f"{name}.log")
        )


def test_eval_asks_every_model_and_leaves_its_answers_in_the_report(unpacked, tmp_path):
    root = device(tmp_path / "root")
    assert sh(unpacked / "eval.sh").returncode == 2
    assert "./install.sh" in sh(unpacked / "eval.sh", "digits", root=root).stderr
    installed(unpacked, f'echo "$@" >>{root}/calls\n')
    assert sh(unpacked / "eval.sh", "digits", root=root).returncode == 0
    assert calls(root)[0] == "eval models/net.fp16.onnx --data digits --json report/net.fp16.eval.json"
    assert len(calls(root)) == 4
    sh(unpacked / "eval.sh", str(tmp_path / "root"), root=root)
    assert f"--data {tmp_path}/root " in calls(root)[-1]
    installed(unpacked, "exit 2\n")
    assert sh(unpacked / "eval.sh", "digits", root=root).returncode == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "NVIDIA Jetson AGX Orin Developer Kit"}, "this is NVIDIA Jetson AGX Orin Developer Kit, L4T 36.4.3"),
        ({"model": "NVIDIA Jetson Nano Developer Kit", "release": "32 7.1"}, "L4T 32.7.1"),
        ({"model": "Raspberry Pi 5 Model B Rev 1.0"}, "Raspberry Pi 5"),
        ({"model": ""}, "/tmp/nv_jetson_model"),
        ({"release": "38 2.0"}, "L4T 38.2.0 is no release for Jetson Orin Nano"),
        ({"tensorrt": ""}, "sudo apt install tensorrt"),
    ],
)
def test_another_device_is_refused_before_anything_is_built(unpacked, tmp_path, options, says):
    root = device(tmp_path / "root", **options)
    done = sh(unpacked / "build.sh", root=root)
    assert done.returncode == 3
    assert says in done.stderr
    assert calls(root) == []
    assert not (unpacked / "engines").exists()


@pytest.mark.parametrize(
    ("target", "release", "own", "other"),
    [("nano", "32 7.1", "NVIDIA Jetson Nano Developer Kit", "NVIDIA Jetson Orin Nano Developer Kit"),
     ("agx-xavier", "35 4.1", "NVIDIA Jetson AGX Xavier Developer Kit", "NVIDIA Jetson Xavier NX Developer Kit"),
     ("tx2", "32 7.1", "quill", "NVIDIA Jetson Nano Developer Kit")],
)  # fmt: skip
def test_boards_whose_names_hold_each_other_are_told_apart(run, tmp_path, target, release, own, other):
    bundle(run, tmp_path / "b.tar", target=find_target(target), with_wheels=False)
    with tarfile.open(tmp_path / "b.tar") as archive:
        unpack(archive, tmp_path)
    for model, code in ((own, 0), (other, 3)):
        root = device(tmp_path / str(code), model=model, release=release, tensorrt="8.2.1")
        assert sh(tmp_path / "b/build.sh", "fp32", root=root).returncode == code, model


NX = "acme,nx150 nvidia,p3767-0000 nvidia,tegra234"  # a carrier with strings and a text of its own
KIT = "nvidia,p3768-0000+p3767-0005-super nvidia,p3767-0005 nvidia,tegra234"
EMULATING = "nvidia,p3737-0000+p3701-0000-as-p3767-0004 nvidia,tegra234"  # a kit that stands for another module
XAVIER = "nvidia,p2972-0000 nvidia,p2822-0000+p2888-0004 nvidia,tegra194"


@pytest.mark.parametrize(
    ("target", "release", "model", "compatible", "code"),
    [
        ("orin-nx-16gb", "36 3.0", "NX150_2024-12-23", NX, 0),
        ("orin-nx-8gb", "36 3.0", "NX150_2024-12-23", NX, 0),  # differs in memory alone
        ("orin-nx-16gb", "36 3.0", "", NX, 0),
        ("orin-nx-16gb", "36 3.0", "NX150_2024-12-23", "", 3),  # nothing says that it is one
        ("orin-nano", "36 3.0", "NX150_2024-12-23", NX, 3),
        ("orin-nano", "36 4.3", "any", KIT, 0),
        ("orin-nx-16gb", "36 4.3", "NVIDIA Orin NX Developer Kit", KIT, 3),  # the text says what the module is not
        ("orin-nano", "36 4.3", "any", EMULATING, 0),
        ("agx-orin", "36 4.3", "any", EMULATING, 3),
        ("agx-xavier", "35 4.1", "Jetson-AGX", "", 0),
        ("agx-xavier", "35 4.1", "Jetson-AGX", XAVIER, 0),
        ("xavier-nx", "35 4.1", "Jetson-AGX", "", 3),
        ("thor-t4000", "38 4.0", "any", "nvidia,p4071-0000+p3834-0000 nvidia,p3834-0000 nvidia,tegra264", 0),
    ],
)
def test_a_module_is_known_by_its_part_number_first(run, tmp_path, target, release, model, compatible, code):
    bundle(run, tmp_path / "b.tar", target=find_target(target), with_wheels=False)
    with tarfile.open(tmp_path / "b.tar") as archive:
        unpack(archive, tmp_path)
    root = device(tmp_path / "root", model=model, compatible=compatible, release=release, tensorrt="8.6.2")
    done = sh(tmp_path / "b/build.sh", "fp32", root=root)
    assert done.returncode == code, done.stderr
    if code:
        assert f"this is {model}" in done.stderr
        assert calls(root) == []


def test_the_board_is_known_in_a_container_by_the_mounted_copy(unpacked, tmp_path):
    root = device(tmp_path / "root", model="")
    (root / "tmp").mkdir()
    (root / "tmp/nv_jetson_model").write_text(BOARD)
    assert sh(unpacked / "build.sh", root=root).returncode == 3  # anyone could have put it there
    (root / "proc/self").mkdir(parents=True)
    mounts = [f"1 1 8:1 / /tmp/nv_jetson_{name} ro - ext4 /dev/sda1 rw\n" for name in ("model", "compatible")]
    (root / "proc/self/mountinfo").write_text("".join(mounts))
    assert sh(unpacked / "build.sh", root=root).returncode == 0
    (root / "tmp/nv_jetson_model").unlink()
    (root / "tmp/nv_jetson_compatible").write_text(KIT.replace(" ", "\n"))
    assert sh(unpacked / "build.sh", root=root).returncode == 0


def test_every_jetson_takes_its_own_bundle_alone(run, tmp_path):
    boards = {
        "orin nano": "NVIDIA Jetson Orin Nano Developer Kit",
        "orin nx": "NVIDIA Orin NX Developer Kit",
        "agx orin": "NVIDIA Jetson AGX Orin Developer Kit",
        "thor": "NVIDIA Jetson AGX Thor Developer Kit",
        "xavier nx": "NVIDIA Jetson Xavier NX Developer Kit",
        "xavier": "NVIDIA Jetson AGX Xavier Developer Kit",
        "tx2": "quill",
        "nano": "NVIDIA Jetson Nano Developer Kit",
    }
    for target in (target for target in TARGETS if target.jetson):
        words = board_words(target)
        fits = {
            name
            for name, text in boards.items()
            if any(word in text.lower() for word in words.mine)
            and not (words.not_mine and words.not_mine in text.lower())
        }
        assert fits == {words.mine[0]}, target.name


def test_a_failed_build_leaves_no_engine_and_shows_the_end_of_the_log(unpacked, tmp_path):
    root = device(tmp_path / "root", trtexec=1)
    done = sh(unpacked / "build.sh", "int8", root=root)
    assert done.returncode == 3
    assert "GPU Compute Time" in done.stderr
    assert not list((unpacked / "engines").glob("*.engine"))


def test_a_changed_bundle_builds_nothing(unpacked, tmp_path):
    (unpacked / "models/net.onnx").write_bytes(b"other")
    root = device(tmp_path / "root")
    assert sh(unpacked / "build.sh", root=root).returncode == 1
    assert calls(root) == []


def test_a_precision_that_is_not_there(unpacked, tmp_path):
    root = device(tmp_path / "root")
    assert "--replicates N, not 'int4'" in sh(unpacked / "build.sh", "int4", root=root).stderr
    for number in ("0", "two", ""):
        done = sh(unpacked / "build.sh", "int8", "--replicates", number, root=root)
        assert (done.returncode, f"not '{number}'" in done.stderr) == (2, True)
    assert calls(root) == []


def test_bench_with_trtexec_fills_a_report(unpacked, tmp_path):
    root = device(tmp_path / "root", release="35 4.1", tensorrt="8.5.2")
    assert "no engines yet" in sh(unpacked / "bench.sh", root=root).stderr
    assert sh(unpacked / "build.sh", "int8", root=root).returncode == 0
    done = sh(unpacked / "bench.sh", root=root)
    assert done.returncode == 0, done.stderr
    assert "net.int8: min = 1 ms, median = 2 ms" in done.stdout
    names = {path.name for path in (unpacked / "report").iterdir()}
    assert names == {"MANIFEST.json", "device.txt", "net.int8.log"}
    assert "TensorRT 8.5.2" in (unpacked / "report/device.txt").read_text()


def test_bench_with_msn_deploy_measures_engines_against_bn(unpacked, tmp_path):
    root = device(tmp_path / "root")
    installed(unpacked, f'echo "$@" >>{root}/calls\n')
    assert sh(unpacked / "bench.sh", "--seconds", "3", root=root).returncode == 0
    models = "models/net.fp16.onnx models/net.int8.onnx models/net.onnx models/twin/net_bn.onnx"
    options = "--json report/bench.json --html report/bench.html --seconds 3"
    assert calls(root) == ["doctor --json", f"bench {models} --baseline models/twin/net_bn.onnx {options}"]
    built(unpacked, "net.int8", "net_bn")
    assert sh(unpacked / "bench.sh", root=root).returncode == 0
    assert calls(root)[-1].startswith("bench engines/net.int8.engine engines/net_bn.engine --baseline engines/net_bn.")


def packed_too(bundle: Path) -> None:
    """Let what was added to an unpacked bundle be a part of it."""
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (bundle / "SHA256SUMS").write_text("".join(line for line in lines if not line.endswith("  SHA256SUMS\n")))


@pytest.mark.slow
def test_install_takes_all_that_runs_a_model_from_the_wheels(unpacked, tmp_path):
    """Names that are written out miss what the extra comes to need; here it needs `deeper`, through `runtime` alone."""
    (unpacked / "wheels").mkdir()
    wheel(unpacked / "wheels", "msn_deploy", needs=("shallow", "deeper; extra == 'runtime'", "never; extra == 'train'"))
    for name in ("shallow", "deeper"):
        wheel(unpacked / "wheels", name)
    packed_too(unpacked)
    done = sh(unpacked / "install.sh")
    assert "msn-deploy: not found" in done.stderr  # its wheel is nothing but metadata
    listed = subprocess.run(
        [unpacked / ".venv/bin/python", "-m", "pip", "list", "--local"], capture_output=True, text=True, timeout=60
    )
    assert {"shallow", "deeper"} <= set(listed.stdout.split())
    assert "never" not in listed.stdout


def fake_python(path: Path, *, version: str, tensorrt: bool) -> None:
    """A Python that knows its version and whether it has TensorRT, and makes an environment that holds its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    major, minor = version.split(".")
    path.write_text(
        "#!/bin/sh\ncase $2 in\n"
        f'*version_info*) exec {sys.executable} -c "import sys; sys.version_info = ({major}, {minor}, 0)\n$2" "$3";;\n'
        f"*tensorrt*) exit {0 if tensorrt else 1};;\nesac\necho by {path.parent.name}/{path.name}\nexit 1\n"
    )
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("system", "first", "taken"),
    [(("3.10", True), ("3.13", False), "bin/python3"),  # conda's comes first in PATH, and has no wheel
     (("3.10", True), ("3.12", False), "bin/python3"),
     (("3.8", False), ("3.10", True), "conda/python3"),  # JetPack 5, with a Python of the user's own
     (("3.10", False), ("3.12", True), "conda/python3"),  # TensorRT is in an environment of the user's own
     (("3.10", False), ("3.12", False), "bin/python3"),  # JetPack without python3-libnvinfer
     (("3.8", False), ("3.11", False), None)],
)  # fmt: skip
def test_the_system_python_comes_first_and_has_to_know_tensorrt(run, tmp_path, system, first, taken):
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "msn_deploy")
    bundle(run, tmp_path / "b.tar", target=ORIN_NANO, with_wheels=False)
    with tarfile.open(tmp_path / "b.tar") as archive:
        unpack(archive, tmp_path)
    shutil.move(tmp_path / "wheels", tmp_path / "b/wheels")
    env = (tmp_path / "b/bundle.env").read_text()
    (tmp_path / "b/bundle.env").write_text(env.replace("PYTHONS=''", "PYTHONS='3.10 3.12'"))
    packed_too(tmp_path / "b")
    root = device(tmp_path / "root")
    look_below(tmp_path / "b", root)
    fake_python(root / "usr/bin/python3", version=system[0], tensorrt=system[1])
    fake_python(tmp_path / "conda/python3", version=first[0], tensorrt=first[1])
    for name in ("python3.10", "python3.12"):
        fake_python(tmp_path / "conda" / name, version="3.9", tensorrt=False)
    done = subprocess.run(
        ["sh", tmp_path / "b/install.sh"],
        env={"PATH": f"{tmp_path / 'conda'}:/usr/bin:/bin", "MSN_DEPLOY_HOME": str(home_of(tmp_path / "b"))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if taken is None:
        assert (done.returncode, "drive trtexec instead" in done.stdout) == (0, True)
    else:
        assert (done.returncode, done.stdout.splitlines()[-1]) == (3, f"by {taken}"), done


TENSORRTS = ("8.2.1", "8.5.2", "8.6.2", "10.3.0", "10.16.2")  # of JetPack 4.6, 5.1, 6.0, 6.1 and 6.2, 7.2


@pytest.mark.parametrize(
    ("shell", "tensorrt"),
    [*(("dash", each) for each in TENSORRTS), *(("busybox sh", each) for each in ("8.6.2", "10.3.0")),
     ("bash --posix", "10.3.0")],
)  # fmt: skip
def test_every_shell_runs_them(unpacked, tmp_path, shell, tensorrt):
    """From the check to the report: trtexec of each JetPack, and msn-deploy."""
    shell = shell.split()
    if shutil.which(shell[0]) is None:
        pytest.skip(f"no {shell[0]} here")
    root = device(tmp_path / "root", tensorrt=tensorrt)
    look_below(unpacked, root)
    for script, code in (("verify", 0), ("install.sh", 2), ("build.sh", 0), ("bench.sh", 0), ("eval.sh", 2)):
        done = sh(unpacked / script, shell=shell)
        assert done.returncode == code, (script, done.stderr)
    count = len(calls(root)) // 2  # each built, each measured
    assert count == (5 if tensorrt.startswith("8") else 4)
    shutil.rmtree(unpacked / "engines")
    built(unpacked)
    installed(unpacked, 'while [ $# -gt 1 ]; do shift; done\ncase $1 in *.engine) echo plan >"$1";; esac\n')
    for script, options in (("build.sh", ("fp16",)), ("eval.sh", ("digits",)), ("bench.sh", ())):
        done = sh(unpacked / script, *options, shell=shell)
        assert done.returncode == 0, (script, done.stderr)


def test_no_variable_makes_another_machine_of_this_one(unpacked, tmp_path):
    root = device(tmp_path / "root")
    env = {"PATH": os.environ["PATH"], "root": str(root), "MSN_DEPLOY_ROOT": str(root)}
    done = subprocess.run(["sh", unpacked / "build.sh"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert calls(root) == []


def test_install_without_wheels(unpacked):
    done = sh(unpacked / "install.sh")
    assert (done.returncode, "--no-wheels" in done.stderr) == (2, True)
