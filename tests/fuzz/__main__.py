"""`python -m tests.fuzz [--seconds S] [TARGET …]`: fuzz the targets, one after the other.

Each runs in a process of its own, as libFuzzer ends the process.  What it finds is kept in
`.fuzz/TARGET/`, and `python -m tests.fuzz --again FILE TARGET` runs a finding once more.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

KEPT = Path(".fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--again", type=Path, metavar="FILE")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        fuzz(given.targets[0], given.seconds)
    from tests.fuzz.targets import TARGETS, check

    if given.again:
        check(given.targets[0], given.again.read_bytes())
        return 0
    findings = 0
    for name in given.targets or TARGETS:
        command = [sys.executable, "-m", "tests.fuzz", "--child", "--seconds", str(given.seconds)]
        done = subprocess.run([*command, name], capture_output=True, text=True, errors="replace")
        (KEPT / name).mkdir(parents=True, exist_ok=True)
        log = KEPT / name / "log.txt"
        log.write_text(done.stderr)
        runs = re.search(r"stat::number_of_executed_units: *(\d+)", done.stderr)
        covered = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
        found = done.returncode != 0
        findings += found
        print(
            f"{name:20} {runs[1] if runs else '?':>9} runs, "
            f"{covered[-1][0] if covered else '?':>5} branches, "
            + (f"A FINDING: see {log}" if found else "no finding"),
            flush=True,
        )
    return 1 if findings else 0


def fuzz(name: str, seconds: int) -> None:
    """Hand the process to libFuzzer, which watches pare's branches; it does not return."""
    import atheris

    with atheris.instrument_imports(include=["pare"]):
        from tests.fuzz.targets import check, seeds

    folder = KEPT / name
    for part in ("corpus", "seeds", "damage"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name, folder / "damage")):
        (folder / "seeds" / str(number)).write_bytes(seed)
    options = [f"-max_total_time={seconds}", "-print_final_stats=1", "-rss_limit_mb=3000",
               "-timeout=20", "-max_len=20000", f"-artifact_prefix={folder}/"]  # fmt: skip
    places = [str(folder / "corpus"), str(folder / "seeds")]
    atheris.Setup([sys.argv[0], *options, *places], lambda data: check(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
