"""How many rows of a GGUF are answered at once, on which threads, and where their keys and values are kept.

Two layouts, for models whose weights stay in the caches of a processor and for larger ones. Two threads in the small
operations of a small model wait for each other more than they compute, so it gains more from a lane on every core.
A large one is bound by reading its weights: all cores read them once for all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from observer.schema import Label

LANE_ROWS = 8
"""Rows that a lane of a small model writes at once: with more, their keys and values leave the core's own cache."""
SMALL_BYTES = 32 << 20
"""Weights of at most this size are taken to stay in the caches: the third level of a server's core complex."""
MAX_SEQUENCES = 256
"""llama.cpp's own limit in one context."""


@dataclass(frozen=True)
class Layout:
    """`n_lanes` threads side by side, each with `n_threads` in llama.cpp and up to `n_seq` rows that it writes at once.

    Passes of several tokens for a lone row take the threads of all lanes, which then have nothing else to do.

    `has_own_cells`: a lane grades one row in a call and starts one in a call, and a row that is written keeps to cells
    of its own; an answer is then the same to the last bit whatever is decoded beside it, as far as the kernels that
    llama.cpp multiplies with give a token the same sums alone and among others (those of q8_0 do, on x86). Otherwise
    all rows share one pool of cells: it is as large as what is in it, and holds the instruction once.
    """

    n_lanes: int
    n_threads: int
    n_seq: int
    has_own_cells: bool

    @property
    def n_graded(self) -> int:
        """Rows that a lane grades in one call."""
        return 1 if self.has_own_cells else self.n_seq


def choose_layout(size_bytes: int, n_threads: int, n_seq: int) -> Layout:
    """The faster one for weights of this size; at most `n_seq` rows at once in all lanes together."""
    if size_bytes > SMALL_BYTES:
        return Layout(1, n_threads, _allowed(n_seq), has_own_cells=False)
    return Layout(n_threads, 1, min(LANE_ROWS, _allowed(-(-n_seq // n_threads))), has_own_cells=True)


def _allowed(n_seq: int) -> int:
    """A row that is graded takes a sequence for every label, beside the instructions'."""
    return max(1, min(n_seq, MAX_SEQUENCES // len(Label) - 1))
