"""A JetPack is one row: what follows from the table has to know every one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from doctor_machines import Machine, jetson

from msn_deploy.cli.targets import command
from msn_deploy.engine.trtexec import ROUTES, route_of
from msn_deploy.machine.checks import checks
from msn_deploy.machine.jetpacks import (
    JETPACKS,
    jetpack_of,
    jetpack_of_kernel,
    l4t_majors,
    numbers_of,
    same_release,
)
from msn_deploy.machine.targets import TARGETS
from msn_deploy.pipeline.wheels import PYTHONS

NAMES = [row.name for row in JETPACKS]


def test_rows_are_in_order_and_complete():
    assert len({*NAMES}) == len(NAMES)
    for one, other in pairwise(JETPACKS):
        assert one.l4t < other.l4t
        assert numbers_of(one.name) < numbers_of(other.name) or one.name == "4.6.0"
        assert numbers_of(one.tensorrt) <= numbers_of(other.tensorrt)
    for row in JETPACKS:
        assert row.serves
        assert all((row.major, row.tensorrt, row.kernel, row.python, row.images))


@pytest.mark.parametrize("row", JETPACKS, ids=NAMES)
def test_every_consumer_knows_every_row(row, tmp_path, capsys):
    l4t = ".".join(map(str, row.l4t)) + ".0"
    assert jetpack_of(l4t) == row
    assert jetpack_of_kernel(row.kernel + ".99-tegra") == row.major
    jetsons = [target for target in TARGETS if target.jetson and target.compute_capability in row.serves]
    assert jetsons
    for target in jetsons:
        assert str(row.l4t[0]) in l4t_majors(target.compute_capability)  # what a bundle for it accepts
    listed = [target for target in jetsons if row.name in target.jetpacks]
    assert bool(listed) is not row.superseded
    assert all(row.tensorrt in target.tensorrt for target in listed)
    assert route_of(row.tensorrt) in ROUTES
    assert (row.python in PYTHONS) is row.runs_package
    if not row.superseded:
        command()
        assert row.tensorrt in capsys.readouterr().out
    files = jetson(jetsons[0].title, l4t, row.kernel + ".1", cuda="1.1", tensorrt=row.tensorrt, total=8, free=8)
    found = {each.name: each for each in checks(Machine(title="", files=files | {".dockerenv": ""}).build(tmp_path))}
    assert f"), L4T {l4t} (JetPack {row.major})" in found["jetson"].found
    assert found["jetson"].verdict == ("ok" if row.runs_package else "warning")
    assert found["image"].verdict == "ok"  # it holds the TensorRT of this JetPack


def test_what_is_newer_than_the_table_counts_as_its_last_row():
    assert jetpack_of("99.1") == JETPACKS[-1]
    assert jetpack_of("28.2.1") is None
    assert jetpack_of(None) is None
    assert jetpack_of_kernel("6.12.9-generic") is None


def test_the_releases_that_run_msn_deploy_itself():
    assert PYTHONS == ("3.10", "3.12")
    assert [row.name for row in JETPACKS if not row.runs_package] == ["4.6.0", "4.6", "5.0", "5.0.2", "5.1"]


@pytest.mark.parametrize(
    ("l4t", "name"),
    [("32.6.1", "4.6.0"), ("32.7.6", "4.6"), ("35.1.0", "5.0.2"), ("35.6.4", "5.1"), ("36.3.0", "6.0"),
     ("36.4.2", "6.1"), ("36.5.0", "6.2"), ("38.2.0", "7.0"), ("38.4.0", "7.1"), ("39.2.0", "7.2")],
)  # fmt: skip
def test_the_jetpack_of_an_l4t(l4t, name):
    assert jetpack_of(l4t).name == name


def test_releases_of_tensorrt():
    for one, other, same in (("10.3.0", "10.3.1", True), ("10.13", "10.3", False), ("8", "8.5", True)):
        assert same_release(one, other) is same
    assert numbers_of("10.3.0.30+cuda12") == (10, 3, 0, 30)
    assert numbers_of("?") == ()
