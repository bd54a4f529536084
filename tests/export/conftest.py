"""What the tests of the export share: a model that a test may spoil, and an adapter that nobody trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.models import save_adapter


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


@pytest.fixture(scope="session")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the folder of a run, over the tiny model; with no tokenizer of its own."""
    return save_adapter(tiny_model, tmp_path_factory.mktemp("run") / "adapter")
