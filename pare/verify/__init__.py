"""pare beside diffusers on the same weights: the same numbers, and the time they take.

`parity.py` is the list of comparisons.  `reference.py` is diffusers' side, the only file
of pare that uses diffusers; `layers.py` finds the first layer that departs; `report.py`
holds the results; `bench.py` measures speed and memory.

    from pare.verify import run_verify

    report = run_verify("roads", device="auto", dtype="auto", only=None, progress=print)
    print(report.table())              # or json.dumps(report.to_json())
    exit_code = 0 if report.passed else 1
"""

from pare.verify.parity import GROUPS, run_verify
from pare.verify.parity_table import ParityReport, ParityRow

__all__ = ["GROUPS", "ParityReport", "ParityRow", "run_verify"]
