"""The context that rows are decoded in: instructions that prompts begin with, decoded once, and cells for the rows."""

from __future__ import annotations

from collections.abc import Sequence

from llama_cpp import llama_supports_gpu_offload

from observer.engine.llama_context import LlamaContext
from observer.engine.llama_model import LlamaModel

_CELLS_STEP = 1024
"""The cache grows by so many cells, since opening it anew decodes the instructions again."""
_MOST_CELLS = 32_768 if llama_supports_gpu_offload() else 2048
"""What rows may share, unless one alone needs more. Long rows go fewer at a time: on a CPU each token passes over the
cells of all rows, and a dozen tokens a call keep it busy; on a GPU 3.5 GiB at 0.6B's shape is the bound."""


class InstructedContext:
    """Opened when it is first needed, and anew when it must be larger. Instruction `n` is held by sequence `n`."""

    def __init__(self, model: LlamaModel, instructions: Sequence[Sequence[int]], n_rows: int, n_threads: int) -> None:
        self._model, self._instructions, self._n_threads = model, instructions, n_threads
        self.sequences = range(len(instructions), len(instructions) + n_rows)
        self._context: LlamaContext | None = None
        self.n_cells = 0

    def close(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context, self.n_cells = None, 0

    def ready(self, n_cells: int, n_longest: int) -> LlamaContext:
        """The context, with nothing of an earlier call beside the instructions.

        `n_cells` are those that all rows of a call would share, `n_longest` those of one, which it gets at the least.
        """
        n_cells = max(n_longest, min(n_cells, _MOST_CELLS))
        context = self._context
        if context is None or n_cells > self.n_cells:
            context = self._open(n_cells)
        for sequence in self.sequences:
            context.release(sequence)  # what an interrupted call left
        return context

    def _open(self, n_cells: int) -> LlamaContext:
        self.close()
        n_instructions = sum(map(len, self._instructions))
        n_ctx = -(-(n_cells + n_instructions) // _CELLS_STEP) * _CELLS_STEP
        context = self._context = LlamaContext(
            self._model, n_ctx=n_ctx, n_seq_max=self.sequences.stop, n_threads=self._n_threads, flash_attn=True
        )
        for sequence, tokens in enumerate(self._instructions):
            context.hold(sequence, tokens)
        self.n_cells = n_ctx - n_instructions
        return context
