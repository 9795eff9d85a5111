"""Parity with diffusers on the same weights: equal outputs, and how long both take.

`parity.py` lists the comparisons; the modules `*_parity.py` make them, layer by layer, solver
by solver and image by image.  `diffusers_side.py` is the only module of pare that uses
diffusers.  `speed.py` and `loading_speed.py` are the benchmarks of `pare bench`.

    from pare.verify import run_verify

    report = run_verify("roads", device="auto", dtype="auto", only=None, progress=print)
    print(report.table())              # or json.dumps(report.to_json())
    exit_code = 0 if report.passed else 1
"""

from pare.verify.parity import GROUPS, run_verify
from pare.verify.parity_table import ParityReport, ParityRow

__all__ = ["GROUPS", "ParityReport", "ParityRow", "run_verify"]
