"""An importance matrix as a GGUF, as llama.cpp's imatrix tool writes it and its quantizer reads it.

Format: https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/imatrix.cpp (`save_imatrix`). Measuring one
is `imatrix`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from observer.errors import ObserverError, raise_all
from observer.files import atomic_path
from observer.weights.gguf_header import read_header

Sums = npt.NDArray[np.float32]
_SUMS, _COUNT = ".in_sum2", ".counts"
_FIX = "compute it again, or write it with llama-imatrix --output-format gguf"


@dataclass(frozen=True)
class Imatrix:
    """By tensor name: the squared inputs of each column summed over all tokens, and how many tokens these were."""

    sums: dict[str, Sums]
    counts: dict[str, int]
    n_rows: int

    def mean_squares(self, name: str) -> Sums:
        """(columns,): what the quantizer is given."""
        return self.sums[name] / np.float32(self.counts[name])


def write_imatrix(imatrix: Imatrix, out: Path, *, datasets: Sequence[str] = ()) -> Path:
    """Write the GGUF that `llama-quantize --imatrix` reads. Our rows are its chunks, of this length on average."""
    with atomic_path(out) as temporary, contextlib.closing(_Writer(temporary, arch="")) as writer:
        writer.add_type(gguf.GGUFType.IMATRIX)
        writer.add_array(gguf.Keys.IMatrix.DATASETS, list(datasets) or [""])
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, imatrix.n_rows)
        n_tokens = max(imatrix.counts.values())
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, max(1, round(n_tokens / imatrix.n_rows)))
        for name in sorted(imatrix.sums):
            writer.add_tensor(name + _SUMS, imatrix.sums[name].reshape(1, -1))
            writer.add_tensor(name + _COUNT, np.array([[imatrix.counts[name]]], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return out


def read_imatrix(path: Path) -> Imatrix:
    """Read ours or llama.cpp's. Raises ObserverError for what is neither, or not whole."""
    metadata = read_header(path).metadata
    if metadata.get("general.type") != gguf.GGUFType.IMATRIX:
        raise ObserverError(f"{path}: general.type is {metadata.get('general.type')!r}, not 'imatrix'; {_FIX}")
    try:
        tensors = {tensor.name: np.array(tensor.data).reshape(-1) for tensor in gguf.GGUFReader(path).tensors}
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise ObserverError(f"{path}: cut short ({error}); {_FIX}") from error
    names = sorted(name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS))
    pairs = {name: (tensors[name + _SUMS], tensors.get(name + _COUNT)) for name in names}
    faults = [
        f"{path}: {name} is no row of sums with its count; {_FIX}" for name in names if not _is_sound(*pairs[name])
    ]
    raise_all(faults or ([] if names else [f"{path}: holds no sums; {_FIX}"]))
    counts = {name: round(tensors[name + _COUNT].item()) for name in names}
    chunks = int(metadata.get(gguf.Keys.IMatrix.CHUNK_COUNT, 0))
    return Imatrix({name: sums for name, (sums, _) in pairs.items()}, counts, chunks)


class _Writer(gguf.GGUFWriter):
    """An imatrix names no architecture."""

    def add_architecture(self) -> None:
        pass


def _is_sound(sums: npt.NDArray[Any], counts: npt.NDArray[Any] | None) -> bool:
    """Sums of squares, of one token or more."""
    is_count = counts is not None and counts.size == 1 and np.isfinite(counts[0]) and counts[0] >= 1
    return bool(is_count and (np.isfinite(sums) & (sums >= 0)).all())
