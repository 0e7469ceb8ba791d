"""What `msn-deploy COMMAND --help` prints, and the words for a parameter that the docs print, too."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperCommand

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_PLACEHOLDERS = {"int": "N", "float": "X", "str": "TEXT"}


class Command(TyperCommand):
    """A command whose help names what is typed (N, PATH) in place of Python's types, with its options in groups."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Write the line of usage."""
        formatter.write_usage(ctx.command_path, usage_of(self))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the options that have no group, and each group of options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            title = "Arguments" if param.param_type_name == "argument" else group_of(param) or "Options"
            known = {"default": default_of(param), "range": _range_of(param)}
            more = "; ".join(f"{name}: {text}" for name, text in known.items() if text)
            sections.setdefault(title, []).append((names_of(param), about(param) + (f"  [{more}]" if more else "")))
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, each on a line of its own, however long."""
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line}\n" for line in (self.epilog or "").splitlines()))


def load_command(name: str) -> Any:
    """Return a command as typer parses it, with `params`; only its own file is loaded."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    add_command(app, name)
    return typer.main.get_command(app)


def add_command(app: typer.Typer, name: str) -> None:
    """Add the function `command` of cli/NAME.py to an app; its docstring is the help, its file's EXAMPLES end it."""
    module = importlib.import_module(f"msn_deploy.cli.{name.replace('-', '_')}")
    settings: dict[str, Any] = {"context_settings": _SETTINGS, "epilog": module.EXAMPLES.strip()}
    app.command(name, cls=Command, help=module.command.__doc__, **settings)(module.command)


def usage_of(command: Any) -> str:
    """Return what is typed after the command's name."""
    arguments = [placeholder_of(each) for each in command.params if each.param_type_name == "argument"]
    return " ".join([*arguments, "[OPTIONS]"])


def names_of(param: Any) -> str:
    """Return a parameter as it is typed: `MODEL`, `-o, --out PATH`, `--simplify, --no-simplify`."""
    if param.param_type_name == "argument":
        return placeholder_of(param)
    names = ", ".join(sorted(param.opts, key=len) + param.secondary_opts)
    return names if param.is_flag else f"{names} {placeholder_of(param)}"


def placeholder_of(param: Any) -> str:
    """Return what stands for a parameter's value; an argument's is its name, in brackets where it can be left out."""
    if param.param_type_name == "option":
        kind = param.bare_type().removeprefix("list[").rstrip("]")
        return str(param.metavar or _PLACEHOLDERS.get(kind, kind.upper()))
    name = (param.metavar or param.name).upper()
    name = name if param.nargs == 1 else f"{name}..."
    return name if param.required or name.startswith("[") else f"[{name}]"


def about(param: Any) -> str:
    """Return what a parameter does, in a sentence."""
    return param.help or "Show this text."  # typer's own option alone has none


def default_of(param: Any) -> str:
    """Return what holds where a parameter is left out, or "" where that is nothing, or where it must be given."""
    if isinstance(param.show_default, str):
        return param.show_default
    value = param.default
    empty = not param.show_default or value is None or value is False or value == [] or callable(value)
    return "" if empty or getattr(param, "is_flag", False) else str(value)


def group_of(param: Any) -> str:
    """Return the title under which an option is listed, or ""."""
    return getattr(param, "rich_help_panel", None) or ""


def _range_of(param: Any) -> str:
    """Return the numbers that a parameter takes, or "": a count is at least one anyway."""
    low, high = getattr(param, "min", None), getattr(param, "max", None)
    if high is not None:
        return f"up to {high}" if low is None else f"{low} to {high}"
    return "" if low in (None, 0, 1) else f"{low} or more"
