"""Are the joules of a `bench --energy --json` file those of the fake board? `energy.py FILE RAIL`; exit 1 if not."""

import json
import sys
from pathlib import Path

from board import BUSY_W, IDLE_W

result = json.loads(Path(sys.argv[1]).read_text())
(arm,) = result["arms"]
energy = arm["energy"]
assert energy["rail"] == sys.argv[2], energy
# The sensor's mean, not the moment: a program that waits still runs a little.
assert IDLE_W <= energy["idle_w"] < (IDLE_W + BUSY_W) / 2 < energy["busy_w"] <= BUSY_W, energy
low, high = energy["interval_mj"]
assert 0 < low <= energy["mj"] <= high, energy
seconds = energy["mj"] / 1e3 / (energy["busy_w"] - energy["idle_w"])
watts = f"{energy['busy_w']:.1f} W, idle {energy['idle_w']:.1f} W"
sys.stdout.write(
    f"{energy['mj']:.0f} mJ per query: {watts}, for {seconds:.3f} s, {energy['updates']} values of {energy['rail']} "
    f"(the board draws {IDLE_W:.0f} W, and {BUSY_W:.0f} W while it works)\n"
)
