from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model, small enough to be compared in seconds."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
