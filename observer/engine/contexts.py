"""The two contexts of an engine: one that reads the rows, a few at a time, and one in which those that write stay.

A token passes over all cells of its context, and from 64 a call on it is computed for those of other rows as well. So
what is read is read beside little else, and a row that writes has its own part of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from llama_cpp import llama_supports_gpu_offload

from observer.engine.llama_context import LlamaContext
from observer.engine.llama_model import LlamaModel

_STEP = 256
"""The caches grow by so many cells, since opening one anew takes time."""
_MOST_READ = 8192 if llama_supports_gpu_offload() else 1024
"""Cells that rows share which are read together, unless one alone needs more."""
_MOST_BYTES = 1 << 30
"""What the rows that write may take of memory, unless one alone needs more."""


class _Context:
    """Opened when it is first needed, and anew when it must be larger."""

    _context: LlamaContext | None = None

    @property
    def context(self) -> LlamaContext:
        """As `ready` left it."""
        assert self._context is not None
        return self._context

    def close(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context = None


class ReadingContext(_Context):
    """Instructions that prompts begin with, decoded once, and `slots` of sequences for as many rows.

    Instruction `n` is held by sequence `n`.
    """

    def __init__(
        self, model: LlamaModel, instructions: Sequence[Sequence[int]], n_rows: int, n_branches: int, n_threads: int
    ) -> None:
        self._model, self._instructions, self._n_threads = model, instructions, n_threads
        own = range(len(instructions), len(instructions) + n_rows * n_branches)
        self.slots = [own[first : first + n_branches] for first in range(0, len(own), n_branches)]
        self._n_sequences = own.stop
        self.n_cells = 0

    def ready(self, n_cells: int, n_longest: int) -> Self:
        """With nothing of an earlier call beside the instructions.

        `n_cells` are those that all rows of a call would share, `n_longest` those of one, which it gets at the least.
        """
        n_cells = max(n_longest, min(n_cells, _MOST_READ))
        if self._context is None or n_cells > self.n_cells:
            self._open(n_cells)
        for slot in self.slots:
            self.release(slot)  # what an interrupted call left
        return self

    def release(self, slot: Sequence[int]) -> None:
        for sequence in slot:
            self.context.release(sequence)

    def n_writing(self, n_cells: int) -> int:
        """How many rows of so many cells may write at once."""
        n_bytes = n_cells * self.context.n_bytes(0) / len(self._instructions[0])
        return max(1, int(_MOST_BYTES / n_bytes)) if n_cells else 0

    def _open(self, n_cells: int) -> None:
        self.close()
        n_instructions = sum(map(len, self._instructions))
        n_ctx = _in_steps(n_cells + n_instructions)
        self._context = LlamaContext(
            self._model, n_ctx=n_ctx, n_seq_max=self._n_sequences, n_threads=self._n_threads, flash_attn=True
        )
        for sequence, tokens in enumerate(self._instructions):
            self._context.hold(sequence, tokens)
        self.n_cells = n_ctx - n_instructions


class WritingContext(_Context):
    """A cache of its own for each of `n_rows` rows.

    Those of a model with a sliding window share one: what is copied is then two caches' state, of which each goes only
    to one with as many parts.
    """

    def __init__(self, model: LlamaModel, n_threads: int) -> None:
        self._model, self._n_threads = model, n_threads
        self._n_open = self._n_cells = 0
        self.n_rows = 0

    def ready(self, n_rows: int, n_cells: int) -> Self:
        """For so many rows, none for a call that writes nothing, each of at most `n_cells` tokens."""
        self.n_rows = n_rows
        if n_rows and (self._context is None or n_rows > self._n_open or n_cells > self._n_cells):
            self.close()
            self._n_open, self._n_cells = n_rows, _in_steps(n_cells)
            self._context = LlamaContext(
                self._model,
                n_ctx=n_rows * self._n_cells,
                n_seq_max=n_rows,
                n_threads=self._n_threads,
                flash_attn=True,
                shared=self._model.has_window,
            )
        return self


def _in_steps(n_cells: int) -> int:
    return -(-n_cells // _STEP) * _STEP
