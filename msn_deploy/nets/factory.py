"""A network from the user's own Python file, given as FILE.py:FACTORY."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from torch import nn

from msn_deploy.core.errors import InputError


def net_from_file(spec: str) -> nn.Module:
    """Import FILE.py, call FACTORY() and return its network in evaluation mode. The file's code is executed.

    Raises InputError if the file, the factory or its result is not what it should be.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist.\nA network of your own is given as FILE.py:FACTORY.")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.parent.resolve()))  # so that the file can import its neighbours, as `python FILE` can
    try:
        module_spec.loader.exec_module(module)
        factory = getattr(module, name, None)
        if not callable(factory):
            raise InputError(f"{path} defines no function called {name!r}.")
        model = factory()
    except InputError:
        raise
    except Exception as cause:  # whatever the user's own code raises is theirs to mend, and is shown as such
        raise InputError(f"{spec} raised {type(cause).__name__}: {cause}.\n`--debug` shows where.") from cause
    finally:
        sys.path.remove(str(path.parent.resolve()))
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} returned {type(model).__name__}, not a torch.nn.Module.")
    return model.eval()
