"""No command looks a name up or connects to anything outside of the machine, seen from the kernel's side."""

import re
import shutil
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]
# Sockets of the machine itself; a look-up of a name connects to port 53 over AF_INET.
_LOCAL = ("AF_UNIX", "AF_NETLINK", "AF_UNSPEC")


@pytest.fixture
def outgoing(process_env, tmp_path):
    """Run Python under strace, as outside of CI, and return each system call that leaves the machine."""

    def run(*args, env=()):
        log = tmp_path / "strace.txt"
        tracing = ("strace", "-f", "-qq", "-s", "256", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", log)
        outside = {key: value for key, value in process_env.items() if key not in ("CI", "GITHUB_ACTIONS")}
        done = subprocess.run(
            [*map(str, tracing), sys.executable, *map(str, args)],
            env={**outside, "HOME": str(tmp_path / "home"), **dict(env)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if "ptrace" in done.stderr and not log.exists():
            pytest.skip("strace may not trace here")
        assert done.returncode == 0, done.stderr
        addressed = [line for line in log.read_text().splitlines() if "sa_family=" in line]
        local = re.compile(rf"sa_family=({'|'.join(_LOCAL)})\b")
        return [line for line in addressed if not local.search(line)]

    return run


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket().connect_ex(('127.0.0.1', 9))",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "import socket, contextlib\nwith contextlib.suppress(OSError): socket.getaddrinfo('example.invalid', 80)",
    ],
    ids=["connect", "send", "look-up"],
)
def test_what_leaves_the_machine_is_seen(outgoing, code):
    assert outgoing("-c", code)


@pytest.mark.parametrize("verb", ["export", "calibrate", "bench", "eval", "infer"])
def test_nothing_leaves_the_machine(outgoing, whole_run, digit_images, tmp_path, verb):
    onnx = whole_run / "cnn3_msn.onnx"
    line = {
        "export": (whole_run / "cnn3_msn.safetensors", "--out", tmp_path / "x.onnx"),
        "calibrate": (onnx, "--samples", 32, "--out", tmp_path / "x.int8.onnx"),
        "bench": (onnx, "--seconds", 0.5, "--threads", 1),
        "eval": (onnx, "--threads", 1),
        "infer": (onnx, *digit_images[:2]),
    }[verb]
    assert outgoing("-m", "msn_deploy", verb, *line) == []
    left = [path.name for path in (tmp_path / "home").rglob("*")]
    assert not [name for name in left if "onnxruntime" in name]  # where its telemetry waits to be sent
