"""What has been said before, in flat memory: a Bloom filter, whose rare false alarm costs a redraw and nothing else."""

from __future__ import annotations

import hashlib

from observer.data.synth.surface import Split
from observer.prompts import row_exchange
from observer.schema import RawRow

BITS = 1 << 28
"""32 MiB: with three million texts one false alarm in some 100,000 questions."""
HASHES = 4


class Seen:
    """Prompts of both splits, and the user turns of each."""

    def __init__(self) -> None:
        self._bits = bytearray(BITS // 8)

    def is_new(self, row: RawRow, split: Split) -> bool:
        """Whether no row has this prompt and no row of the other split this user turn; if so, remember it."""
        other = "val" if split == "train" else "train"
        prompt, turn = f"prompt/{row_exchange(row)}", row.user_message.casefold()
        if self._has(prompt) or self._has(f"{other}/{turn}"):
            return False
        self._add(prompt)
        self._add(f"{split}/{turn}")
        return True

    def _positions(self, text: str) -> list[int]:
        digest = hashlib.blake2b(text.encode(), digest_size=4 * HASHES).digest()
        return [int.from_bytes(digest[k : k + 4]) % BITS for k in range(0, 4 * HASHES, 4)]

    def _has(self, text: str) -> bool:
        return all(self._bits[at >> 3] >> (at & 7) & 1 for at in self._positions(text))

    def _add(self, text: str) -> None:
        for at in self._positions(text):
            self._bits[at >> 3] |= 1 << (at & 7)
