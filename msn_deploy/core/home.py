"""Where msn-deploy keeps what outlives a command: caches that may be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path


def home_folder() -> Path:
    """Return `$MSN_DEPLOY_HOME`, else `$XDG_CACHE_HOME/msn-deploy`, else `~/.cache/msn-deploy`; it need not exist."""
    if own := os.environ.get("MSN_DEPLOY_HOME"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")) / "msn-deploy"
