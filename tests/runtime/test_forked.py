"""Children of a process that has run a model: they run too, or say in a sentence why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

CODE = """
import hashlib, multiprocessing
import torch
from pare.errors import DeviceError
from pare.pipeline import Pipeline

def run(threads):
    torch.set_num_threads(threads)
    try:
        pipe = Pipeline.from_pretrained("roads", device="cpu")
        x = pipe.generate("a snowy road", seeds=1, steps=10).tensor
    except DeviceError as error:
        return str(error)
    return hashlib.sha256(x.numpy().tobytes()).hexdigest()

def child(kind, threads):
    with multiprocessing.get_context(kind).Pool(1) as pool:
        return pool.apply_async(run, [threads]).get(timeout=100)

if __name__ == "__main__":
    alone = run(2), run(1)
    torch.set_num_threads(2)
    forked = child("fork", 2)
    assert forked.startswith("this process was forked from one that has run a model"), forked
    assert 'get_context("spawn")' in forked
    assert child("fork", 1) == alone[1]
    assert child("spawn", 2) == alone[0]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_says_what_to_do_and_a_spawned_one_works(tmp_path: Path) -> None:
    script = tmp_path / "script.py"  # a file, as spawned children import it
    script.write_text(CODE)
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-W", "ignore", script], check=True, env=environment, timeout=400
    )
