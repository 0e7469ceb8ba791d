"""How fast is each model, and is the difference to the baseline real?

`measure` times callables in interleaved blocks, `compare` turns samples into medians, tails, ratios with an interval
and a verdict, `judge_regression` (in `bench.gate`) compares them with an earlier result, `render_html` (in
`report.bench`) draws them. Nothing here knows a runtime: an arm is a name and a call.
"""

from __future__ import annotations

from msn_deploy.bench.compare import compare
from msn_deploy.bench.measure import Arm, MeasureOptions, Samples, measure
from msn_deploy.bench.profile import Profile
from msn_deploy.bench.result import ArmResult, BenchResult, from_json, to_json

__all__ = [
    "Arm",
    "ArmResult",
    "BenchResult",
    "MeasureOptions",
    "Profile",
    "Samples",
    "compare",
    "from_json",
    "measure",
    "to_json",
]
