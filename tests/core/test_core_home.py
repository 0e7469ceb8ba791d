"""Where caches lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from msn_deploy.core.home import home_folder


def test_the_first_variable_that_is_set_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("MSN_DEPLOY_HOME", "/m")):
        monkeypatch.setenv(name, value)
    assert home_folder() == Path("/m")
    monkeypatch.delenv("MSN_DEPLOY_HOME")
    assert home_folder() == Path("/x/msn-deploy")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert home_folder() == Path("/h/.cache/msn-deploy")


def test_the_suite_has_one_of_its_own(home_of_its_own: Path) -> None:
    assert home_folder() == home_of_its_own
