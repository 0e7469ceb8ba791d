"""What does each JetPack bring? The one table: a new release is a new row, at the end.

Sources: the recipes of meta-tegra for versions, jetson_stats for L4T, jetson-containers for which images run where.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


def numbers_of(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, four at most, to be compared: "10.3.0.26" is (10, 3, 0, 26)."""
    return tuple(int(part) for part in re.findall(r"[0-9]{1,9}", version)[:4])


def same_release(one: str, other: str) -> bool:
    """Tell whether two versions agree in major and minor number, as far as both tell them."""
    parts = min(2, one.count(".") + 1, other.count(".") + 1)
    return one.split(".")[:parts] == other.split(".")[:parts]


@dataclass(frozen=True, slots=True)
class JetPack:
    """A release for Jetsons."""

    name: str
    l4t: tuple[int, ...]
    """The first L4T of it; all up to the next row's count as it."""
    tensorrt: str
    kernel: str
    """Linux, as `uname -r` begins."""
    python: str
    """Of the distribution, which is the one that has the bindings of TensorRT."""
    images: str
    """A word that is equal for releases that run each other's container images."""
    serves: tuple[str, ...]
    """Compute capabilities of the Jetsons that it runs on."""
    superseded: bool = False
    """A later row serves the same devices: they may still run this one, no target lists it."""

    @property
    def major(self) -> str:
        """Such as "6"."""
        return self.name.partition(".")[0]

    @property
    def runs_package(self) -> bool:
        """Whether its Python is recent enough for msn-deploy; trtexec runs everywhere."""
        return numbers_of(self.python) >= (3, 10)


_MAXWELL_TO_VOLTA = ("5.3", "6.2", "7.2")
_VOLTA_AMPERE = ("7.2", "8.7")
_ORIN, _THOR = ("8.7",), ("11.0",)


# JetPack 7.2.2 and later also take TensorRT 11.4 (AGX Orin, Thor), which the user installs.
JETPACKS: tuple[JetPack, ...] = (
    JetPack("4.6.0", (32, 6), "8.0.1", "4.9", "3.6", "r32", _MAXWELL_TO_VOLTA, superseded=True),
    JetPack("4.6", (32, 7), "8.2.1", "4.9", "3.6", "r32", _MAXWELL_TO_VOLTA),
    JetPack("5.0", (34, 0), "8.4.0", "5.10", "3.8", "r34", _VOLTA_AMPERE, superseded=True),
    JetPack("5.0.2", (35, 1), "8.4.1", "5.10", "3.8", "r35", _VOLTA_AMPERE, superseded=True),
    JetPack("5.1", (35, 2), "8.5.2", "5.10", "3.8", "r35", _VOLTA_AMPERE),
    JetPack("6.0", (36, 0), "8.6.2", "5.15", "3.10", "r36", _ORIN),
    JetPack("6.1", (36, 4), "10.3.0", "5.15", "3.10", "r36.4", _ORIN),
    JetPack("6.2", (36, 4, 3), "10.3.0", "5.15", "3.10", "r36.4", _ORIN),
    JetPack("7.0", (38, 0), "10.13.3", "6.8", "3.12", "r38", _THOR),
    JetPack("7.1", (38, 4), "10.13.3", "6.8", "3.12", "r38", _THOR),
    JetPack("7.2", (39, 0), "10.16.2", "6.8", "3.12", "r38", (*_ORIN, *_THOR)),
)


# From which TensorRT on, which opset its ONNX parser reads (docs/operators.md of onnx-tensorrt's branches), and which
# is written for it: 8.4 and 8.5 have none of the operators that are new in 17, such as LayerNormalization.
_OPSETS = (("7.0", 11, 11), ("7.2", 13, 13), ("8.4", 17, 16), ("8.6", 17, 17), ("10.0", 20, 20), ("10.15", 24, 24))


def opset_read(tensorrt: str) -> int:
    """Return the opset that a release of TensorRT reads at most; of one that is not in the table, the one before it."""
    return _opsets_of(tensorrt)[0]


def opset_for(tensorrt: str) -> int:
    """Return the highest opset all of whose operators a release of TensorRT may have."""
    return _opsets_of(tensorrt)[1]


def _opsets_of(tensorrt: str) -> tuple[int, int]:
    known = [row[1:] for row in _OPSETS if numbers_of(row[0]) <= numbers_of(tensorrt)]
    return known[-1] if known else _OPSETS[0][1:]


def first_to_read(opset: int) -> str | None:
    """Return the first TensorRT that reads an opset, such as "10.0"; None where the table has none."""
    return next((first for first, most, _ in _OPSETS if most >= opset), None)


def jetpack_of(l4t: str | None) -> JetPack | None:
    """Return the JetPack of an L4T such as "36.4.3"; None for one that is unknown or older than all of the table."""
    older = [row for row in JETPACKS if l4t is not None and row.l4t <= numbers_of(l4t)]
    return older[-1] if older else None


def jetpacks_for(compute_capability: str, *, since: str = "") -> tuple[JetPack, ...]:
    """Return the releases that a target lists, oldest first; since: the first that knows the module."""
    served = [row for row in JETPACKS if compute_capability in row.serves and not row.superseded]
    return tuple(row for row in served if numbers_of(row.name) >= numbers_of(since))


def l4t_majors(compute_capability: str) -> tuple[str, ...]:
    """Return the major numbers of L4T that devices of a compute capability may run."""
    return tuple(dict.fromkeys(str(row.l4t[0]) for row in JETPACKS if compute_capability in row.serves))


def jetpack_of_kernel(release: str) -> str | None:
    """Return the major number of the JetPack whose kernel it is ("5.15.148-tegra": "6"); None if it is of none."""
    return next((row.major for row in JETPACKS if numbers_of(release)[:2] == numbers_of(row.kernel)), None)
