"""The blocks of docs/reference/ that say what the code says: commands, recipe keys, files, API, targets, exit codes.

Nothing here is measured. `benchmarks/readme.py` fills the blocks into the pages, and compares them in the tests.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import msn_deploy
from msn_deploy.cli.app import COMMANDS
from msn_deploy.cli.help import about, default_of, group_of, load_command, names_of, usage_of
from msn_deploy.core import errors, recipes, suites
from msn_deploy.machine.jetpacks import JETPACKS
from msn_deploy.machine.targets import TARGETS

PACKAGE = Path(msn_deploy.__file__).parent

# What is published, by the kind that its sidecar names: file, and what it holds.
KINDS = {
    "bench": ("`--json` of `bench`", "every sample, medians, ratios with intervals, verdicts, the machine"),
    "bundle": ("`NAME.tar` of `bundle`", "models, recipes, wheels and scripts for a device"),
    "fold-certificate": ("`NAME.fold.json`", "each norm with its rule or code, sigma, and how far its outputs moved"),
    "calibration-table": ("`--table`", "scales for TensorRT 8 to 10 and for a DLA"),
    "checkpoint": (
        "`NAME.safetensors`",
        "weights, the recipe, metrics, how images are prepared; trained under INT8, its graph, too",
    ),
    "curves": ("`NAME.curves.png`", "loss, metrics and learning rate by epoch"),
    "engine": ("`NAME.engine`, with `NAME.plan.json`", "what TensorRT runs; the sidecar says for which machine"),
    "gate": ("`--junit`, `--markdown` of `bench`", "the verdict of a gate for CI"),
    "history": ("`NAME.history.jsonl`", "one line per epoch"),
    "onnx": ("`NAME.onnx`, `NAME.fp16.onnx`, `NAME.int8.onnx`", "the network, and in its metadata how it is used"),
    "report": ("`--html`", "one page that needs no network"),
    "samples": ("`NAME.epoch-NNN.png`", "images that a GAN generates"),
    "device-script": ("`NAME.build.sh`", "builds an engine on the device"),
    "result": ("`--json` of any other command", "its result"),
    "timing-cache": ("`--timing-cache`", "times of TensorRT's kernels, for the next build"),
}
# Variables that are read, in the package or by what it stands on.
VARIABLES = {
    "MSN_DEPLOY_DATA": "Folder in which `--data NAME` looks for a known data set first.",
    "MSN_DEPLOY_DEBUG": "If set, errors show their traceback, as with `--debug`.",
    "MSN_DEPLOY_HOME": "Absolute path of the folder for caches and trusted engines, instead of the two below.",
    "XDG_CACHE_HOME": "Calibration scales and data sets are in its `msn-deploy`, else in `~/.cache/msn-deploy`.",
    "XDG_DATA_HOME": "The list of trusted engines is in its `msn-deploy`, else in `~/.local/share/msn-deploy`.",
    "HF_ENDPOINT": "Server that data sets are downloaded from.",
    "HF_HUB_OFFLINE": "Set by `--data NAME` where that server cannot be reached.",
    "ORT_DISABLE_TELEMETRY": "Set to 1 on import, so that ONNX Runtime sends nothing.",
    "TORCHINDUCTOR_CACHE_DIR": "Where torch keeps what it compiles; without it, a folder in the cache above.",
    "RANK": "Set by `torchrun`: number of this process. The first one writes and prints.",
    "WORLD_SIZE": "Set by `torchrun`: number of processes.",
    "LOCAL_RANK": "Set by `torchrun`: number of the GPU.",
}
INHERITED = {
    "TMPDIR": "Folder for temporary files.",
    "NO_COLOR": "If set, no colours on a terminal.",
}


def blocks() -> dict[str, str]:
    """Return the text of every block by name."""
    names = [name for name in msn_deploy.__all__ if name != "__version__"]
    return {
        "commands": "\n\n".join(map(_command, COMMANDS)),
        "recipe-keys": _keys(recipes.Recipe),
        "train-keys": _keys(recipes.TrainOptions),
        "gan-keys": _keys(recipes.GanOptions),
        "calibration-keys": _keys(recipes.CalibrationRecipe),
        "suite-keys": _keys(suites.Suite),
        "network-keys": _keys(suites.Network),
        "row-keys": _keys(suites.Row),
        "file-kinds": _kinds(),
        "names": _names(names),
        "api": "\n\n".join(f"::: {_place(name)}" for name in names),
        "targets": _targets(),
        "jetpacks": _jetpacks(),
        "exit-codes": _exit_codes(),
        "variables": _variables(),
    }


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _command(name: str) -> str:
    command = load_command(name)
    parts = [f"## {name}", inspect.cleandoc(command.help), f"```text\nmsn-deploy {name} {usage_of(command)}\n```"]
    groups: dict[str, list[tuple[str, ...]]] = {"": []}
    for each in command.params:
        if "--help" not in each.opts:
            row = (f"`{names_of(each)}`", about(each), default_of(each))
            groups.setdefault(group_of(each), []).append(row)
    for title, rows in groups.items():
        parts += [f"**{title}**"] * bool(title) + [_table(("option", "what it does", "default"), rows)]
    return "\n\n".join([*parts, f"<!-- not run: it shows how a line is typed -->\n```sh\n{command.epilog}\n```"])


def _keys(record: Any) -> str:
    schema = TypeAdapter(record).json_schema()
    said, needed = attribute_docs(record), schema.get("required", ())
    rows = []
    for key, shape in schema["properties"].items():
        default = "needed" if key in needed else f"`{json.dumps(shape.get('default'))}`".replace("`null`", "none")
        about = said.get(key) or said.get(f"{key}s", "")  # TOML says [[network]] for each of `networks`
        rows.append((f"`{key}`", _values(shape, schema.get("$defs", {})), default, about))
    return _table(("key", "values", "default", "what it says"), rows)


def _values(shape: dict[str, Any], defs: dict[str, Any]) -> str:
    """Say in words what a JSON schema allows."""
    if "$ref" in shape:
        return _values(defs[shape["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in shape:
        return " or ".join(dict.fromkeys(_values(each, defs) for each in shape["anyOf"] if each.get("type") != "null"))
    if "enum" in shape or "const" in shape:
        return ", ".join(f"`{each}`" for each in shape.get("enum", [shape.get("const")]))
    kind = shape.get("type", "")
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    if kind == "array":
        return "list" if "items" not in shape else f"list of {_values(shape['items'], defs)}"
    if kind == "object":
        return "section"
    bounds = [
        f"{word} {shape[name]:g}"
        for name, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if name in shape
    ]
    return " ".join([words.get(kind, kind), *bounds])


def attribute_docs(record: Any) -> dict[str, str]:
    """Return the docstring under each attribute of a class, by the attribute's name."""
    (tree,) = ast.parse(inspect.getsource(record)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for line, after in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and is_text:
            found[line.target.id] = " ".join(str(after.value.value).split())
    return found


def _kinds() -> str:
    if differ := sorted(published_kinds() ^ set(KINDS)):
        raise SystemExit(f"benchmarks/reference.py: KINDS and what the package publishes differ: {', '.join(differ)}")
    return _table(("kind", "file", "what it holds"), [(f"`{kind}`", *row) for kind, row in KINDS.items()])


def published_kinds() -> set[str]:
    """Return every kind that a call in the package gives to a file with a sidecar."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
            if called in ("publish", "_publish", "Artifact"):
                values = [each.value for each in node.keywords if each.arg == "kind"] + node.args[2:3]
                found |= {each.value for each in values if isinstance(each, ast.Constant)}
    return found


def _names(names: list[str]) -> str:
    rows = []
    for name in names:
        text = " ".join((inspect.getdoc(getattr(msn_deploy, name)) or "").split("\n\n")[0].split())
        rows.append((f"[`{name}`](#{_place(name)})", _first_sentence(text)))
    return _table(("name", "what it is"), rows)


def _place(name: str) -> str:
    """Return where a public name is defined; `msn_deploy.convert` alone could also be the module of that name."""
    thing = getattr(msn_deploy, name)
    return f"{thing.__module__}.{thing.__qualname__}"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.:]) (?=[A-Z])", text)[0].rstrip(":")


def _targets() -> str:
    rows = [
        (
            f"`{each.name}`",
            each.title,
            each.sm,
            _number(each.memory_gib),
            _number(each.fp16_tflops),
            _number(each.int8_tops),
            f"{each.dla_cores}" if each.dla_cores else "",
            ", ".join(each.precisions),
            ", ".join(each.jetpacks),
        )
        for each in TARGETS
    ]
    head = ("target", "device", "GPU", "GiB", "FP16 TFLOPS", "INT8 TOPS", "DLA cores", "precisions", "JetPack")
    return _table(head, rows)


def _jetpacks() -> str:
    rows = [
        (each.name, each.tensorrt, each.python, "msn-deploy" if each.runs_package else "`trtexec`") for each in JETPACKS
    ]
    return _table(("JetPack", "TensorRT", "Python", "what runs there"), rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _exit_codes() -> str:
    def below(base: type[errors.MsnDeployError]) -> Iterator[type[errors.MsnDeployError]]:
        for each in base.__subclasses__():
            if each.__module__ == errors.__name__:
                yield each
                yield from below(each)

    rows = [("0", "", "Fine.")]
    rows += sorted(
        (str(each.exit_code), f"`{each.__name__}`", _first_sentence(inspect.getdoc(each) or ""))
        for each in below(errors.MsnDeployError)
    )
    rows += [
        ("2", "`OSError`, `MemoryError`", "What the machine refuses: no space, no rights, too little memory."),
        ("5", "any other", "A fault of msn-deploy itself. Please report it with the output of `--debug`."),
        ("130", "`KeyboardInterrupt`", "Ctrl-C. Finished files are complete, unfinished ones were not written."),
    ]
    return _table(("code", "exception", "what happened"), rows)


def _variables() -> str:
    if differ := sorted(variables_read() ^ set(VARIABLES)):
        raise SystemExit(f"benchmarks/reference.py: VARIABLES and what the package reads differ: {', '.join(differ)}")
    return _table(("variable", "what it does"), [(f"`{name}`", said) for name, said in (VARIABLES | INHERITED).items()])


def variables_read() -> set[str]:
    """Return every variable that the package reads or sets by name."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"environ(?:\.get\(|\.setdefault\(|\[)\"([A-Z_]+)\"", text))
        found |= set(re.findall(r"\"([A-Z_]+)\" (?:not )?in os\.environ", text))
        found |= set(re.findall(r"\(\"(XDG_[A-Z_]+)\"", text))
    return found
