"""The README cannot rot: its generated blocks equal the committed results, and every command in it runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks_of(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands_of(language):
    return [line[2:] for block in blocks_of(language) for line in block.splitlines() if line.startswith("$ ")]


def run(command, cwd):
    """Run one line of the README with this interpreter in place of `python` and of the console script."""
    words = shlex.split(command)
    program = {"msn-deploy": [sys.executable, "-m", "msn_deploy"], "python": [sys.executable]}[words[0]]
    return subprocess.run(
        [*program, *words[1:]], cwd=cwd, capture_output=True, text=True, timeout=300, env=environment(), check=False
    )


def environment():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder as the reader has it: my_net.py from the README, and my_images with real images of two classes."""
    from PIL import Image

    from msn_deploy.data import load_split

    folder = tmp_path_factory.mktemp("desk")
    for block in blocks_of("python"):
        (folder / block.split()[1]).write_text(block, encoding="utf-8")
    split = load_split("digits", "train", height_px=28, width_px=28, channels=1)
    for name, label in (("cat", 0), ("dog", 1)):
        (folder / "my_images" / name).mkdir(parents=True)
        chosen = split.images[split.labels == label][:60]
        for at, image in enumerate(chosen):
            Image.fromarray(image[..., 0]).save(folder / "my_images" / name / f"{at}.png")
    return folder


@pytest.fixture(scope="module")
def commands(desk):
    """Every command of the console with what came of it, run on the desk in the README's order."""
    return [(command, run(command, desk)) for command in commands_of("console")]


def test_every_console_command_runs(desk, commands):
    assert len(commands) >= 12
    for command, done in commands:
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    for name in ("runs/vgg7_msn.int8.engine", "runs/report.html", "runs/accuracy.json", "my_net.fp16.engine"):
        assert (desk / name).stat().st_size > 0


def test_msn_in_your_own_network_is_twenty_lines_that_run(desk):
    lines = [line for line in (desk / "fine_tune.py").read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 21  # with the name of the file
    done = run("python fine_tune.py", desk)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{'0': 'MSNConv2d', '4': 'MSNConv2d'} {} Sequential")
    plain = done.stdout.partition("Sequential")[2]
    assert "Norm" not in plain
    assert "MSN" not in plain


@pytest.mark.usefixtures("commands")
def test_the_jetson_command_says_what_the_readme_shows(desk):
    (shown,) = [block for block in blocks_of("text") if "--target orin-nano" in block]
    command, *text = shown.splitlines()
    done = run(command.removeprefix("$ "), desk)
    assert done.returncode == 0, done.stderr
    said = [line.rstrip() for line in done.stdout.strip().splitlines()]
    # What another builder makes of the network differs from release to release of it.
    assert [line for line in said if "checked" not in line] == [line for line in text if "checked" not in line]
    assert sum("checked" in line for line in text) == 1


def test_the_commands_for_a_jetson_use_options_that_exist():
    page = (ROOT / "docs" / "on-a-jetson.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith(("msn ", "msn-deploy "))]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)[1:]
        help_text = run(f"msn-deploy {words[0]} --help", ROOT).stdout
        for option in (word for word in words if word.startswith("--")):
            assert option in help_text, f"{line}: no {option}"


def test_generated_blocks_equal_the_committed_results():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert "docs/pipeline.svg" in targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target
