"""What doctor, bench and bundle make of every board; docs/reference/boards.md shows it."""

import boards
import pytest
from boards import BOARDS, PAGE, Board
from fake_sysfs import WHOLE

from msn_deploy.machine.targets import find_target

pytestmark = pytest.mark.slow
PLACES = pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
EVERY = pytest.mark.parametrize("board", BOARDS, ids=[board.title for board in BOARDS])
OLD = ("JetPack 4.6", "JetPack 5.1")


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    return boards.look_at_all(tmp_path_factory.mktemp("boards"))


@pytest.mark.skipif(not PAGE.is_file(), reason="needs the source tree")
def test_the_page_shows_it(looks):
    """After a change: PYTHONPATH=.:tests python tests/machine/boards.py."""
    assert PAGE.read_text() == boards.page(looks)


@PLACES
@EVERY
def test_a_healthy_machine_gets_exit_0_from_root_and_from_a_user_of_the_group(looks, board: Board, inside: bool):
    look = looks[board.title, inside]
    old = board.title.endswith(OLD)  # the package runs in a Python of the user's own there
    for user in ("root", "a user of the group"):
        said = look.doctor[user]
        assert said["problem"] == []
        assert ("jetson" in said["warning"], "tensorrt" in said["warning"]) == (old, old)
    assert look.doctor["a user of no group"]["problem"] == (["rights"] if board.family else [])


@PLACES
@EVERY
def test_heat_that_slows_nothing_down_is_valid_and_throttling_is_not(looks, board: Board, inside: bool):
    look = looks[board.title, inside]
    assert look.warm.valid
    assert look.throttled is None or not look.throttled.valid
    assert (look.throttled is None) == (not board.kind)
    assert look.rail == " + ".join(WHOLE.get(board.kind, ()))


@PLACES
@EVERY
def test_a_board_is_known_and_takes_the_bundles_of_its_family_alone(looks, board: Board, inside: bool):
    look = looks[board.title, inside]
    assert look.module in ({find_target(name).title for name in board.family} or {None})
    assert look.bundles == board.family
