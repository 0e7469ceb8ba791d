"""Where caches lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.home import home_folder, user_folder


def test_the_first_variable_that_is_set_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("MSN_DEPLOY_HOME", "/m")):
        monkeypatch.setenv(name, value)
    assert home_folder() == Path("/m")
    monkeypatch.delenv("MSN_DEPLOY_HOME")
    assert home_folder() == Path("/x/msn-deploy")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert home_folder() == Path("/h/.cache/msn-deploy")


def test_no_folder_is_taken_from_where_one_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("MSN_DEPLOY_HOME", "own")
    with pytest.raises(InputError, match="not an absolute path"):
        home_folder("data")
    monkeypatch.delenv("MSN_DEPLOY_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", "data")  # by the rules of XDG it does not count
    assert home_folder("data") == Path("/h/.local/share/msn-deploy")
    monkeypatch.setenv("HOME", ".")
    assert user_folder("data") == Path("/nonexistent/msn-deploy")


def test_the_suite_has_one_of_its_own(home_of_its_own: Path) -> None:
    assert home_folder() == home_of_its_own
