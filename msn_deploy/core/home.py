"""Where msn-deploy finds the files that it ships, and where it keeps what outlives a command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from msn_deploy.core.errors import InputError, did_you_mean, shown
from msn_deploy.core.opening import read_input
from msn_deploy.core.reader import parse_toml

_XDG = {"cache": ("XDG_CACHE_HOME", "~/.cache"), "data": ("XDG_DATA_HOME", "~/.local/share")}


def home_folder(kind: Literal["cache", "data"] = "cache") -> Path:
    """Return `$MSN_DEPLOY_HOME`, else the user's folder of that kind; it need not exist.

    Raises InputError for a relative `$MSN_DEPLOY_HOME`, which would be another folder in each working directory.
    """
    own = os.environ.get("MSN_DEPLOY_HOME")
    if own and not os.path.isabs(own):
        raise InputError(
            f"MSN_DEPLOY_HOME is {own[:200]!r}, which is not an absolute path.\nGive one that begins with /."
        )
    return Path(own) if own else user_folder(kind)


def user_folder(kind: Literal["cache", "data"] = "cache") -> Path:
    """Return msn-deploy's folder for what may be deleted at any time ("cache"), or for what may not, by the XDG rules.

    `$XDG_CACHE_HOME/msn-deploy`, else `~/.cache/msn-deploy`; `$XDG_DATA_HOME`, `~/.local/share`. By those rules a
    relative path does not count. A user without a home has a folder that is never there.
    """
    variable, otherwise = _XDG[kind]
    # Not Path.home(), which raises for a user without one, as in a container run with any --user.
    places = (os.environ.get(variable, ""), os.path.expanduser(otherwise), "/nonexistent")
    return Path(next(filter(os.path.isabs, places))) / "msn-deploy"


def builtin_folder(name: str) -> Path:
    """Return the folder of built-in data files: "models", "calibration" or "suites".

    In a wheel it lies inside the package; in a checkout it is one of the top-level folders.
    """
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_recipes" / name
    checkout = package.parent / ("benchmarks/suites" if name == "suites" else name)
    return shipped if shipped.is_dir() else checkout


def read_toml(name_or_path: str, folder: str) -> tuple[Path, dict[str, Any]]:
    """Read a TOML file by path, or by the name of one in a built-in folder; return also where it lies.

    A path beats a name. Raises InputError.
    """
    path = Path(name_or_path)
    if not os.path.isfile(path):  # unlike Path.is_file it takes any text, also one too long for a file name
        place = builtin_folder(folder)
        known = sorted(file.stem for file in place.glob("*.toml"))
        if name_or_path not in known:
            what = "suite" if folder == "suites" else "recipe"
            if "/" in name_or_path or path.suffix == ".toml":
                raise InputError(f"{shown(name_or_path)} does not exist.\nGive a TOML file, or the name of a {what}.")
            near = did_you_mean(name_or_path[:100], known)
            all_of_them = "`msn-deploy recipes` lists all; a" if folder == "models" else "A"
            raise InputError(
                f"unknown {what} {shown(name_or_path)}{near}\n{all_of_them} path to a TOML file works too."
            )
        path = place / f"{name_or_path}.toml"
    return path, parse_toml(read_input(path, "settings"), source=str(path))
