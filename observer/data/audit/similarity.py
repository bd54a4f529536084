"""Near-duplicate texts: MinHash proposes pairs, the exact Jaccard similarity of their shingles decides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

NEAR = 0.8
SHORT_WORDS = 8
DEFINITION = (
    "Near-duplicates: the whole exchange (earlier turns, user turn, reply) lower-cased and reduced to its words; "
    f"Jaccard similarity of the sets of word 3-shingles at least {NEAR}. Where either text has fewer than "
    f"{SHORT_WORDS} words, both are compared by character 4-grams instead. MinHash LSH (datasketch, 128 permutations, "
    "32 bands of 4) proposes the pairs, and each is confirmed by the exact similarity."
)
_BANDS, _BAND_ROWS = 32, 4  # a pair at 0.8 is missed once in twenty million: (1 - 0.8^4)^32
_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Lower-cased words; a text without any (an emoji) is one word of its own."""
    return _WORD.findall(text.casefold()) or [text.strip()]


def word_shingles(words: Sequence[str]) -> frozenset[str]:
    return frozenset(" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def character_shingles(words: Sequence[str]) -> frozenset[str]:
    text = " ".join(words)
    return frozenset(text[i : i + 4] for i in range(max(1, len(text) - 3)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def similarity(a: Sequence[str], b: Sequence[str]) -> float:
    """Of two texts' words: by word 3-shingles, or by character 4-grams where one is short."""
    shingle = character_shingles if min(len(a), len(b)) < SHORT_WORDS else word_shingles
    return jaccard(shingle(a), shingle(b))


def near_duplicates(known: Sequence[str], checked: Sequence[str]) -> dict[int, tuple[int, float]]:
    """Index of a checked text -> index of the most similar known text and their similarity, at least NEAR."""
    known_words, checked_words = [words_of(text) for text in known], [words_of(text) for text in checked]
    found: dict[int, tuple[int, float]] = {}
    for i, candidates in enumerate(_candidates(known_words, checked_words)):
        scored = [(similarity(known_words[j], checked_words[i]), -j) for j in candidates]
        best, minus_j = max(scored, default=(0.0, 0))
        if best >= NEAR:
            found[i] = (-minus_j, best)
    return found


def _candidates(known: Sequence[list[str]], checked: Sequence[list[str]]) -> list[set[int]]:
    """For each checked text the known ones worth comparing; short and somewhat longer texts meet by characters."""
    proposed: list[set[int]] = [set() for _ in checked]
    long, short = (lambda n: n >= SHORT_WORDS), (lambda n: n < 2 * SHORT_WORDS)
    for shingle, belongs in ((word_shingles, long), (character_shingles, short)):
        index = _minhash_lsh()
        for j, minhash in _minhashes({j: shingle(words) for j, words in enumerate(known) if belongs(len(words))}):
            index.insert(j, minhash)
        for i, minhash in _minhashes({i: shingle(words) for i, words in enumerate(checked) if belongs(len(words))}):
            proposed[i] |= set(index.query(minhash))
    return proposed


def _minhash_lsh() -> Any:
    from datasketch import MinHashLSH

    return MinHashLSH(num_perm=_BANDS * _BAND_ROWS, params=(_BANDS, _BAND_ROWS))


def _minhashes(shingles: dict[int, frozenset[str]]) -> Iterator[tuple[int, Any]]:
    from datasketch import MinHash

    encoded = ([shingle.encode() for shingle in sorted(group)] for group in shingles.values())
    return zip(shingles, MinHash.generator(encoded, num_perm=_BANDS * _BAND_ROWS, seed=1), strict=True)
