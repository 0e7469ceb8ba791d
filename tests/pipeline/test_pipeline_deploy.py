"""`bundle --to` over a real sshd on the loopback: a whole session, cut at each step, and what else goes wrong there."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from bundle_devices import ORIN_NANO, wheel
from ssh_device import ssh_device

import msn_deploy.pipeline.bundle as packing
from msn_deploy.cli.app import main
from msn_deploy.core.errors import GateError, InputError, MissingDependency, MissingDevice, size_text
from msn_deploy.pipeline.bundle import bundle
from msn_deploy.pipeline.deploy import check, deploy

STEPS = ("push", "verify", "install", "build", "eval", "bench", "fetch")


@pytest.fixture
def board(tmp_path):
    folder = tmp_path / "board"
    folder.mkdir()
    try:
        with ssh_device(folder) as found:
            yield found
    except RuntimeError as why:
        pytest.skip(str(why))


@pytest.fixture
def packed(run, tmp_path, monkeypatch):
    def one_wheel(folder, **_):
        wheel(folder, "msn_deploy")
        return list(folder.iterdir())

    monkeypatch.setattr(packing, "gather_wheels", one_wheel)
    return bundle(run, tmp_path / "orin.tar", target=ORIN_NANO)


@pytest.fixture
def go(board, packed, tmp_path):
    told = []

    def run_it(**options):
        told.clear()
        options = {"data": "digits", "report": tmp_path / "report", "ssh": board.ssh, **options}
        return deploy(packed, "orin", tell=told.append, **options)

    run_it.told = told
    return run_it


def left_on(board):
    folder = board.home / "msn-deploy"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_whole_session_and_once_more(go, board, packed, tmp_path):
    done = go()
    check(done)
    assert [(step.name, step.state) for step in done.steps] == [(name, "done") for name in STEPS]
    name = f"orin-{packed.digest[:12]}"
    assert (left_on(board), done.folder) == ([name], f"msn-deploy/{name}")
    assert {"bench.json", "bench.html", "net.eval.json", "MANIFEST.json", "device.txt"} <= {
        path.name for path in (tmp_path / "report").iterdir()
    }
    assert "build-engine: this line and the next" in go.told
    assert board.calls().count("build-engine") == 4
    (tmp_path / "report/of-before").touch()
    calls = board.calls()
    again = go()
    states = [step.state for step in again.steps]
    assert states == ["done before", "done", *["done before"] * 4, "done"]
    assert board.calls() == calls
    assert not (tmp_path / "report/of-before").exists()
    other = go(data="others")  # what came after that step comes again
    assert [step.state for step in other.steps[2:6]] == ["done before", "done before", "done", "done"]


@pytest.fixture
def command(board, packed, run, tmp_path, monkeypatch):
    """`bundle --to` as it is typed; the first `ssh` of PATH is one that knows the board."""
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin/ssh"
    ssh.write_text(f'#!/bin/sh\nexec {shlex.join(board.ssh)} "$@"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=":")
    monkeypatch.chdir(tmp_path)
    words = ["bundle", str(run), "--target", "orin-nano", "--out", str(packed.path), "--to", "orin", "--data", "digits"]
    return lambda *more: main([*words, *more])


def test_the_command_line_does_all_of_it_and_the_same_line_resumes(command, board, packed, capsys):
    board.next("./build.sh", "cut-output")
    assert command("--replicates", "2") == 3
    assert "the connection to orin ended" in capsys.readouterr().err
    assert command("--replicates", "2", "--json", "done.json") == 0
    told = capsys.readouterr()
    done = json.loads(Path("done.json").read_text())
    states = {step["name"]: step["state"] for step in done["steps"]}
    assert states.pop("build").startswith("done")  # it went on there while nobody listened
    assert states == {
        "push": "done before",
        "verify": "done",
        "install": "done before",
        **dict.fromkeys(STEPS[4:], "done"),
    }
    assert (packed.path.with_name("orin-report") / "bench.json").is_file()  # next to the tarball
    assert "eval: this line and the next" in told.err
    calls = (board.home / "calls").read_text().splitlines()
    builds = [line for line in calls if line.startswith("build-engine")]
    assert [len(builds), *("--replicates 2" in line for line in builds)] == [4, True, True, True, True]
    assert [line.split()[3] for line in calls if line.startswith("eval ")] == ["digits"] * 8  # both of each model


def test_the_command_line_ends_with_the_exit_code_of_the_step_that_failed(command, board, packed, capsys):
    msn = board.root / "usr/bin/msn-deploy"
    msn.write_text(msn.read_text().replace("last=\n", 'case "$*" in bench*) exit 4 ;; esac\nlast=\n', 1))
    assert command("--report", "elsewhere") == 4
    told = capsys.readouterr()
    assert "bench    failed (exit code 4)" in told.out
    assert told.err.count("bench ended with exit code 4 on orin") == 1
    assert Path("elsewhere/net.eval.json").is_file()  # what could be measured
    assert not packed.path.with_name("orin-report").exists()


@pytest.mark.parametrize("option", [("--data", "digits"), ("--replicates", "2"), ("--report", "r")])
def test_what_is_for_the_device_alone_needs_one(run, tmp_path, capsys, option):
    assert main(["bundle", str(run), "--target", "orin-nano", "--out", str(tmp_path / "orin.tar"), *option]) == 2
    assert f"`{option[0]}` goes with `--to" in capsys.readouterr().err
    assert not (tmp_path / "orin.tar").exists()


CUTS = (
    ("mkdir -p", "cut-output", []),
    ("cat >>", "cut-input", ["part"]),
    ("sha256sum <", "cut-output", None),
    ("./install.sh", "cut-output", None),
    ("./build.sh", "cut-output", None),
    ("./eval.sh", "cut-output", None),
    ("./bench.sh", "cut-output", None),
    ("tar cf -", "cut-output", None),
)


@pytest.mark.slow
def test_each_cut_connection_is_told_and_the_next_call_goes_on(go, board, packed, tmp_path):
    for pattern, how, left in CUTS:
        board.next(pattern, how)
        with pytest.raises(MissingDevice, match=r"the connection to orin ended.*\n.*it resumes here"):
            go()
        assert not (board.folder / "pattern").exists(), pattern
        assert not (tmp_path / "report").exists(), pattern
        if left is not None:
            assert [name.rpartition(".")[2] for name in left_on(board)] == left
        if how == "cut-input":
            (part,) = (board.home / "msn-deploy").iterdir()
            assert 0 < part.stat().st_size < packed.bytes
            rest = f"push: {size_text(packed.bytes - part.stat().st_size)} to orin:"
        elif pattern.startswith("sha256sum"):
            assert go.told[0].startswith(rest)  # and no more
    done = go()
    check(done)
    assert left_on(board) == [done.folder.removeprefix("msn-deploy/")]
    assert board.calls().count("build-engine") == 4  # never twice, and never at the same time
    assert (board.calls().count("eval"), board.calls().count("bench")) == (4, 1)


def test_what_was_changed_on_the_way_is_removed(go, board):
    board.next("cat >>", "flip")
    with pytest.raises(GateError, match="what arrived on orin is not what was sent"):
        go()
    assert (left_on(board), board.calls()) == ([], [])
    check(go())


@pytest.mark.parametrize("hidden", [False, True])
def test_what_was_changed_there_is_not_run(go, board, hidden):
    """Also where the check there was changed to say that all is well."""
    folder = board.home / go().folder
    (folder / "models/net.onnx").write_bytes(b"other")
    if hidden:
        (folder / "verify").write_text("#!/bin/sh\necho 30 files are as packed.\n")
    calls = board.calls()
    with pytest.raises(GateError, match=r"changed: models/net\.onnx.*\n.*rm -r msn-deploy/orin-"):
        go()
    assert board.calls() == calls


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_a_full_disk_leaves_nothing(go, board, packed, told):
    """Where `df` says so nothing is pushed; else the file system ends the push."""
    size = packed.bytes * 3 // 4 if not told else packed.bytes * 3 // 2
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", board.home], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small file system")
    try:
        if not told:
            (board.root / "bin/df").write_text("#!/bin/sh\necho unknown\n")
        with pytest.raises(InputError, match=r"bundle needs" if told else r"No space left on device"):
            go()
        assert (left_on(board), board.calls()) == ([], [])
    finally:
        subprocess.run(["umount", board.home], check=True)
    check(go())


@pytest.mark.slow
def test_a_step_that_fails_is_told_and_the_report_comes_all_the_same(go, board):
    msn = board.root / "usr/bin/msn-deploy"
    text = msn.read_text()
    fails = 'case "$*" in *int8*build*|build*int8*) exit 2 ;; bench*) exit 4 ;; esac'
    msn.write_text(text.replace("last=\n", f"if [ -f /root/fails ]; then {fails}; fi\nlast=\n", 1))
    (board.home / "fails").touch()
    done = go()
    assert {step.name: (step.state, step.code) for step in done.steps if step.state != "done"} == {
        "build": ("failed", 2),
        "bench": ("failed", 4),
    }
    assert (done.report / "net.eval.json").exists()
    with pytest.raises(InputError, match="build ended with exit code 2 on orin"):
        check(done)
    (board.home / "fails").unlink()
    again = go()
    check(again)  # what failed is done again
    assert [step.state for step in again.steps[2:6]] == ["done before", "done", "done", "done"]


def test_without_python_trtexec_does_it_and_nothing_is_evaluated(go, board):
    (board.root / "usr/bin/python3").unlink()
    done = go()
    check(done)
    assert [step.state for step in done.steps] == ["done", "done", "done", "done", "left out", "done", "done"]
    assert (done.report / "net.log").exists()


def test_a_step_that_still_runs_is_waited_for_and_not_begun_twice(unpacked):
    """Whoever asked first may be gone, as after a cut connection."""
    (unpacked / "work").write_text(
        "echo begun\nwhile [ ! -f go ]; do sleep 0.02; done\necho once >>count\necho ended\n"
    )
    words = [unpacked / "step", "build", "sh", "./work"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "begun\n"
        first.kill()
    other = subprocess.run([unpacked / "step", "bench", "true"], capture_output=True, text=True, timeout=60)
    assert (other.returncode, "build still runs" in other.stderr) == (3, True)
    other = subprocess.run([*words, "--other"], capture_output=True, text=True, timeout=60)
    assert (other.returncode, "as: sh ./work" in other.stderr) == (3, True)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as second:
        assert second.stdout.readline() == "begun\n"
        (unpacked / "go").touch()
        assert second.stdout.read() == "ended\n"
    assert second.returncode == 0
    assert (unpacked / "count").read_text() == "once\n"


def test_no_connection_and_no_ssh(go, tmp_path):
    with pytest.raises(MissingDevice, match=r"no connection to orin: .*\nTry: ssh orin"):
        go(ssh=("ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "HostName=127.0.0.1", "-p", "9"))
    with pytest.raises(MissingDependency, match="sudo apt install openssh-client"):
        go(ssh=(str(tmp_path / "gone"),))


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_is_no_report_is_never_replaced(packed, tmp_path, is_folder):
    place = tmp_path / "runs"
    if is_folder:
        place.mkdir()
        (place / "net.safetensors").write_bytes(b"weights")
    else:
        place.write_text("notes")
    with pytest.raises(InputError, match="is not the report of a bundle"):
        deploy(packed, "orin", report=place, ssh=["/nowhere/ssh"])
    assert place.is_dir() == is_folder
    assert not is_folder or (place / "net.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("to", ["-oProxyCommand=touch x", "", "a b"])
def test_what_is_no_device(packed, tmp_path, to):
    with pytest.raises(InputError, match="is not a device"):
        deploy(packed, to, report=tmp_path / "report", ssh=("false",))


def test_a_tarball_is_packed_once(run, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "gather_wheels", lambda *_, **__: pytest.fail("asked for the wheels again"))
    kept = bundle(run, packed.path, target=ORIN_NANO, keep=True)
    assert kept == packed
    other = shutil.copytree(run, tmp_path / "other")
    Path(other / "twin/net_bn.onnx").unlink()
    Path(other / "twin/net_bn.onnx.json").unlink()
    with pytest.raises(pytest.fail.Exception, match="asked for the wheels again"):
        bundle(other, packed.path, target=ORIN_NANO, keep=True)
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "numpy")
    with pytest.raises(pytest.fail.Exception, match="asked for the wheels again"):  # other wheels
        bundle(run, packed.path, target=ORIN_NANO, wheels=tmp_path / "wheels", keep=True)
