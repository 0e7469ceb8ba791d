"""What was added, changed or exchanged in a bundle is found before anything of it runs: packed, unpacked, installed."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from bundle_devices import ORIN_NANO, built, calls, device, home_of, installed, look_below, sh

from msn_deploy.cli.app import main
from msn_deploy.core.artifacts import unpack
from msn_deploy.pipeline.bundle import bundle

TOOLS = ("awk", "cat", "dirname", "find", "id", "readlink", "sha256sum")
MORE_TOOLS = ("basename", "cp", "grep", "head", "ls", "mkdir", "mv", "rm", "sed", "tail", "tr", "uname")
SCRIPTS = ("install.sh", "build.sh", "bench.sh", "eval.sh")


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory):
    """A bundle that was unpacked once, to be copied."""
    folder = tmp_path_factory.mktemp("packed")
    report = bundle(run, folder / "b.tar", target=ORIN_NANO, with_wheels=False)
    with tarfile.open(report.path) as archive:
        unpack(archive, folder)
    return report


@pytest.fixture
def unpacked(packed, tmp_path) -> Path:
    return shutil.copytree(packed.path.with_suffix(""), tmp_path / "b")


@pytest.fixture(scope="module")
def made(packed, tmp_path_factory):
    """A bundle with an environment and two engines, made where it lies, and a copy to begin anew from."""
    place = tmp_path_factory.mktemp("made")
    folder = shutil.copytree(packed.path.with_suffix(""), place / "here/b")
    look_below(folder, device(place / "here/root"))
    installed(folder, f'echo "$@" >>{place}/here/root/calls\n')
    (folder / ".venv/lib/deep").mkdir(parents=True)
    (folder / ".venv/lib/deep/module (1).py").write_text("pass\n")
    (folder / ".venv/bin/python3").symlink_to("python")
    (folder / ".venv/lib64").symlink_to("lib")
    assert sh(folder / "verify", "--made", ".venv").returncode == 0
    built(folder, "net.int8")
    built(folder, "net_bn", content="another plan")
    done = sh(folder / "verify")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "7 as they were made here" in done.stdout
    shutil.copytree(place / "here", place / "before", symlinks=True)
    return place


@pytest.fixture
def used(made) -> Path:
    """The bundle with what was made in it, on a device whose folder is next to it."""
    shutil.rmtree(made / "here")
    return shutil.copytree(made / "before", made / "here", symlinks=True) / "b"


def test_verify_accepts_what_was_packed_and_the_digest_it_printed(unpacked, packed):
    done = sh(unpacked / "verify", packed.digest)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{packed.files - 1} files are as packed." in done.stdout
    wrong = sh(unpacked / "verify", "0" * 64)
    assert wrong.returncode == 1
    assert "changed: SHA256SUMS" in wrong.stderr


def add(name, content="touch ../ran\n"):
    def change(folder):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + os.fsencode(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)

    return change


def link(name, to):
    def change(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(to)

    return change


def elsewhere(name, back):
    """The same content, in a place where it can be changed after the check."""

    def change(folder):
        (folder / name).rename(folder.parent / "elsewhere")
        back(folder.parent / "elsewhere", folder / name)

    return change


def write(name, old, new):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


def sums_of_all(folder):
    """SHA256SUMS as it would be, had all that lies there been packed."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(line for line in lines if not line.endswith("  SHA256SUMS\n")))


def both(*changes):
    return lambda folder: [change(folder) for change in changes]


def exchange(one, other):
    def change(folder):
        (folder / one).rename(folder / "third")
        (folder / other).rename(folder / one)
        (folder / "third").rename(folder / other)

    return change


def span_two_lines(folder):
    """In a list of names a line each, this one looks like two that were packed."""
    (folder / "models/net.onnx\n.").mkdir()
    (folder / "models/net.onnx\n./verify").write_text("")


def outside(line):
    """SHA256SUMS speaks of more than a bundle can hold."""
    empty = hashlib.sha256(b"").hexdigest()
    return lambda folder: (folder / "SHA256SUMS").write_text((folder / "SHA256SUMS").read_text() + empty + line)


def replace_by(make, name="models/net.onnx"):
    def change(folder):
        (folder / name).unlink()
        make(folder / name)

    return change


CHANGES = {
    "a model": (add("models/evil.onnx"), "unknown: models/evil.onnx"),
    "a wheel": (add("wheels/numpy-99.0-py3-none-any.whl"), "unknown: wheels/numpy-99.0-py3-none-any.whl"),
    "a script": (add("activate"), "unknown: activate"),
    "a hidden file": (add("models/.hidden"), "unknown: models/.hidden"),
    "a leading dash": (add("-rf"), "unknown: -rf"),
    "a name that find could take for its own": (add("models/-exec"), "unknown: models/-exec"),
    "a glob of another": (add("models/net.onn[x]"), "an odd name: models/net.onn[x]"),
    "a star": (add("models/*"), "an odd name: models/*"),
    "a blank at the end": (add("models/net.onnx "), "an odd name: models/net.onnx "),
    "a blank at the start": (add(" verify"), "an odd name:  verify"),
    "a backslash": (add("models\\net.onnx"), "an odd name: models\\net.onnx"),
    "a line break": (add("models/net.onnx\nmodels.list"), "an odd name: models/net.onnx"),
    "two lines": (span_two_lines, "an odd name: models/net.onnx"),
    "an escape": (add("models/\x1b[2Jnet.onnx"), "an odd name: models/?[2Jnet.onnx"),
    "not text": (add(b"models/\xff\xfe.onnx"), "an odd name: models/??.onnx"),
    "an odd folder": (lambda folder: (folder / "mod els").mkdir(), "an odd name: mod els"),
    "a link to a wheel elsewhere": (link("wheels/evil-1-py3-none-any.whl", "/dev/null"), "a link: wheels/evil-1-py3"),
    "a link to nowhere": (link("models/gone", "/nonexistent"), "a link: models/gone"),
    "a link to a folder": (link("wheels", "/tmp"), "a link: wheels"),
    "a pipe": (lambda folder: os.mkfifo(folder / "models/pipe"), "not a plain file: models/pipe"),
    "an environment": (both(add(".venv/bin/msn-deploy"), add(".venv/installed")), "unknown: .venv, which"),
    "a link to an environment": (link(".venv", "../b"), "unknown: .venv, which"),
    "an engine": (add("engines/net.int8.engine"), "unknown: engines, which"),
    "a link to engines": (link("engines", "/nonexistent"), "unknown: engines, which"),
    "a report": (add("report/bench.json"), "unknown: report, which"),
    "a link in place of a report": (link("report", ".."), "unknown: report, which"),
    "steps that are done": (add("steps/install.code", "0\n"), "unknown: steps, which"),
    "a byte": (write("models/twin/net_bn.onnx.json", "b", "c"), "changed: models/twin/net_bn.onnx.json"),
    "a script that all read": (write("common.sh", "\n", "\ntouch ../ran\n"), "changed: common.sh"),
    "options": (write("options.sh", "\n", "\ntouch ../ran\n"), "changed: options.sh"),
    "which device it is for": (write("bundle.env", "\n", "\ntouch ../ran\n"), "changed: bundle.env"),
    "half a file": (lambda folder: os.truncate(folder / "models/net.onnx", 9), "changed: models/net.onnx"),
    "two models for each other": (exchange("models/net.onnx", "models/net.fp16.onnx"), "changed: models/net.fp16.onnx"),
    "a link to the same bytes": (elsewhere("models/net.onnx", lambda to, at: at.symlink_to(to)), "a link: models/net."),
    "a hard link": (elsewhere("models/net.onnx", lambda to, at: os.link(to, at)), "second name elsewhere: models/net."),
    "a link to the same folder": (elsewhere("models/twin", lambda to, at: at.symlink_to(to)), "a link: models/twin"),
    "a folder for a file": (replace_by(Path.mkdir), "missing: models/net.onnx"),
    "a pipe for a file": (replace_by(os.mkfifo), "not a plain file: models/net.onnx"),
    "a missing file": (lambda folder: (folder / "models/net.timing").unlink(), "missing: models/net.timing"),
    "a missing folder": (lambda folder: shutil.rmtree(folder / "models/twin"), "missing: models/twin/net_bn.onnx"),
    "no list": (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS is not here"),
    "a list elsewhere": (elsewhere("SHA256SUMS", lambda to, at: at.symlink_to(to)), "SHA256SUMS is not here"),
    "a pipe as list": (replace_by(os.mkfifo, "SHA256SUMS"), "SHA256SUMS is not here"),
    "an empty list": (lambda folder: (folder / "SHA256SUMS").write_text(""), "SHA256SUMS names no files"),
    "half a list": (lambda folder: os.truncate(folder / "SHA256SUMS", 700), "SHA256SUMS, line"),
    "a list of what lies above": (outside("  ../elsewhere\n"), "changed: SHA256SUMS, line"),
    "a list of what lies anywhere": (outside("  /dev/null\n"), "changed: SHA256SUMS, line"),
    "a list that allows an environment": (
        both(add(".venv/bin/msn-deploy", ""), outside("  .venv/bin/msn-deploy\n")),
        "unknown: .venv, which",
    ),
    "a list that allows an engine": (
        both(add("engines/net.int8.engine", ""), outside("  engines/net.int8.engine\n")),
        "unknown: engines, which",
    ),
    "a list that names a file twice": (outside("  verify\n"), "changed: SHA256SUMS, line"),
    "a list with another ending": (outside(" *verify\n"), "changed: SHA256SUMS, line"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_change_of_an_unpacked_bundle_is_named_and_nothing_of_it_runs(unpacked, tmp_path, what):
    root = device(tmp_path / "root")
    look_below(unpacked, root)
    change, says = CHANGES[what]
    change(unpacked)
    done = sh(unpacked / "build.sh")
    if "changed: verify." in done.stderr:  # by the list that it looks into first
        assert done.returncode == 1
        done = sh(unpacked / "verify")
    assert (done.returncode, says in done.stderr) == (1, True), done
    assert all(line.isascii() and line.isprintable() for line in done.stderr.splitlines())
    assert calls(root) == []
    assert not list(tmp_path.rglob("ran"))
    assert not (home_of(unpacked) / "bundles").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_refuses_before_it_reads_what_was_changed(unpacked, tmp_path, script):
    write("common.sh", "\n", "\ntouch ../ran\n")(unpacked)
    done = sh(unpacked / script, "digits")
    assert (done.returncode, "changed: common.sh" in done.stderr) == (1, True), done
    (unpacked / "verify").write_text("#!/bin/sh\ntouch ran\n")
    done = sh(unpacked / script, "digits")
    assert (done.returncode, "changed: verify" in done.stderr) == (1, True), done
    for name in ("verify", "SHA256SUMS"):
        shutil.copytree(unpacked, tmp_path / name)
        replace_by(os.mkfifo, name)(tmp_path / name)
        assert sh(tmp_path / name / script, "digits").returncode == 1
    assert not list(tmp_path.rglob("ran"))


def test_a_list_that_fits_the_change_is_told_by_the_digest(unpacked, packed):
    """And once the digest was given, without it as well."""
    assert sh(unpacked / "verify", packed.digest).returncode == 0
    write("common.sh", "\n", "\ntouch ../ran\n")(unpacked)
    sums_of_all(unpacked)
    for done in (sh(unpacked / "verify", packed.digest), sh(unpacked / "verify"), sh(unpacked / "build.sh")):
        assert (done.returncode, "changed: SHA256SUMS (" in done.stderr) == (1, True), done
    assert not (unpacked.parent / "ran").exists()


def test_another_bundle_in_the_same_place_finds_nothing_of_the_first_installed(used):
    """Its engines are of other models, even where their names are the same."""
    write("README.txt", "For", "Still for")(used)
    sums_of_all_packed(used)
    digest = hashlib.sha256((used / "SHA256SUMS").read_bytes()).hexdigest()
    assert sh(used / "verify").returncode == 1
    done = sh(used / "verify", digest)
    assert (done.returncode, done.stderr.count("which was not made here")) == (1, 2), done
    for place in (".venv", "engines"):
        shutil.rmtree(used / place)
    assert sh(used / "verify", digest).returncode == 0
    assert sh(used / "verify").returncode == 0


def sums_of_all_packed(folder):
    lines = [line.split() for line in (folder / "SHA256SUMS").read_text().splitlines()]
    digests = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for _, name in lines]
    (folder / "SHA256SUMS").write_text("".join(digests))


CHANGES_OF_WHAT_WAS_MADE = {
    "the command": (write(".venv/bin/msn-deploy", "\n", "\ntouch ../ran\n"), "changed: .venv/bin/msn-deploy"),
    "a module": (write(".venv/lib/deep/module (1).py", "pass", "evil"), "changed: .venv/lib/deep/module (1).py"),
    "a module more": (add(".venv/lib/deep/evil.py"), "unknown: .venv/lib/deep/evil.py"),
    "a compiled one": (add(".venv/lib/deep/__pycache__/x.pyc"), "unknown: .venv/lib/deep/__pycache__/x.pyc"),
    "the interpreter": (replace_by(lambda at: at.symlink_to("/bin/sh"), ".venv/bin/python3"), ".venv/bin/python3@"),
    "a link to the same module": (
        elsewhere(".venv/lib/deep/module (1).py", lambda to, at: at.symlink_to(to)),
        "unknown: .venv/lib/deep/module (1).py@",
    ),
    "a folder elsewhere": (elsewhere(".venv/lib", lambda to, at: at.symlink_to(to)), "unknown: .venv/lib@"),
    "all of it elsewhere": (elsewhere(".venv", lambda to, at: at.symlink_to(to)), "unknown: .venv, which"),
    "a missing module": (lambda folder: (folder / ".venv/lib/deep/module (1).py").unlink(), "missing: .venv/lib/deep"),
    "a line break": (add(".venv/lib/a\nb"), "what no installation makes"),
    "a pipe": (lambda folder: os.mkfifo(folder / ".venv/lib/pipe"), "what no installation makes"),
    "an engine": (lambda folder: (folder / "engines/net_bn.engine").write_text("e"), "changed: engines/net_bn.engine"),
    "an engine more": (add("engines/net.fp16.engine"), "unknown: engines/net.fp16.engine"),
    "a library": (add("engines/plugin.so"), "unknown: engines/plugin.so"),
    "a link to an engine": (
        elsewhere("engines/net_bn.engine", lambda to, at: at.symlink_to(to)),
        "a link: engines/net_bn.engine",
    ),
    "two engines": (exchange("engines/net_bn.engine", "engines/net.int8.engine"), "changed: engines/net.int8"),
    "a missing engine": (lambda folder: (folder / "engines/net_bn.engine").unlink(), "missing: engines/net_bn.engine"),
    "all engines elsewhere": (elsewhere("engines", lambda to, at: at.symlink_to(to)), "unknown: engines, which"),
}


@pytest.mark.parametrize("what", CHANGES_OF_WHAT_WAS_MADE)
def test_each_change_of_what_was_made_here_is_named_and_nothing_of_it_runs(used, what):
    change, says = CHANGES_OF_WHAT_WAS_MADE[what]
    change(used)
    for script in ("bench.sh", "eval.sh"):
        done = sh(used / script, "digits")
        assert (done.returncode, says in done.stderr) == (1, True), done
    assert calls(used.parent / "root") == []
    assert not list(used.parent.rglob("ran"))


def test_what_was_made_elsewhere_does_not_count(used, tmp_path):
    """A folder that is copied with all that was made in it, and the same folder for another user."""
    copy = shutil.copytree(used, tmp_path / "copy", symlinks=True)
    assert sh(copy / "verify").stderr.count("which was not made here") == 2
    home_of(used).rename(tmp_path / "home-of-another")
    assert sh(used / "verify").stderr.count("which was not made here") == 2


def test_an_engine_that_build_sh_did_not_finish_is_not_run(used):
    """As after a power cut; the next call builds it again."""
    assert sh(used / "verify", "--begin", "engines").returncode == 0
    (used / "engines/net_bn.engine").write_text("half")
    (used / "engines/net.engine.partial").write_text("half")
    for script in ("bench.sh", "eval.sh"):
        done = sh(used / script, "digits")
        assert (done.returncode, "./build.sh" in done.stderr) == (3, True), done
    assert calls(used.parent / "root") == []
    shutil.rmtree(used / ".venv")
    assert sh(used / "verify", "--begin", ".venv").returncode == 0
    done = sh(used / "build.sh", "int8")
    assert (done.returncode, "unknown: engines/net_bn.engine" in done.stderr) == (1, True), done
    assert not (used / "engines/net.engine.partial").exists()
    done = sh(used / "build.sh")
    assert done.returncode == 0, done
    assert sh(used / "verify").returncode == 0


@pytest.mark.parametrize("spoil", ["link", "mode", "folder", "owner", "folder elsewhere"])
def test_a_record_that_another_user_may_have_written_says_nothing(used, tmp_path, spoil):
    (record,) = (home_of(used) / "bundles").iterdir()
    if spoil == "link":
        record.rename(tmp_path / "record")
        record.symlink_to(tmp_path / "record")
    elif spoil == "folder elsewhere":
        record.parent.rename(tmp_path / "bundles")
        record.parent.symlink_to(tmp_path / "bundles")
    elif spoil == "owner":
        if os.geteuid() != 0:
            pytest.skip("only root gives files away")
        os.chown(record, 4321, 4321)
    else:
        (record if spoil == "mode" else record.parent).chmod(0o777)
    done = sh(used / "verify")
    assert (done.returncode, "another user" in done.stderr) == (2, True), done
    assert sh(used / "bench.sh").returncode == 2
    assert calls(used.parent / "root") == []


def tools(folder: Path, *names: str) -> str:
    """Return a PATH with these programs alone."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


@pytest.mark.parametrize("tool", TOOLS)
def test_without_one_of_its_tools_verify_fails(unpacked, tmp_path, tool):
    path = tools(tmp_path / "tools", *(set(TOOLS) - {tool}))
    done = sh(unpacked / "verify", shell=[shutil.which("sh")], path=path)
    assert (done.returncode, tool in done.stderr) == (3, True), done


@pytest.mark.parametrize("tool", ["awk", "find", "sha256sum"])
@pytest.mark.parametrize("code", [0, 1])
def test_with_a_tool_that_says_nothing_verify_fails(unpacked, tmp_path, tool, code):
    path = tools(tmp_path / "tools", *(set(TOOLS) - {tool}))
    Path(path, tool).write_text(f"#!/bin/sh\nexit {code}\n")
    Path(path, tool).chmod(0o755)
    assert sh(unpacked / "verify", shell=[shutil.which("sh")], path=path).returncode != 0


@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh"])
def test_every_shell_and_the_tools_of_busybox_find_the_same(used, tmp_path, shell):
    """busybox has tools of its own for all that verify calls."""
    busybox = shutil.which("busybox")
    words = [shutil.which(word) or word for word in shell.split()[:1]] + shell.split()[1:]
    if busybox is None or not words[0].startswith("/"):
        pytest.skip(f"no busybox or no {shell} here")
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in (*TOOLS, *MORE_TOOLS, "sh"):
        (folder / name).symlink_to(busybox)
    told = []
    for path in ("", str(folder)):
        assert sh(used / "verify", shell=words, path=path).returncode == 0
    for what in ("a pipe", "an escape", "a glob of another", "a hidden file", "a hard link", "a byte"):
        change, says = CHANGES[what]
        change(used)
        told.append(says)
    for change, says in (CHANGES_OF_WHAT_WAS_MADE[what] for what in ("a module", "an engine more", "the interpreter")):
        change(used)
        told.append(says)
    here = [sh(used / "verify", shell=words, path=path) for path in ("", str(folder))]
    assert [done.returncode for done in here] == [1, 1]
    assert sorted(here[0].stderr.splitlines()) == sorted(here[1].stderr.splitlines())
    assert all(says in here[0].stderr for says in told), here[0]


def test_many_findings_are_counted(used):
    for at in range(50):
        (used / f"models/{at}").touch()
    lines = sh(used / "verify").stderr.splitlines()
    assert (len(lines), lines[-3]) == (23, "and 30 more")
    assert lines[-2].endswith("in 50 places.")


PACKED_CHANGES = {
    "a byte": lambda raw: raw[:-2000] + bytes([raw[-2000] ^ 1]) + raw[-1999:],
    "a byte at the start": lambda raw: bytes([raw[0] ^ 1]) + raw[1:],
    "the mode of a file": lambda raw: raw.replace(b"0000755", b"0000644", 1),
    "half of it": lambda raw: raw[: len(raw) // 2],
    "more behind its end": lambda raw: raw + b"\0",
    "a name": lambda raw: raw.replace(b"b/verify", b"b/verifz", 1),
    "a file more": "add",
    "a file twice": "again",
    "a link": "link",
    "a place that leads out": "out",
    "another order": "order",
    "nothing left": lambda raw: b"",
}


@pytest.fixture(scope="module")
def told(run, tmp_path_factory):
    """The tarball as the command line makes it, and the lines it prints for the device."""
    folder = tmp_path_factory.mktemp("told")
    command = [str(word) for word in ("bundle", run, "--target", "orin-nano", "--no-wheels", "--out", folder / "b.tar")]
    with redirect_stdout(io.StringIO()) as out:
        assert main(command) == 0
    lines = out.getvalue().splitlines()
    (at,) = (number for number, line in enumerate(lines) if "sha256sum -c" in line)
    return (folder / "b.tar").read_bytes(), "\n".join(lines[at : at + 2]).strip().removesuffix("&&")


def test_the_printed_command_unpacks_and_verifies(told, tmp_path):
    content, line = told
    (tmp_path / "b.tar").write_bytes(content)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "files are as packed" in done.stdout) == (0, True), done


@pytest.mark.parametrize("what", PACKED_CHANGES)
def test_each_change_of_the_tarball_is_found_before_it_is_unpacked(told, tmp_path, what):
    content, line = told
    path = tmp_path / "b.tar"
    path.write_bytes(content)
    change = PACKED_CHANGES[what]
    if callable(change):
        path.write_bytes(change(content))
    elif change == "order":
        with tarfile.open(path) as archive:
            members = [(member, archive.extractfile(member).read()) for member in archive.getmembers()]
        with tarfile.open(path, "w") as archive:
            for member, raw in reversed(members):
                archive.addfile(member, io.BytesIO(raw))
    else:
        with tarfile.open(path, "a") as archive:
            names = {"add": "b/evil.sh", "again": "b/verify", "link": "b/wheels", "out": "b/../out"}
            entry = tarfile.TarInfo(names[change])
            if change == "link":
                entry.type, entry.linkname = tarfile.SYMTYPE, "/tmp"
            archive.addfile(entry)
    assert path.read_bytes() != content
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.tar"]
