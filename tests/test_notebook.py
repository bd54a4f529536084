"""The notebook runs cell by cell on the nano base, and is kept without what a run left in it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from observer.files import read_jsonl, write_jsonl
from observer.paths import PROJECT_ROOT, TRAIN_JSONL, VAL_JSONL
from tests.support.modelfile_parser import parse_modelfile

NOTEBOOK = PROJECT_ROOT / "notebooks" / "train_observer.ipynb"
SMALL = (
    "data.train=train.jsonl", "data.val=val.jsonl", "training.max_steps=4",
    "training.eval_steps=2", "training.logging_steps=1", "training.warmup_steps=1",
    "training.per_device_train_batch_size=4",
    "export.quantizations=[f16,q8_0]", "evaluation.limit=4",
)  # fmt: skip


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs() -> None:
    notebook = read()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_it_runs_on_the_nano_base_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs", "data", "train_sft.py"):
        (tmp_path / name).symlink_to(PROJECT_ROOT / name)
    for path, n_rows in ((TRAIN_JSONL, 24), (VAL_JSONL, 12)):
        rows = [row for _, row in read_jsonl(PROJECT_ROOT / path)]
        write_jsonl(tmp_path / path.name, rows[:: len(rows) // n_rows])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read()
    cells = {cell.id: cell for cell in notebook.cells}
    cells["parameters"].source = f'CONFIG, OVERRIDES = "configs/nano.yaml", {list(SMALL)}'
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()

    assert "run        nano -> outputs/nano" in printed(cells["plan"])
    assert {"image/png"} <= {kind for output in cells["curve"].outputs for kind in output.get("data", {})}
    assert "macro_f1" in "".join(output["data"].get("text/markdown", "") for output in shown(cells["evaluate"]))
    answers = printed(cells["answers"])
    assert answers.count("\ngold   ") == answers.count("\nmodel  ") == 5
    assert printed(cells["download"]).splitlines() == [
        "ollama create nano-grade -f Modelfile-q8_0-grade",
        "ollama run nano-grade 'USER: I just moved to Lisbon'",
    ]
    assert_package(tmp_path / "nano-q8_0.zip", tmp_path / "unpacked")


def printed(cell: Any) -> str:
    return "".join(output["text"] for output in cell.outputs if output.output_type == "stream")


def shown(cell: Any) -> list[Any]:
    return [output for output in cell.outputs if output.output_type == "display_data"]


def assert_package(package: Path, folder: Path) -> None:
    """Unpacked anywhere, each Modelfile finds the weights beside it."""
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)
    modelfiles = [path for path in folder.iterdir() if path.suffix != ".gguf"]
    assert len(modelfiles) == 3
    for path in modelfiles:
        assert (folder / parse_modelfile(path.read_text(encoding="utf-8"), str(path)).only("FROM")).is_file()
