"""Our importance matrix beside the one that llama.cpp's own tool computes of the same tokens.

The tool cuts a text into chunks of N_CTX tokens and leaves what remains out; ours gets the same chunks as rows.
Both in float32, the tool's cache too.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from observer.data.dataset import read_rows
from observer.errors import ObserverError
from observer.export.gguf.write import write_gguf
from observer.export.quantize.imatrix import compute_imatrix
from observer.export.quantize.imatrix_file import Imatrix, read_imatrix
from observer.paths import TRAIN_JSONL
from observer.prompts import render_chatml

N_CTX = 256
N_CHUNKS = 40


@dataclass(frozen=True)
class ImatrixAgreement:
    """Over the layers: the largest relative distance of two rows of sums, and of two single columns."""

    n_layers: int
    n_tokens: int
    counts_equal: bool
    largest_distance: float
    largest_column_error: float


def compare_imatrix(model: Path, tool: Path, folder: Path) -> ImatrixAgreement:
    """Compute both of the folder `model` on the first training rows; `tool` is llama.cpp's llama-imatrix."""
    text, chunks = calibration_text(model)
    (folder / "calibration.txt").write_text(text, encoding="utf-8")
    full = write_gguf(model, folder / "imatrix-f32.gguf", "f32", name="model")
    out = folder / "theirs-imatrix.gguf"
    options = (
        f"-c {N_CTX} -b {N_CTX} -ub {N_CTX} --chunks {N_CHUNKS} --parse-special --no-ppl -fa off -ctk f32 -ctv f32"
    )
    command = [tool, "-m", full, "-f", folder / "calibration.txt", "-o", out, *options.split()]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, errors="replace")
    if done.returncode != 0 or not out.exists():
        raise ObserverError(
            f"{tool}: ended with exit code {done.returncode}: {' / '.join(done.stderr.splitlines()[-3:])}"
        )
    return agreement(compute_imatrix(model, chunks), read_imatrix(out))


def calibration_text(model: Path) -> tuple[str, list[list[int]]]:
    """Training rows in a row, and the chunks of token ids that the tool makes of them."""
    from observer.weights.base import load_tokenizer

    tokenizer: Any = load_tokenizer(model)
    text, ids = "", []
    for row in read_rows(TRAIN_JSONL):
        text += render_chatml([*row["prompt"], *row["completion"]], False) + "\n"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] if len(text) > N_CTX * N_CHUNKS * 2 else []
        if len(ids) > N_CTX * N_CHUNKS:
            break
    return text, [ids[start : start + N_CTX] for start in range(0, N_CTX * N_CHUNKS, N_CTX)]


def agreement(ours: Imatrix, theirs: Imatrix) -> ImatrixAgreement:
    """Raises ObserverError when they are not of the same layers."""
    if ours.sums.keys() != theirs.sums.keys():
        raise ObserverError(f"other layers: {sorted(ours.sums.keys() ^ theirs.sums.keys())[:5]}; is it the same model?")
    pairs = [(ours.mean_squares(name).astype(float), theirs.mean_squares(name).astype(float)) for name in ours.sums]
    return ImatrixAgreement(
        n_layers=len(pairs),
        n_tokens=max(ours.counts.values()),
        counts_equal=ours.counts == theirs.counts,
        largest_distance=_largest([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]),
        largest_column_error=_largest([float((np.abs(a - b) / np.maximum(b, 1e-30)).max()) for a, b in pairs]),
    )


def _largest(values: Sequence[Any]) -> float:
    return float(max(values))
