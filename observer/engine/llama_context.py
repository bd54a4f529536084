"""llama.cpp's C interface in Python's terms: a cache of keys and values, tokens in, logits out.

What to decode, and when, is `engine`'s.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
import numpy.typing as npt

from observer.engine.llama_model import LlamaModel, last_errors
from observer.errors import ObserverError

Logits = npt.NDArray[np.float32]
_BATCH_TOKENS = 2048
BATCH_OUTPUTS = 128
"""Rows of logits a decode call may ask for; each takes the vocabulary in floats."""


class BatchToken(NamedTuple):
    """One token of a decode call; it is added to every sequence named."""

    token: int
    position: int
    sequences: tuple[int, ...]
    wants_logits: bool = False


class LlamaContext:
    """A KV cache of `n_ctx` cells: up to `n_seq_max` sequences share it or, if not `shared`, have equal parts of it.

    `flash_attn` leaves the cells of other sequences out instead of masking what was computed from them, which makes
    many sequences faster; on a CPU it adds the values up in float16 in passes of fewer than 64 tokens.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        n_ctx: int,
        n_seq_max: int,
        n_threads: int,
        flash_attn: bool = False,
        shared: bool = True,
    ) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = _BATCH_TOKENS
        params.n_seq_max = n_seq_max
        params.n_threads = params.n_threads_batch = n_threads
        params.kv_unified = shared
        params.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attn else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.no_perf = True
        self.handle: Any = llama_cpp.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise ObserverError(
                f"{model.path}: no memory for a context of {n_ctx:,} tokens; free some, or shorten the longest row"
            )
        self._model = model
        self._memory: Any = llama_cpp.llama_get_memory(self.handle)
        self._n_parts = 1 if shared else n_seq_max
        self._batch = _Batch(n_seq_max)
        self._shared: dict[int, tuple[int, int]] = {}  # sequence -> whose first tokens it holds, and how many

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_free(self.handle)
            self.handle = None

    def decode(self, tokens: Sequence[BatchToken]) -> Iterator[tuple[int, Logits]]:
        """Decode all tokens; yield (index, logits) for those that want them.

        The logits are a view that the next step of the iteration may overwrite.
        """
        for indices, logits in self.decode_together(tokens):
            yield from zip(indices, logits, strict=True)

    def decode_together(self, tokens: Sequence[BatchToken]) -> Iterator[tuple[list[int], Logits]]:
        """`decode` a call at a time: the indices of the tokens that want logits, and those, (n, vocabulary)."""
        for start, stop in _chunks(tokens):
            self._batch.fill(tokens[start:stop])
            code = llama_cpp.llama_decode(self.handle, self._batch.handle)
            if code != 0:
                raise RuntimeError(f"llama_decode returned {code}: {'; '.join(last_errors())}")
            wanting = [index for index in range(start, stop) if tokens[index].wants_logits]
            self._model.count(stop - start, len(wanting))
            if wanting:
                yield wanting, self._logits(len(wanting))

    def hold(self, sequence: int, tokens: Sequence[int]) -> None:
        """Decode what `sequence` is to share with others."""
        assert not list(self.decode([BatchToken(token, n, (sequence,)) for n, token in enumerate(tokens)]))

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Let `target` hold the first `n_tokens` of `source` and nothing else."""
        held, n_held = self._shared.get(target, (source, 0))
        if held != source or n_held < n_tokens:
            self.clear(target)
            llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, n_tokens)
        llama_cpp.llama_memory_seq_rm(self._memory, target, n_tokens, -1)
        self._shared[target] = (source, n_tokens)

    def release(self, sequence: int) -> None:
        """Forget all but what the sequence shares; the next `share` of as much finds it there."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, self._shared.get(sequence, (0, 0))[1], -1)

    def cut(self, sequence: int, n_tokens: int) -> None:
        """Forget what the sequence holds after its first `n_tokens`, at least as many as it shares."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, n_tokens, -1)

    def copy(self, sequence: int, target: LlamaContext, other: int) -> None:
        """Let the sequence `other` of `target`, which may be this context, hold what `sequence` holds here alone.

        A state begins with a magic number, its sequence and the number of parts of the cache, then for each part how
        many cells of it follow and what is in them (`llama_kv_cache::state_write`). It is taken only by a cache with as
        many parts, so those that `target` has more are added, empty: the one with cells goes where `other` is.
        """
        assert self._n_parts in (1, target._n_parts)
        n_bytes = self.n_bytes(sequence)
        state = np.zeros(n_bytes + 4 * (target._n_parts - self._n_parts), np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        llama_cpp.llama_state_seq_get_data(self.handle, pointer, n_bytes, sequence)  # type: ignore[arg-type]
        n_parts = state[8:12].view(np.uint32)
        assert n_parts == self._n_parts, "llama.cpp's format is another one"
        n_parts[:] = target._n_parts
        if not llama_cpp.llama_state_seq_set_data(target.handle, pointer, len(state), other):  # type: ignore[arg-type]
            raise RuntimeError(f"llama_state_seq_set_data: {'; '.join(last_errors())}")

    def n_bytes(self, sequence: int) -> int:
        """What the keys and values of a sequence take."""
        return llama_cpp.llama_state_seq_get_size(self.handle, sequence)  # type: ignore[arg-type]

    def clear(self, sequence: int) -> None:
        self._shared.pop(sequence, None)
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def _logits(self, n_rows: int) -> Logits:
        """Those of the last call, (n_rows, vocabulary), in the order of its tokens."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.handle), (n_rows, self._model.n_vocab))


class _Batch:
    """llama.cpp's batch over arrays of ours: filling them a token at a time through ctypes is slow."""

    def __init__(self, n_seq_max: int) -> None:
        self._tokens = np.zeros(_BATCH_TOKENS, np.int32)
        self._positions = np.zeros(_BATCH_TOKENS, np.int32)
        self._n_sequences = np.zeros(_BATCH_TOKENS, np.int32)
        self._sequences = np.zeros((_BATCH_TOKENS, n_seq_max), np.int32)
        self._wants_logits = np.zeros(_BATCH_TOKENS, np.int8)
        offsets = np.arange(_BATCH_TOKENS, dtype=np.uintp) * self._sequences.strides[0]
        self._rows = self._sequences.ctypes.data + offsets
        self.handle: Any = llama_cpp.llama_batch()
        self.handle.token = _int32_pointer(self._tokens)
        self.handle.pos = _int32_pointer(self._positions)
        self.handle.n_seq_id = _int32_pointer(self._n_sequences)
        self.handle.seq_id = ctypes.cast(self._rows.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        self.handle.logits = ctypes.cast(self._wants_logits.ctypes.data, ctypes.POINTER(ctypes.c_int8))

    def fill(self, tokens: Sequence[BatchToken]) -> None:
        n = self.handle.n_tokens = len(tokens)
        ids, positions, sequences, wants_logits = zip(*tokens, strict=True)
        self._tokens[:n], self._positions[:n], self._wants_logits[:n] = ids, positions, wants_logits
        self._n_sequences[:n] = [len(shared) for shared in sequences]
        self._sequences[:n, 0] = [shared[0] for shared in sequences]
        for row in np.flatnonzero(self._n_sequences[:n] > 1):
            shared = sequences[row]
            self._sequences[row, : len(shared)] = shared


def _int32_pointer(array: npt.NDArray[np.int32]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))


def _chunks(tokens: Sequence[BatchToken]) -> Iterator[tuple[int, int]]:
    """Ranges that keep within what one decode call may hold and return."""
    start = n_outputs = 0
    for index, item in enumerate(tokens):
        if index - start == _BATCH_TOKENS or (item.wants_logits and n_outputs == BATCH_OUTPUTS):
            yield start, index
            start, n_outputs = index, 0
        n_outputs += item.wants_logits
    if tokens:
        yield start, len(tokens)
