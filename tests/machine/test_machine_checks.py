import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import doctor_machines
import pytest
from doctor_machines import ARM, DESKTOP, GIB, MACHINES, NODES, PAGE, RENDER, VIDEO, Machine, judged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msn_deploy.machine.checks import Check, Host, build_peak_mib, checks
from msn_deploy.machine.device import COMPATIBLE_COPY
from msn_deploy.machine.files import exists, names_in, read_text
from msn_deploy.machine.libraries import find_libraries

ELF = b"\x7fELF" + bytes(100)


def lines(name, folder):
    return {check.name: check for check in judged(name, folder)}


def write(root: Path, name: str, content: bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.skipif(not PAGE.is_file(), reason="needs the source tree")
def test_the_page_shows_what_doctor_says(tmp_path_factory):
    """After a change: PYTHONPATH=. python tests/machine/doctor_machines.py."""
    assert PAGE.read_text() == doctor_machines.page(lambda name: tmp_path_factory.mktemp(name))


@pytest.mark.parametrize(
    ("name", "problems", "warnings"),
    [
        ("jetpack6", set(), {"clocks"}),
        ("jetpack6-container", set(), set()),
        ("jetpack6-bare-container", {"gpu", "runtime"}, {"jetson", "image", "power mode", "clocks"}),
        ("jetpack6-second-tensorrt", {"onnx", "tensorrt", "rights"}, {"pycuda", "runtime", "clocks", "disk"}),
        ("jetpack60-other-image", {"image"}, {"power mode", "clocks"}),
        ("jetpack5", set(), {"pycuda", "tensorrt", "jetson", "clocks"}),
        ("jetpack5-short-files", {"libraries", "image"}, {"pycuda", "jetson", "power mode", "clocks"}),
        ("jetpack4", {"onnxruntime", "onnx"}, {"pycuda", "tensorrt", "jetson", "clocks", "memory"}),
        ("jetpack7-thor", set(), {"clocks"}),
        ("jetpack7-orin", set(), {"image", "memory"}),
        ("workstation-gpu", set(), set()),
        ("workstation-other-gpu", set(), {"gpu"}),
        ("workstation", {"onnxruntime", "onnx"}, {"torch", "tensorrt", "gpu"}),
        ("wsl", set(), set()),
        ("container", set(), {"torch", "tensorrt", "gpu"}),
        ("raspberry", set(), {"torch", "tensorrt", "gpu"}),
        ("empty", {"onnxruntime", "onnx"}, {"torch", "tensorrt", "gpu", "memory"}),
    ],
)
def test_the_verdicts_on_every_machine(tmp_path, name, problems, warnings):
    found = lines(name, tmp_path)
    assert {each.name for each in found.values() if each.verdict == "problem"} == problems
    assert {each.name for each in found.values() if each.verdict == "warning"} == warnings
    assert all(each.hint for each in found.values() if each.verdict != "ok")


def test_every_faked_machine_has_its_verdicts_above():
    mark = next(mark for mark in test_the_verdicts_on_every_machine.pytestmark if mark.name == "parametrize")
    assert [row[0] for row in mark.args[1]] == list(MACHINES)


@pytest.mark.parametrize(
    ("name", "line", "found", "hint"),
    [
        ("jetpack6-bare-container", "gpu", "no GPU device file", "docker run --runtime=nvidia"),
        ("jetpack6-bare-container", "jetson", "by its kernel JetPack 6", "-v /etc/nv_tegra_release"),
        ("jetpack6-second-tensorrt", "tensorrt", "tensorrt_libs", "pip uninstall -y tensorrt"),
        ("jetpack6-second-tensorrt", "rights", "/dev/nvgpu/igpu0/ctrl and 7 more", "usermod -aG video $USER"),
        ("jetpack60-other-image", "image", "r36.4.0, host L4T 36.3.0", "BASE_IMAGE"),
        ("jetpack5-short-files", "libraries", "link to nothing and 2 more", "--runtime=nvidia"),
        ("jetpack4", "jetson", "L4T 32.7.1 (JetPack 4)", "trtexec"),
        ("jetpack7-orin", "image", "TensorRT 10.13.3 where JetPack 7 has 10.16", "BASE_IMAGE"),
        ("jetpack7-orin", "memory", "a build may take 1.6 GiB", "--workspace-mib"),
        ("jetpack6", "jetson", "NVIDIA Jetson Orin Nano Developer Kit (Jetson Orin Nano 8GB), L4T 36.4.3", ""),
        ("jetpack6", "runtime", "nvidia", '-v "$PWD":/data msn-deploy'),
        ("jetpack7-thor", "runtime", "CDI", "docker run --rm --device=nvidia.com/gpu=all"),
    ],
)
def test_a_line_says_what_was_found_and_what_to_type(tmp_path, name, line, found, hint):
    check = lines(name, tmp_path)[line]
    assert found in check.found
    assert hint in check.hint


ORIN_NANO = MACHINES["jetpack6"]


def rights(machine: Machine, root: Path) -> Check:
    return next(each for each in checks(machine.build(root)) if each.name == "rights")


@pytest.mark.parametrize("jetpack", [4, 5, 6, 7])
@pytest.mark.parametrize(
    ("uid", "groups", "verdict"),
    [(0, (), "ok"), (1000, (VIDEO,), "ok"), (1000, (), "problem"), (1000, (RENDER,), "problem")],
)
def test_on_a_jetson_root_and_the_group_of_the_device_files_may_open_the_gpu(tmp_path, jetpack, uid, groups, verdict):
    """/dev/nvgpu is a folder that nobody but root may write to; CUDA opens what lies in it, and no render node."""
    found = rights(replace(ORIN_NANO, nodes=NODES[jetpack], uid=uid, groups=groups), tmp_path)
    assert found.verdict == verdict
    assert "/dev/dri" not in found.found
    assert ("/dev/nvgpu/igpu0/ctrl" in found.found) == (verdict == "problem" and jetpack > 4)
    assert found.found.count("/dev/") == (2 if verdict == "problem" else 0)
    if verdict == "problem":
        assert found.hint == "sudo usermod -aG video $USER   and log in again"


def test_a_container_is_given_the_groups_by_the_numbers_of_the_device_files(tmp_path):
    nodes = {name: (994 if name.endswith("nvmap") else gid, mode) for name, (gid, mode) in NODES[6].items()}
    machine = replace(MACHINES["jetpack6-container"], nodes=nodes, groups=())
    assert rights(machine, tmp_path).hint == f"Start the container with: --group-add {VIDEO} --group-add 994"


def test_a_container_that_does_not_know_its_module_is_told_what_to_mount(tmp_path):
    files = {name: text for name, text in MACHINES["jetpack6-container"].files.items() if "device-tree" not in name}
    found = next(
        e for e in checks(replace(MACHINES["jetpack6-container"], files=files).build(tmp_path)) if e.name == "jetson"
    )
    assert (found.verdict, "which module is unknown" in found.found) == ("warning", True)
    assert f"{COMPATIBLE_COPY}:{COMPATIBLE_COPY}:ro" in found.hint


@pytest.mark.parametrize("its", [(0, 0o660), (VIDEO, 0o600)])
def test_no_group_helps_where_the_device_files_have_none(tmp_path, its):
    found = rights(replace(ORIN_NANO, nodes=dict.fromkeys(NODES[6], its)), tmp_path)
    assert (found.verdict, "udevadm trigger" in found.hint) == ("problem", True)


def test_a_gpu_in_a_folder_of_its_own_is_a_gpu(tmp_path):
    """Tegra's driver of JetPack 7 alone, and a container that was given the second GPU of a workstation."""
    orin = replace(ORIN_NANO, nodes={name: its for name, its in NODES[7].items() if "nvhost" not in name})
    assert {each.name: each for each in checks(orin.build(tmp_path / "a"))}["gpu"].found == "/dev/nvgpu/igpu0/ctrl"
    nodes = {name.replace("nvidia0", "nvidia1"): its for name, its in DESKTOP.items()}
    second = replace(MACHINES["workstation-gpu"], nodes=nodes)
    found = {each.name: each for each in checks(second.build(tmp_path / "b"))}["gpu"]
    assert (found.verdict, "/dev/nvidia1" in found.found) == ("ok", True)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes files of others")
def test_the_kernel_says_the_same_of_real_files(tmp_path):
    """As another user, by the groups that the kernel knows; the folder is root's, as devtmpfs makes it."""
    (tmp_path / "dev/nvgpu/igpu0").mkdir(parents=True)
    for name in ("ctrl", "as", "channel"):
        node = tmp_path / f"dev/nvgpu/igpu0/{name}"
        node.touch()
        os.chown(node, 0, VIDEO)
        node.chmod(0o660)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)

    def asked_by(groups: list[int]) -> Check:
        receiver, sender = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgroups(groups)
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                host = Host(root=tmp_path, installed=lambda name: None, folder=tmp_path)
                found = next(each for each in checks(host) if each.name == "rights")
                os.write(sender, pickle.dumps(found))
            finally:
                os._exit(0)
        os.close(sender)
        with os.fdopen(receiver, "rb") as stream:
            content = stream.read()
        os.waitpid(child, 0)
        return pickle.loads(content)

    assert asked_by([VIDEO]).verdict == "ok"
    refused = asked_by([])
    hint = f"sudo usermod -aG {VIDEO} $USER   and log in again"
    assert (refused.verdict, "and 1 more" in refused.found, refused.hint) == ("problem", True, hint)


def test_a_short_library_is_named_with_its_size(tmp_path):
    write(tmp_path, f"{ARM}/libnvinfer.so.10.3.0", b"")
    write(tmp_path, f"{ARM}/libnvinfer_plugin.so.10.3.0", b"\x7fELF")
    write(tmp_path, f"{ARM}/libnvonnxparser.so.10", b"version https://git-lfs.github.com/spec/v1\n" * 3)
    write(tmp_path, f"{ARM}/libcuda.so.1", ELF)
    write(tmp_path, f"{ARM}/libnvinfer.so.10.3.0.bak", b"")
    (tmp_path / ARM / "libcudart.so.12").symlink_to("libcudart.so.12.6.68")
    faults = {each.path.rpartition("/")[2]: each.fault for each in find_libraries(tmp_path)}
    assert faults == {
        "libnvinfer.so.10.3.0": "file too short (0 bytes)",
        "libnvinfer_plugin.so.10.3.0": "file too short (4 bytes)",
        "libnvonnxparser.so.10": "invalid ELF header",
        "libcuda.so.1": "",
        "libcudart.so.12": "link to nothing",
    }
    found = {each.name: each for each in checks(Host(root=tmp_path, installed=lambda name: None))}
    assert found["libraries"].verdict == "problem"
    assert f"/{ARM}/libcudart.so.12" in found["libraries"].found


@pytest.mark.parametrize(
    ("image", "host", "verdict"),
    [
        ("nvcr.io/nvidia/l4t-jetpack:r36.4.0", "36.5.0", "ok"),
        ("nvcr.io/nvidia/l4t-jetpack:r36.2.0", "36.4.3", "problem"),
        ("nvcr.io/nvidia/l4t-jetpack:r35.2.1", "35.6.0", "ok"),
        ("nvcr.io/nvidia/l4t-jetpack:r35.4.1", "36.3.0", "problem"),
        ("nvcr.io/nvidia/l4t-base:r38.2.0", "39.0.0", "ok"),
        ("nvcr.io/nvidia/l4t-tensorrt:r10.3.0-runtime", "36.4.3", "ok"),
        ("nvcr.io/nvidia/l4t-tensorrt:r10.3.0-runtime", "36.3.0", "warning"),
        ("ubuntu:22.04", "36.4.3", "ok"),
    ],
)
def test_an_image_has_to_fit_its_host(tmp_path, image, host, verdict):
    major, _, minor = host.partition(".")
    files = MACHINES["jetpack6-container"].files | {
        "etc/msn-deploy/base-image": image,
        "etc/nv_tegra_release": f"# R{major} (release), REVISION: {minor}, GCID: 1\n",
    }
    found = checks(Machine(title="", files=files).build(tmp_path))
    assert next(each.verdict for each in found if each.name == "image") == verdict


def test_the_peak_of_a_build_counts_libraries_and_model(tmp_path):
    machine = MACHINES["jetpack7-orin"].build(tmp_path)
    libraries = find_libraries(machine.root)
    alone = build_peak_mib(libraries)
    # libnvinfer once, whatever links and copies of it there are, and the resources of the builder
    assert alone == pytest.approx(556 + (220_000_000 + 900_000_000) / 2**20)
    assert build_peak_mib(libraries, model_bytes=100 * 2**20) == pytest.approx(alone + 400)
    memory = {size: next(c for c in checks(machine, model_bytes=size) if c.name == "memory") for size in (0, 2 * GIB)}
    assert "9.6 GiB" in memory[2 * GIB].found
    assert memory[0].found != memory[2 * GIB].found


def test_what_may_not_be_read_is_not_there(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    write(tmp_path, "file", b"text")
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    assert (read_text(tmp_path / "file"), exists(tmp_path / "file"), names_in(tmp_path)) == (None, False, [])
    assert checks(Host(root=tmp_path, installed=lambda name: None))


def test_a_folder_that_was_deleted_has_no_disk(tmp_path):
    def gone(folder):
        raise FileNotFoundError(2, "No such file or directory")

    found = checks(Host(root=tmp_path, installed=lambda name: None, free_bytes=gone))
    assert next(each for each in found if each.name == "disk").found == "unknown (No such file or directory)"


READ = sorted({name for machine in MACHINES.values() for name in machine.files if not name.startswith("dev/")})
WORDS = (
    "R36 (release), REVISION: ",
    "pmode:",
    "< POWER_MODEL ID=",
    " NAME=",
    ">",
    "MemTotal: ",
    " kB",
    "MemAvailable: ",
)
JUNK = st.one_of(
    st.binary(max_size=80),
    st.lists(st.sampled_from([*WORDS, "9" * 5000, "1.2.3", "\n", "[" * 5000, "٣", "NVIDIA Orin"])).map(
        lambda parts: "".join(parts).encode()
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.dictionaries(st.sampled_from(READ), JUNK, min_size=1), board=JUNK)
def test_whatever_the_files_hold_there_is_an_answer(tmp_path_factory, contents, board):
    root = tmp_path_factory.mktemp("root")
    for name, content in {**contents, "proc/device-tree/model": board}.items():
        write(root, name, content)
    for host in (Host(root=root, installed=lambda name: "?"), Host(root=root, installed=lambda name: None)):
        found = checks(host)
        assert {each.verdict for each in found} <= {"ok", "warning", "problem"}
        assert not any(re.search(r"[\x00-\x08\x1b\x7f]", each.found) for each in found)
