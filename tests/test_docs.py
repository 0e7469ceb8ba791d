"""The README and docs/ cannot rot: commands run, links lead somewhere, what is generated is new, the site builds."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import pytest
from bench_results import contrast
from browser import BLENDED, Watched, a_browser, needs_chromium
from command_line import Outcome, call, one_thread

from msn_deploy.cli.app import COMMANDS

pytestmark = pytest.mark.slow
_ = a_browser  # a fixture

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SECTIONS = ("getting-started", "guides", "reference", "background", "results", "project")
PAGES = [
    ROOT / "README.md",
    *(page for section in SECTIONS for page in sorted((DOCS / section).glob("*.md"))),
    *sorted(DOCS.glob("*.md")),
]
_BLOCK = re.compile(r"((?:^[^\n]*\n)?)^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run: [a-z].{5,60} -->\n")


def blocks_of(page: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """Yield the line before each block of code, and the block."""
    for before, language, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield before, text


def run(command: str, cwd: Path) -> Outcome:
    """Run one line in this process: `msn-deploy ...`, `python FILE` or `python -c CODE`."""
    program, *words = shlex.split(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        if program == "msn-deploy":
            return call(*words)
        patch.syspath_prepend(str(cwd))
        known = set(sys.modules)
        source = words[1] if words[0] == "-c" else (cwd / words[0]).read_text(encoding="utf-8")
        out = io.StringIO()
        with one_thread(), contextlib.redirect_stdout(out):
            exec(compile(source, words[0], "exec", dont_inherit=True), {"__name__": "__main__"})
        for name in set(sys.modules) - known:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(cwd)):
                del sys.modules[name]
        return Outcome(code=0, out=out.getvalue(), err="")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the reader has it: the Python files of all pages, and my_images with real images of two classes."""
    from PIL import Image

    from msn_deploy.data import load_split

    folder = tmp_path_factory.mktemp("desk")
    for page in PAGES:
        for before, text in blocks_of(page, "python"):
            if not _NOT_RUN.fullmatch(before):
                (folder / text.split()[1]).write_text(text, encoding="utf-8")
    split = load_split("digits", "train", height_px=28, width_px=28, channels=1)
    for name, label in (("cat", 0), ("dog", 1)):
        (folder / "my_images" / name).mkdir(parents=True)
        chosen = split.images[split.labels == label][:60]
        for at, image in enumerate(chosen):
            Image.fromarray(image[..., 0]).save(folder / "my_images" / name / f"{at}.png")
    Image.fromarray(split.images[0][..., 0]).save(folder / "digit.png")
    return folder


@pytest.fixture(scope="module")
def commands(desk: Path, steady_clock: Callable[..., AbstractContextManager[None]]) -> list[tuple[str, Outcome]]:
    """Every command of a console block with what came of it, run on the desk in the order of the pages.

    Trainings take one epoch; what they say and write is that of all.
    """
    lines = [line[2:] for page in PAGES for _, text in blocks_of(page, "console") for line in text.splitlines()]
    with steady_clock(10):
        return [(line, run(re.sub(r"--epochs \d+", "--epochs 1", line), desk)) for line in lines]


def test_every_console_command_runs(desk: Path, commands: list[tuple[str, Any]]) -> None:
    assert len(commands) >= 12
    for command, done in commands:
        assert done.code == 0, f"{command}\n{done.out}\n{done.err}"
        assert "Traceback" not in done.err
    for name in ("runs/vgg7_msn.int8.engine", "runs/report.html", "my_net.fp16.engine"):
        assert (desk / name).stat().st_size > 0


@pytest.mark.usefixtures("commands")
def test_the_same_in_python(desk: Path) -> None:
    done = run("python chain.py", desk)
    assert done.code == 0, done.err
    assert done.out.strip()
    assert (desk / "net.int8.engine").stat().st_size > 0


def test_the_notebook_runs_from_its_first_cell_to_its_last(
    tmp_path: Path, steady_clock: Callable[..., AbstractContextManager[None]]
) -> None:
    book = json.loads((DOCS / "getting-started" / "notebook.ipynb").read_text(encoding="utf-8"))
    assert book["nbformat"] == 4
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in book["cells"] if cell["cell_type"] == "code")
    lasts = [cell.splitlines()[-1] for cell in cells]  # a notebook shows what stands there
    cells = [f"{cell}\nprint({last})" if last.isidentifier() else cell for cell, last in zip(cells, lasts, strict=True)]
    (tmp_path / "notebook.py").write_text("\n".join(cells), encoding="utf-8")
    with steady_clock():
        done = run("python notebook.py", tmp_path)
    assert done.code == 0, done.err
    for what in (
        "TrainResult(checkpoint=",
        "ExportReport(",
        "PrecisionReport(",
        "BenchResult(cnn3_msn=",
        "of 364 test images",
    ):
        assert what in done.out


def test_msn_in_your_own_network_is_twenty_lines_that_run(desk: Path) -> None:
    lines = [line for line in (desk / "fine_tune.py").read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 21  # with the name of the file
    done = run("python fine_tune.py", desk)
    assert done.code == 0, done.err
    assert done.out.startswith("{'0': 'MSNConv2d', '4': 'MSNConv2d'} {} Sequential")
    plain = done.out.partition("Sequential")[2]
    assert "Norm" not in plain
    assert "MSN" not in plain


def test_the_way_from_photos_to_an_application_is_short_and_its_program_is_right(
    desk: Path, commands: list[tuple[str, Any]]
) -> None:
    page = DOCS / "guides" / "photos.md"
    steps = [line for _, text in blocks_of(page, "console", "sh") for line in text.splitlines()]
    assert 0 < len(steps) <= 15
    (program,) = [text for _, text in blocks_of(page, "python")]
    assert len([line for line in program.splitlines() if line.strip()]) <= 21  # with the name of the file
    (done,) = [done for line, done in commands if line == "python photo_app.py"]
    first, told = done.out.splitlines()
    assert json.loads(first)["photo"] == "my_images/cat/0.png"
    right, total = map(int, re.findall(r"\d+", told))
    assert total == 120
    assert right > 90
    with tarfile.open(desk / "photos.tar") as archive:
        names = {each.name for each in archive}
    assert {"photos/build.sh", "photos/cpp/models/net.int8.json", "photos/deepstream/net.int8.txt"} <= names


@pytest.mark.usefixtures("commands")
def test_the_jetson_command_says_what_the_page_shows(desk: Path) -> None:
    (shown,) = [text for _, text in blocks_of(DOCS / "guides" / "engines.md", "text") if "--target orin-nano" in text]
    command, *text = shown.splitlines()
    done = run(command.removeprefix("$ "), desk)
    assert done.code == 0, done.err
    said = [line.rstrip() for line in done.out.strip().splitlines()]
    # What another builder makes of it differs from release to release, and its channels from training to training.
    assert [line for line in said if not re.search("checked|channels", line)] == [
        line for line in text if "checked" not in line
    ]
    assert sum("checked" in line for line in text) == 1


@cache
def options_of(command: str) -> set[str]:
    help_text = run(f"msn-deploy {command} --help", ROOT)
    assert help_text.code == 0, command
    return set(re.findall(r"--[a-z][a-z0-9-]*|(?<=\W)-[a-z]\b", help_text.out)) | {"--json"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_not_run_says_why_and_uses_options_that_exist(page: Path) -> None:
    for before, text in blocks_of(page, "sh"):
        assert _NOT_RUN.fullmatch(before), f"a block of `sh` needs a line `<!-- not run: WHY -->` before it:\n{text}"
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            for at, word in enumerate(words):
                command = words[at + 1] if at + 1 < len(words) else ""
                if word.rpartition("/")[2] in ("msn-deploy", "msn", "msn_deploy") and command in COMMANDS:
                    used = {each for each in words[at + 2 :] if re.fullmatch(r"-[a-z]|--[a-z][a-z0-9-]*", each)}
                    assert used <= options_of(command), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_within_a_sentence_use_options_that_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for command, rest in re.findall(rf"`(?:msn-deploy )?({'|'.join(COMMANDS)})( [^`]*)`", text):
        used = set(re.findall(r"(?<= )--[a-z][a-z0-9-]*", rest))
        assert used <= options_of(command), f"{command}{rest}"


def test_what_is_generated_is_new() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r"^::: ([\w.]+)$", text, flags=re.MULTILINE))


@pytest.mark.parametrize(
    "page",
    [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_file(), target
        if page.is_relative_to(DOCS):
            assert found.is_relative_to(DOCS), f"{target} is not on the site: name it as code"
        if anchor:
            assert anchor in _anchors(found), target


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 200
    first_screen = text[: text.index("## Quick start")]
    assert "None of this has run on a Jetson yet" in first_screen


def test_every_target_of_make_that_is_named_exists() -> None:
    targets = set(
        re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    for page in PAGES:
        named = set(re.findall(r"(?:`|^)make ([a-z][a-z0-9-]*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE))
        assert named <= targets, page


def test_a_release_has_one_version_and_one_date() -> None:
    from msn_deploy import __version__

    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.findall(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$", changes, flags=re.MULTILINE)[0]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert (version, f"version: {version}\n" in citation, f'"{date}"' in citation) == (__version__, True, True)


def test_the_codes_of_the_fold_are_all_explained() -> None:
    from msn_deploy.graph.rules import Code

    text = (DOCS / "background" / "folding.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", text)) == set(get_args(Code)) - {""}


def test_pictures_show_the_recorded_results(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pictures

    for name, result in pictures.SHOWN.items():
        with Image.open(pictures.IMAGES / name) as picture:
            assert picture.text[pictures.MADE_FROM] == pictures.digest(result), f"{name}: benchmarks/pictures.py"  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def site() -> Path:
    """The site of the docs, newly built."""
    pytest.importorskip("zensical", reason="the group `docs` of pyproject.toml is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "site"


def test_the_site_builds_without_a_warning(site: Path) -> None:
    built = {page.parent.relative_to(site).as_posix() for page in site.rglob("index.html")}
    wanted = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES if page.is_relative_to(DOCS)}
    assert {"." if name == "index" else name for name in wanted} <= built
    api = (site / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert "Args" in api or "Parameters" in api


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [*product((390, 1280), ("light", "dark"))])
def test_the_first_page_of_the_docs_opens_quietly_and_fits(browser: Any, site: Path, width: int, scheme: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        with Watched(browser, address, width=width, scheme=scheme) as watched:
            assert watched.complaints == []
            assert {request for request in watched.requests if not request.startswith((address, "data:"))} == set()
            assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            written = watched.page.evaluate(BLENDED)
            assert len(written) > 20
            assert [text for colour, paper, text in written if contrast(colour, paper) < 4.5] == []
            assert {sum(paper) < 300 for _, paper, _ in written} == {scheme == "dark"}
        server.shutdown()
