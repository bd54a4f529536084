"""Rows and configs for trainings of the tiny model, small enough to run in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from observer.config import Config, load_config
from observer.files import write_jsonl
from observer.prompts import training_row
from observer.schema import parse_row

CITIES = ("Lisbon", "Porto", "Kyoto", "Bergen")


def raw_rows(n_rows: int) -> list[dict[str, Any]]:
    """Grading and extraction rows in turn, their lengths unlike."""
    rows: list[dict[str, Any]] = []
    for number in range(n_rows):
        city = CITIES[number % len(CITIES)]
        said = {"assistant_message": "ok" * (1 + number % 3), "id": f"row-{number}", "family": f"family-{number % 5}"}
        if number % 2:
            label = {"user_message": f"hello {number}", "label": "DISCARD"}
            rows.append(said | label)
            continue
        entities = [{"name": "User", "type": "Person"}, {"name": city, "type": "Place"}]
        lives_in = {"subject": "User", "predicate": "LIVES_IN", "object": city, "temporal": "ongoing"}
        said["user_message"] = f"I just moved to {city}, number {number}"
        rows.append(said | {"entities": entities, "relationships": [lives_in]})
    return rows


def split_rows(n_rows: int) -> list[dict[str, Any]]:
    """The same as lines of a split file."""
    rows = []
    for raw in raw_rows(n_rows):
        row, faults = parse_row(raw)
        assert row is not None, faults
        rows.append(training_row(row))
    return rows


def write_tiny_run(folder: Path, base: Path, *, n_rows: int = 24) -> Path:
    """Write train, val and a config below `folder`; return the config's path. Twelve steps of 8 rows."""
    write_jsonl(folder / "train.jsonl", split_rows(n_rows))
    write_jsonl(folder / "val.jsonl", split_rows(8))
    config = folder / "tiny.yaml"
    config.write_text(
        f"""\
run: {{name: tiny, output_dir: {folder / "outputs"}, device: cpu}}
model: {{base: {base}, backend: transformers, dtype: float32}}
data: {{train: {folder / "train.jsonl"}, val: {folder / "val.jsonl"}}}
lora: {{r: 4, lora_alpha: 8}}
training:
  num_train_epochs: 4
  per_device_train_batch_size: 8
  learning_rate: 5.0e-3
  warmup_steps: 1
  eval_steps: 4
  logging_steps: 4
export: {{quantizations: [q8_0]}}
evaluation: {{limit: 1}}
""",
        encoding="utf-8",
    )
    return config


def tiny_config(folder: Path, base: Path, *overrides: str, n_rows: int = 24) -> Config:
    return load_config(write_tiny_run(folder, base, n_rows=n_rows), overrides)
