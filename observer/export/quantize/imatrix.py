"""The importance matrix of our own rows: how large the inputs of every column of every layer are.

The quantizer weighs its errors by it. Measured with forward hooks on the merged model.
Algorithm: https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/imatrix.cpp (`collect_imatrix`): as there,
the linear layers only, not the output.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from observer.config import Config
from observer.console.progress import show_progress
from observer.data.dataset import read_part, read_rows
from observer.errors import ObserverError, raise_all
from observer.export.quantize.imatrix_file import Imatrix, write_imatrix
from observer.runs.finished_run import Run
from observer.training.rows import encode_with, tokenize_rows
from observer.weights.checkpoint import gguf_names, read_shape
from observer.weights.tokenizer import read_tokenizer

if TYPE_CHECKING:
    import torch

_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Calibration:
    """What an importance matrix is measured on: a sample of rows, split or raw; of the files after the first, which
    are raw, those that are not held out."""

    files: tuple[Path, ...]
    n_rows: int = Config().export.imatrix_rows
    seed: int = Config().run.seed
    device: str = "cpu"

    @property
    def inputs(self) -> dict[str, Any]:
        """All that the sample depends on, for the manifest."""
        files = {f"rows {number}": path for number, path in enumerate(self.files)}
        return {"n_rows": self.n_rows, "seed": self.seed, **files}

    def read(self) -> list[dict[str, Any]]:
        """All rows. Raises ObserverError naming every faulty line."""
        first, *more = self.files
        return [*read_rows(first), *(row for path in more for row in read_part(path, "train"))]


def calibration_of(run: Run, device: str = "cpu") -> Calibration:
    """On a run's own training rows; as many as usual where the run itself wants no importance matrix."""
    n_rows = run.config.export.imatrix_rows or Calibration.n_rows
    return Calibration(run.train_files, n_rows, run.config.run.seed, device)


def sample_rows(rows: Sequence[Sequence[int]], n_rows: int, seed: int) -> list[Sequence[int]]:
    """At most `n_rows` of them, the same for the same seed."""
    return random.Random(seed).sample(rows, min(n_rows, len(rows)))


def measure_imatrix(calibration: Calibration, merged: Path, out: Path) -> int:
    """Write the imatrix of the folder `merged` on these rows to `out`; return how many they are."""
    tokenizer = read_tokenizer(merged)
    rows = [row.input_ids for row in tokenize_rows(calibration.read(), encode_with(tokenizer))]
    sample = sample_rows(rows, calibration.n_rows, calibration.seed)
    imatrix = compute_imatrix(merged, sample, device=calibration.device)
    write_imatrix(imatrix, out, datasets=[str(path) for path in calibration.files])
    return len(sample)


def compute_imatrix(merged: Path, rows: Sequence[Sequence[int]], *, device: str = "cpu") -> Imatrix:
    """Run the folder `merged` over token ids (prompt and completion) and sum what enters its linear layers.

    In float32 on a CPU, else in the stored precision; sums are kept in float64. Raises ObserverError without
    rows, and for a model whose activations are not finite.
    """
    import torch

    if not any(len(row) for row in rows):
        raise ObserverError(f"{merged}: no rows for an importance matrix; give training rows")
    body, names = _load_body(merged, device)
    sums: dict[str, torch.Tensor] = {}
    is_token = torch.empty(0, dtype=torch.bool)

    def record(name: str, inputs: torch.Tensor) -> None:
        squares = inputs[is_token].float().square().sum(0).double()
        sums[name] = sums[name] + squares if name in sums else squares

    for module, name in names.items():
        body.get_submodule(module).register_forward_pre_hook(lambda _, args, name=name: record(name, args[0]))
    n_tokens = sum(len(row) for row in rows)
    with torch.inference_mode(), show_progress("importance matrix, tokens", n_tokens) as show:
        done = 0
        for batch in _batches(rows):
            ids, is_token = _pad(batch, device)
            body(input_ids=ids, attention_mask=is_token.long(), use_cache=False)
            done += int(is_token.sum())
            show(done, n_tokens)
    result = Imatrix({name: t.float().cpu().numpy() for name, t in sums.items()}, dict.fromkeys(sums, done), len(rows))
    wrong = [name for name, values in result.sums.items() if not np.isfinite(values).all()]
    raise_all([f"{merged}: the inputs of {name} are not finite; check the merged model" for name in wrong])
    return result


def _load_body(merged: Path, device: str) -> tuple[Any, dict[str, str]]:
    """The model without its head, and module -> GGUF name of its linear layers."""
    import torch
    from transformers import AutoModel

    dtype = torch.float32 if device == "cpu" else "auto"
    body = AutoModel.from_pretrained(
        str(merged), dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    known, layers = gguf_names(read_shape(merged)), body.named_modules()
    names = {name: known[f"model.{name}.weight"] for name, layer in layers if isinstance(layer, torch.nn.Linear)}
    return body.eval().to(device), names


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Rows of about one length together, each batch of about `_BATCH_TOKENS` with its padding."""
    batch: list[Sequence[int]] = []
    for row in sorted((row for row in rows if len(row)), key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _pad(rows: list[Sequence[int]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the right, and where the tokens are."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([torch.tensor(row, device=device) for row in rows], batch_first=True)
    is_token = pad_sequence([torch.ones(len(row), dtype=torch.bool, device=device) for row in rows], batch_first=True)
    return ids, is_token
