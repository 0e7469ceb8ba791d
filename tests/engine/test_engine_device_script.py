"""The script for the device, run with stand-ins for msn-deploy, docker and trtexec on the PATH."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from msn_deploy.core.artifacts import read_sidecar, sha256_of
from msn_deploy.core.errors import GateError, InputError
from msn_deploy.engine import BuildOptions, find_target, write_device_script
from msn_deploy.engine.calibration_table import number_of
from msn_deploy.engine.device_script import check_dla_file, engine_names
from msn_deploy.engine.dla import has_dla
from msn_deploy.engine.tensors import parse_shapes
from msn_deploy.machine.containers import COPIES, GPU_FLAGS, docker_run
from msn_deploy.machine.jetpacks import JETPACKS
from msn_deploy.model.opened import open_model

TOOLS = ("sh", "dirname", "sed", "head", "mv", "cat", "mktemp", "tr", "ls", "rm", "chmod", "stat")
ODD = 'it\'s a $(touch pwned) `net` "1".onnx'
# Writes its words down, one a line, and makes the file after --out or --saveEngine=.
RECORD = """#!/bin/sh
case $1 in --help) echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec --help"; exit 0;; esac
case "$1 $2" in "image inspect") exit {image};; esac
printf '%s\\n' "${{0##*/}}" "$@" >>"{log}"
{more}
last=
for word in "$@"; do
    case $word in --saveEngine=*) echo plan >"${{word#--saveEngine=}}";; esac
    if [ "$last" = --out ] && [ {makes} = 1 ]; then echo plan >"$word.new"; mv "$word.new" "$word"; fi
    last=$word
done
"""


class Device:
    """A folder with files for a device, and a PATH of its own."""

    def __init__(self, root: Path) -> None:
        self.folder, self.bin, self.log = root / "files", root / "bin", root / "log"
        self.bin.mkdir()
        self.log.touch()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))

    def has(self, tool: str, *, version: str = "100300", image: int = 0, makes: int = 1, more: str = "") -> None:
        """image: what docker says of the image. makes: whether an engine is written. more: sh, before that."""
        path = self.bin / tool
        text = RECORD.format(version=version, image=image, makes=makes, log=self.log, more=more)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def run(self, script: Path, code: int = 0, shell: tuple[str, ...] = ()) -> tuple[list[str], str]:
        """Run the script from elsewhere; returns what was called, and stderr. shell: () is that of its first line."""
        env = {"PATH": str(self.bin), "TRTEXEC": str(self.bin / "trtexec")}
        ran = subprocess.run([*shell, script], env=env, cwd="/", capture_output=True)
        assert ran.returncode == code, ran
        return os.fsdecode(self.log.read_bytes()).splitlines(), os.fsdecode(ran.stderr)


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


@pytest.fixture
def write(save, device):
    def make(
        name="net.int8.onnx",
        *,
        target="orin-nano",
        precision="int8",
        build=None,
        out=None,
        batch=1,
        quantised=None,
        **options,
    ):
        nets = {"fp32": {}, "fp16": {"half": True}, "int8": {"int8": True}}
        device.folder.mkdir(exist_ok=True)
        onnx = device.folder / name
        shutil.move(save("net.onnx", batch=batch, **nets[precision]), onnx)
        return write_device_script(
            open_model(onnx, step="test"),
            device.folder / (out or name.removesuffix(".onnx") + ".engine"),
            target=find_target(target),
            precision=build or precision,
            options=BuildOptions(**options),
            quantised=quantised,
        )

    return make


def test_the_script_is_an_executable_artifact(write):
    made = write()
    assert made.script.name == "net.int8.build.sh"
    assert os.access(made.script, os.X_OK)
    side = read_sidecar(made.script)
    onnx = made.script.with_name("net.int8.onnx")
    assert [(each.file, each.sha256) for each in side.parents] == [(onnx.name, sha256_of(onnx))]
    assert side.config["target"] == "orin-nano-8gb"
    subprocess.run(["sh", "-n", made.script], check=True)


def test_msn_deploy_comes_first(write, device):
    for tool in ("msn-deploy", "docker", "trtexec"):
        device.has(tool)
    made = write(workspace_mib=512, batch="N", min_batch=2, opt_batch=4, optimization_level=5, version_compatible=True)
    words, _ = device.run(made.script)
    expected = (
        "msn-deploy build-engine net.int8.onnx --precision int8 --target orin-nano-8gb --min-batch 2 --opt-batch 4"
    )
    expected += " --workspace-mib 512 --optimization-level 5 --version-compatible --out net.int8.engine"
    assert " ".join(words) == expected
    assert made.commands[0] == expected
    assert (device.folder / "net.int8.engine").read_text() == "plan\n"


@pytest.mark.parametrize(
    ("options", "decided", "of_trtexec"),
    [
        ({"replicates": 2}, "--replicates 2", []),
        ({"timing_cache": Path("it's.cache")}, "--timing-cache it's.cache", ["--timingCacheFile=it's.cache"]),
    ],
)
def test_replicates_and_the_timing_cache_are_given_to_both(write, device, options, decided, of_trtexec):
    made = write(**options)
    device.has("msn-deploy")
    words, _ = device.run(made.script)
    assert " ".join(words[-4:]) == f"{decided} --out net.int8.engine"
    assert shlex.split(made.commands[0]) == words
    (device.bin / "msn-deploy").unlink()
    device.log.write_text("")
    device.has("trtexec")
    words, _ = device.run(made.script)
    assert words[3 : 3 + len(of_trtexec)] == of_trtexec
    shown = shlex.split(made.trtexec["TensorRT 10.3.0, 10.16.2"])
    assert shown[3:] == words[3 : len(shown)]


def test_then_its_container(write, device):
    device.has("docker")
    device.has("trtexec")
    words, _ = device.run(write().script)
    assert words[:4] == ["docker", "run", "--runtime=nvidia", "--rm"]
    assert {"msn-cache:/cache", f"{device.folder}:/data"} <= set(words)
    printed = shlex.split(docker_run().partition("docker run ")[2])
    assert [word for word in printed if word.startswith("--") and word not in words] == [
        "--group-add"
    ]  # no device file
    assert words[words.index("--tmpfs") + 1] == printed[printed.index("--tmpfs") + 1]
    assert words[words.index("msn-deploy") :][:3] == ["msn-deploy", "build-engine", "net.int8.onnx"]
    assert words[-2:] == ["--out", "net.int8.engine"]


# What docker says where the runtime is not registered, or a CDI device is not described; 125 is its own exit code.
KNOWS = 'case "$*" in *{0}*) ;; *) echo "docker: Error response from daemon: ..." >&2; exit 125;; esac'


@pytest.mark.parametrize("flag", GPU_FLAGS)
def test_docker_is_asked_for_the_gpu_in_every_way_that_it_may_know(write, device, flag):
    device.has("docker", more=KNOWS.format(flag))
    device.has("trtexec")
    words, _ = device.run(write().script)
    assert words.count("docker") == GPU_FLAGS.index(flag) + 1
    assert "trtexec" not in words


@pytest.mark.parametrize("code", [125, 126, 127])
def test_trtexec_builds_where_docker_starts_nothing(write, device, code):
    device.has("docker", more=f"exit {code}")
    device.has("trtexec")
    words, told = device.run(write().script)
    assert [words.count("docker"), words.count("trtexec")] == [3, 1]
    assert [line.rpartition(" ")[2] for line in told.splitlines()[:3]] == [f"{flag}." for flag in GPU_FLAGS]


@pytest.mark.parametrize("tool", ["msn-deploy", "docker"])
@pytest.mark.parametrize(("code", "then"), [(1, 1), (2, 2), (3, "trtexec"), (4, 4)])
def test_a_build_that_failed_is_not_tried_in_another_way(write, device, tool, code, then):
    """3: what it needs is not there, such as TensorRT in a conda environment."""
    device.has(tool, more=f"exit {code}")
    device.has("trtexec")
    words, _ = device.run(write().script, code=0 if then == "trtexec" else then)
    assert (words.count(tool), "trtexec" in words) == (1, then == "trtexec")


def test_file_names_that_are_not_text_stay_as_they_are(write, device):
    name = os.fsdecode(b"n\xe9t \xff\xc3.onnx")
    device.has("trtexec")
    words, _ = device.run(write(name).script)
    assert f"--onnx={name}" in words
    assert (device.folder / name).with_suffix(".engine").read_text() == "plan\n"


def on_a_jetson(script: Path, root: Path) -> None:
    """Let a script look for /etc and /proc below a root: changed in the script, for it takes no option."""
    for name, text in (("etc/nv_tegra_release", "# R36"), ("proc/device-tree/model", "NVIDIA Jetson Orin Nano\0")):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(text)
    script.write_text(script.read_text().replace("root=''\n", f"root='{root}'\n"))


@pytest.mark.parametrize("tool", ["msn-deploy", "docker"])
def test_trtexec_builds_on_a_jetson_whose_msn_deploy_cannot(write, device, tool, tmp_path):
    """There it only writes the script again; an engine of last time is none that it built."""
    made = write()
    (device.folder / "net.int8.engine").write_text("old")
    on_a_jetson(made.script, tmp_path / "root")
    device.has(tool, makes=0)
    device.has("trtexec")
    words, told = device.run(made.script)
    assert (device.folder / "net.int8.engine").read_text() == "plan\n"
    assert ("trtexec" in words, f"{tool} has built no engine" in told) == (True, True)


def test_the_user_of_the_container_may_read_the_copy_of_the_model_text(write, device, tmp_path):
    made = write()
    on_a_jetson(made.script, tmp_path / "root")
    look = 'case $w in *:/tmp/nv_jetson_model:ro) f=${w%%:*}; stat -c "%a $f" "$f" "${f%/*}"; cat "$f";; esac'
    device.has("docker", more=f'for w in "$@"; do {look}; done >{tmp_path}/seen')
    device.run(made.script)
    assert [f"/tmp/nv_jetson_{name}" in docker_run() for name in COPIES] == [True, True]
    file, folder, model = (tmp_path / "seen").read_text().splitlines()
    assert model == "NVIDIA Jetson Orin Nano"
    assert int(file.split()[0], 8) & 0o444 == 0o444
    assert int(folder.split()[0], 8) & 0o555 == 0o555
    assert not Path(folder.split()[1]).exists()


def test_the_copies_go_also_when_the_script_is_ended(write, device, tmp_path):
    made = write()
    (tmp_path / "tmp").mkdir()
    device.has("docker", more=f"ls {tmp_path}/tmp >{tmp_path}/seen; kill -TERM $PPID; exit 125")
    env = {"PATH": str(device.bin), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run([made.script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 143, done
    assert len((tmp_path / "seen").read_text().split()) == 1
    assert list((tmp_path / "tmp").iterdir()) == []


def test_no_variable_makes_a_jetson_of_this_machine(write, device, tmp_path):
    made = write()
    device.has("msn-deploy", makes=0)
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/nv_tegra_release").write_text("# R36")
    env = {"PATH": str(device.bin), "root": str(tmp_path / "root"), "docker_gpus": "--privileged"}
    done = subprocess.run([made.script], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "this is no Jetson" in done.stderr) == (3, True)


PRECISION_OPTIONS = {
    "8205": ["--workspace=256", "--int8", "--fp16"],
    "8502": ["--memPoolSize=workspace:256", "--int8", "--fp16"],
    "8602": ["--memPoolSize=workspace:256", "--int8", "--fp16"],
    "100300": ["--memPoolSize=workspace:256", "--stronglyTyped"],
    "101602": ["--memPoolSize=workspace:256", "--stronglyTyped"],
    "110401": ["--memPoolSize=workspace:256"],
}


@pytest.mark.parametrize("version", PRECISION_OPTIONS)
def test_then_trtexec_with_the_options_of_its_release(write, device, version):
    device.has("docker", image=1)  # docker is here, the image is not
    device.has("trtexec", version=version)
    words, _ = device.run(write().script)
    assert words == [
        "trtexec",
        "--onnx=net.int8.onnx",
        "--saveEngine=net.int8.engine.partial",
        *PRECISION_OPTIONS[version],
    ]
    assert (device.folder / "net.int8.engine").read_text() == "plan\n"
    assert not list(device.folder.glob("*.partial"))


@pytest.mark.parametrize(("release", "has"), [("10.7.0", True), ("10.8.0", False), ("11.4.0", False), ("11.4.1", True)])
def test_the_script_knows_the_releases_without_a_dla(write, device, release, has):
    assert has_dla(release) == has
    device.has("trtexec", version=str(number_of(release)))
    made = write(dla=0, target="agx-orin", precision="fp16")
    words, told = device.run(made.script, code=0 if has else 3)
    assert ("trtexec" in words, "has no DLA" in told) == (has, not has)


# On which board a JetPack is looked at, and which flag of docker its Docker knows.
ON = {"4": ("nano", GPU_FLAGS[0]), "5": ("xavier-nx", GPU_FLAGS[0]), "6": ("orin-nano", GPU_FLAGS[0]),
      "7": ("thor-t5000", GPU_FLAGS[1])}  # fmt: skip


@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh")], ids=" ".join)
@pytest.mark.parametrize("jetpack", JETPACKS, ids=[each.name for each in JETPACKS])
def test_on_every_jetpack_what_is_there_builds(write, device, jetpack, shell, tmp_path):
    """trtexec alone; then the image, where the package runs in it; then msn-deploy. Before JetPack 6 neither of both:
    a Python of the user's own has no TensorRT, which is exit code 3."""
    where = shutil.which(shell[0])
    if where is None:
        pytest.skip(f"no {shell[0]} here")
    target, flag = ON[jetpack.major]
    made = write("net.onnx", target=target, precision="fp32")
    on_a_jetson(made.script, tmp_path / "root")
    stubs = {
        "trtexec": {"version": str(number_of(jetpack.tensorrt))},
        "docker": {"image": 0 if jetpack.runs_package else 1, "more": KNOWS.format(flag)},
        "msn-deploy": {"more": "" if jetpack.runs_package else "exit 3"},
    }
    for tool, stub in stubs.items():
        device.log.write_text("")
        (device.folder / "net.engine").unlink(missing_ok=True)
        device.has(tool, **stub)
        words, _ = device.run(made.script, shell=(where, *shell[1:]))
        built_by = tool if jetpack.runs_package else "trtexec"
        assert [each for each in stubs if each in words and (each == built_by or each == "trtexec")] == [built_by]
        assert (device.folder / "net.engine").read_text() == "plan\n"
        if built_by == "trtexec":
            shown = next(
                line for title, line in made.trtexec.items() if jetpack.tensorrt in title or jetpack.superseded
            )
            assert jetpack.superseded or shlex.split(shown)[3:] == words[words.index("trtexec") + 3 :]
        if built_by == "docker":
            assert words[words.index("docker", words.index(flag) - 2) + 1 :][:2] == ["run", flag]


@pytest.mark.parametrize(("precision", "flags"), [("fp32", []), ("fp16", ["--fp16"])])
def test_tensorrt_8_takes_the_precision_from_flags(write, device, precision, flags):
    device.has("trtexec", version="8502")
    words, _ = device.run(write(precision=precision).script)
    assert words[4:] == flags


@pytest.mark.parametrize("shell", [("dash",), ("bash", "--posix"), ("busybox", "sh")], ids=" ".join)
def test_every_shell_runs_it(write, device, shell):
    where = shutil.which(shell[0])
    if where is None:
        pytest.skip(f"no {shell[0]} here")
    device.has("trtexec", version="8502")
    words, _ = device.run(
        write(replicates=2, batch="N", dla=0, target="agx-orin", precision="fp16").script, shell=(where, *shell[1:])
    )
    assert words.count("trtexec") == 2
    assert words.count("--useDLACore=0") == 2
    for tool in ("docker", "msn-deploy"):
        device.log.write_text("")
        device.has(tool)
        words, _ = device.run(device.folder / "net.int8.build.sh", shell=(where, *shell[1:]))
        assert words[0] == tool


def test_an_open_batch_gets_its_range(write, device):
    device.has("trtexec")
    made = write(batch="N", min_batch=1)
    words, _ = device.run(made.script)
    assert words[4:7] == ["--minShapes=x:1x3x8x8", "--optShapes=x:8x3x8x8", "--maxShapes=x:8x3x8x8"]
    assert "--minShapes=x:1x3x8x8 --optShapes=x:8x3x8x8" in made.trtexec["TensorRT 10.3.0, 10.16.2"]


def test_every_open_input_gets_its_range_in_one_option(stereo, device):
    device.folder.mkdir()
    for tool in ("msn-deploy", "trtexec"):
        device.has(tool)
    onnx = Path(shutil.move(stereo, device.folder / "stereo.onnx"))
    given = ("left=1x3x8x16:2x3x8x32:4x3x8x64", "right=1x3x8x16")
    made = write_device_script(
        open_model(onnx, step="test"),
        device.folder / "stereo.engine",
        target=find_target("orin-nano"),
        precision="fp32",
        options=BuildOptions(shapes=tuple(map(parse_shapes, given))),
    )
    words, _ = device.run(made.script)
    expected = "build-engine stereo.onnx --precision fp32 --target orin-nano-8gb"
    assert " ".join(words[1:]) == f"{expected} --shapes {given[0]} --shapes {given[1]} --out stereo.engine"
    (device.bin / "msn-deploy").unlink()
    device.log.write_text("")
    words, _ = device.run(made.script)
    ranges = [
        "--minShapes=left:1x3x8x16,right:1x3x8x16",
        "--optShapes=left:2x3x8x32,right:1x3x8x16",
        "--maxShapes=left:4x3x8x64,right:1x3x8x16",
    ]
    assert [word for word in words if "Shapes" in word] == ranges
    assert set(ranges) <= set(shlex.split(made.trtexec["TensorRT 8.5.2, 8.6.2"]))


def test_a_type_that_the_devices_tensorrt_lacks_is_refused(stereo, device):
    device.folder.mkdir()
    shapes = tuple(parse_shapes(f"{name}=1x3x8x16") for name in ("left", "right"))
    with pytest.raises(InputError, match=r"TensorRT 8\.2\.1, the newest of nano, has no inputs .* of uint8, .* right"):
        write_device_script(
            open_model(stereo, step="test"),
            device.folder / "x.engine",
            target=find_target("nano"),
            precision="fp32",
            options=BuildOptions(shapes=shapes),
        )
    assert not list(device.folder.iterdir())


def test_more_than_an_open_batch_is_refused(save, device):
    device.folder.mkdir()
    model = open_model(save(batch="N", size="S"), step="test")
    target = find_target("orin-nano")
    with pytest.raises(InputError, match="leaves more than the batch open"):
        write_device_script(model, device.folder / "x.engine", target=target, precision="fp32", options=BuildOptions())
    assert not list(device.folder.iterdir())


def test_replicates_are_built_one_by_one(write, device):
    device.has("trtexec")
    device.run(write(replicates=3).script)
    names = sorted(path.name for path in device.folder.glob("*.engine"))
    assert names == ["net.int8.engine", "net.int8.r2.engine", "net.int8.r3.engine"]
    assert names == engine_names(device.folder / "net.int8.engine", 3)


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        *((tool, name) for tool in ("msn-deploy", "trtexec") for name in (ODD, "-rf.onnx")),
        ("docker", ODD),
        ("trtexec", "line\nbreak.onnx"),
    ],
)
def test_odd_names_are_only_names(write, device, tool, name):
    device.has(tool)
    made = write(name)
    words, _ = device.run(made.script)
    engine = name.removesuffix(".onnx") + ".engine"
    assert (device.folder / engine).read_text() == "plan\n"
    assert not list(device.folder.glob("pwned*"))
    assert not Path("/pwned").exists()
    if tool != "trtexec":
        assert ("./" if name.startswith("-") else "") + name in "\n".join(words)


def test_a_device_with_nothing_is_told_what_to_install(write, device):
    words, told = device.run(write().script, code=3)
    assert words == []
    assert "neither msn-deploy, nor the image msn-deploy, nor trtexec builds it here" in told
    assert "sudo apt install tensorrt" in told


def test_a_missing_file_is_named(write, device):
    device.has("trtexec")
    made = write()
    made.script.with_name("net.int8.onnx").unlink()
    words, told = device.run(made.script, code=2)
    assert words == []
    assert "net.int8.onnx is not here" in told


def test_run_on_another_machine_it_says_so(write, device):
    device.has("msn-deploy", makes=0)  # there, build-engine only writes the script again
    _, told = device.run(write().script, code=3)
    assert "no net.int8.engine was built: this is no Jetson Orin Nano 8GB" in told


def test_a_trtexec_that_does_not_say_its_version_builds_nothing(write, device):
    device.has("trtexec", version="")
    words, told = device.run(write().script, code=3)
    assert words == []
    assert "does not say its version" in told


def test_a_failed_build_leaves_the_old_engine(write, device):
    made = write()
    old = device.folder / "net.int8.engine"
    old.write_text("old")
    device.has("trtexec")
    path = device.bin / "trtexec"
    path.write_text(path.read_text(encoding="utf-8") + "exit 1\n", encoding="utf-8")
    device.run(made.script, code=1)
    assert old.read_text() == "old"


# DLA


@pytest.mark.parametrize(
    ("version", "flags"),
    [("8502", ["--fp16"]), ("100300", ["--fp16"]), ("100700", ["--fp16"]), ("110401", ["--adjustForDLA"])],
)
def test_dla_with_its_fallback(write, device, version, flags):
    device.has("trtexec", version=version)
    made = write(target="agx-orin", precision="fp16", batch="N", dla=1)
    words, _ = device.run(made.script)
    chosen = {"--useDLACore=1", "--allowGPUFallback", *flags}
    assert {word for word in words[4:] if "Shapes" not in word} == chosen
    assert "--minShapes=x:8x3x8x8" in words  # every size is fixed on DLA
    assert "--dla 1" in made.commands[0]
    assert (made.dla.core, made.dla.fallback_percent) == (1, 0.0)


@pytest.mark.parametrize("version", ["100800", "101602", "110400"])
def test_a_tensorrt_without_dla_is_told(write, device, version):
    device.has("trtexec", version=version)
    words, told = device.run(write(target="agx-orin", precision="fp16", dla=0).script, code=3)
    assert words == []
    assert f"this TensorRT ({version}) has no DLA" in told


def test_a_q_dq_file_on_a_dla_is_for_agx_orin_with_tensorrt_11(write, device):
    made = write(target="agx-orin", dla=0)
    model = open_model(device.folder / "net.int8.onnx", step="test")
    with pytest.raises(InputError, match=r"DLA of Jetson Orin NX 16GB does not take them.*\n.*FP32 file"):
        check_dla_file(model, find_target("orin-nx"), 0)
    check_dla_file(model, find_target("agx-orin"), 0)
    assert made.trtexec == {
        "TensorRT 11.4.1": "trtexec --onnx=net.int8.onnx --saveEngine=net.int8.engine --memPoolSize=workspace:256 "
        "--useDLACore=0 --allowGPUFallback --adjustForDLA"
    }
    device.has("trtexec", version="100300")
    words, told = device.run(made.script, code=3)
    assert words == []
    assert "takes no Q/DQ network on DLA" in told
    assert "msn-deploy build-engine NAME.onnx\n--precision int8 --dla 0" in told
    device.has("trtexec", version="110401")
    assert device.run(made.script)[0][4:] == ["--useDLACore=0", "--allowGPUFallback", "--adjustForDLA"]


SCALES = "x: 3c010a14\nodd name: 3f800000\n"


@pytest.fixture
def int8_on_dla(write, device):
    """Return a function that writes a script for the FP32 file with a table, and for AGX Orin the INT8 file too."""

    def make(name="net.onnx", target="agx-orin", **options):
        device.folder.mkdir(exist_ok=True)
        table, quantised = device.folder / "it's.cache", device.folder / "net.int8.onnx"
        table.write_text(f"TRT-100300-EntropyCalibration2\n{SCALES}")
        quantised.write_text("Q/DQ")
        return write(
            name,
            target=target,
            precision="fp32",
            build="int8",
            out="net.engine",
            dla=1,
            calibration_table=table,
            quantised=quantised if target == "agx-orin" else None,
            **options,
        )

    return make


@pytest.mark.parametrize("version", ["8205", "8502", "8602", "100300", "100700"])
@pytest.mark.parametrize("target", ["xavier-nx", "orin-nx", "agx-orin"])
def test_int8_on_a_dla_from_the_fp32_file_and_a_table_of_that_release(int8_on_dla, device, version, target):
    device.has("trtexec", version=version)
    path = device.bin / "trtexec"
    seen = f'last=\ncp "{device.folder}"/*.calib "{device.folder}/seen"\n'
    path.write_text(path.read_text(encoding="utf-8").replace("last=\n", seen, 1), encoding="utf-8")
    (device.bin / "cp").symlink_to(shutil.which("cp"))
    made = int8_on_dla(target=target)
    words, _ = device.run(made.script)
    assert words[:4] == ["trtexec", "--onnx=net.onnx", "--saveEngine=net.engine.partial", "--calib=net.engine.calib"]
    assert {"--int8", "--fp16", "--useDLACore=1", "--allowGPUFallback"} <= set(words[4:])
    assert not {"--stronglyTyped", "--adjustForDLA"} & set(words)
    assert (device.folder / "seen").read_text() == f"TRT-{version}-EntropyCalibration2\n{SCALES}"
    assert not list(device.folder.glob("*.calib"))
    assert (device.folder / "net.engine").read_text() == "plan\n"
    assert made.beside == ("it's.cache", "net.int8.onnx")[: 2 if target == "agx-orin" else 1]


def test_a_failed_build_from_a_table_leaves_neither_an_engine_nor_the_copy(int8_on_dla, device):
    made = int8_on_dla()
    device.has("trtexec", version="8502")
    path = device.bin / "trtexec"
    path.write_text(path.read_text(encoding="utf-8") + "exit 7\n", encoding="utf-8")
    device.run(made.script, code=7)
    assert not list(device.folder.glob("*.calib"))
    assert not (device.folder / "net.engine").exists()


def test_int8_on_the_dla_of_tensorrt_11_takes_the_q_dq_file(int8_on_dla, device):
    device.has("trtexec", version="110401")
    words, _ = device.run(int8_on_dla().script)
    assert words[1] == "--onnx=net.int8.onnx"
    assert not [word for word in words if "calib" in word or word in ("--int8", "--fp16")]
    made = int8_on_dla(target="orin-nx")  # it has no such TensorRT, and no such file
    device.log.write_text("")
    assert "takes no calibration table" in device.run(made.script, code=3)[1]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (None, "net.onnx --precision int8 --target agx-orin-64gb --dla 1 --calibration-table it's.cache"),
        ("100300", "net.onnx --precision int8 --target agx-orin-64gb --dla 1 --calibration-table it's.cache"),
        ("110401", "net.int8.onnx --precision int8 --target agx-orin-64gb --dla 1"),
    ],
)
def test_msn_deploy_builds_int8_on_a_dla_from_the_same_files(int8_on_dla, device, version, expected):
    made = int8_on_dla()
    device.has("msn-deploy")
    if version:
        device.has("trtexec", version=version)
    words, _ = device.run(made.script)
    assert " ".join(words) == f"msn-deploy build-engine {expected} --out net.engine"
    if version == "100300":
        assert shlex.split(made.commands[0]) == words


def test_int8_on_a_dla_is_shown_with_the_file_that_each_release_takes(int8_on_dla):
    lines = {key: shlex.split(line) for key, line in int8_on_dla().trtexec.items()}
    assert list(lines) == ["TensorRT 8.5.2, 8.6.2, 10.3.0", "TensorRT 11.4.1"]
    assert lines["TensorRT 8.5.2, 8.6.2, 10.3.0"][1:4] == [
        "--onnx=net.onnx",
        "--saveEngine=net.engine",
        "--calib=it's.cache",
    ]
    assert lines["TensorRT 11.4.1"][1] == "--onnx=net.int8.onnx"
    assert "--calib=it's.cache" not in lines["TensorRT 11.4.1"]
    assert list(int8_on_dla(target="orin-nx").trtexec) == ["TensorRT 8.5.2, 8.6.2, 10.3.0"]


@pytest.mark.parametrize("name", ["net.onnx", "it's.cache", "net.int8.onnx"])
def test_each_file_that_is_missing_is_named(int8_on_dla, device, name):
    made = int8_on_dla()
    (device.folder / name).unlink()
    device.has("msn-deploy")
    words, told = device.run(made.script, code=2)
    assert words == []
    assert f"{name} is not here" in told


def test_too_much_fallback_is_refused_before_anything_is_written(write, device):
    with pytest.raises(GateError, match=r"100\.0 % .* at most 10 %"):
        write(target="agx-orin", precision="fp32", dla=0, max_dla_fallback=10)
    assert [path.name for path in device.folder.iterdir()] == ["net.int8.onnx"]


# What is shown


def test_the_lines_shown_are_those_of_the_targets_releases(write):
    assert list(write(target="orin-nano").trtexec) == ["TensorRT 8.5.2, 8.6.2", "TensorRT 10.3.0, 10.16.2"]
    assert list(write(target="thor").trtexec) == ["TensorRT 10.13.3, 10.16.2"]
    nano = write(target="nano", precision="fp16")
    assert nano.commands == ()  # the Python of JetPack 4 is too old for msn-deploy
    assert nano.trtexec == {
        "TensorRT 8.2.1": "trtexec --onnx=net.int8.onnx --saveEngine=net.int8.engine --workspace=256 --fp16"
    }
