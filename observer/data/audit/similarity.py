"""Near-duplicate texts, by the Jaccard similarity of the sets of their shingles."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NEAR = 0.8
SHORT_WORDS = 8
DEFINITION = (
    "Near-duplicates: the whole exchange (earlier turns, user turn, reply) lower-cased and reduced to its words; "
    f"Jaccard similarity of the sets of word 3-shingles at least {NEAR}. Where either text has fewer than "
    f"{SHORT_WORDS} words, both are compared by character 4-grams instead."
)
_ROWS_AT_ONCE = 1_000
_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Lower-cased words; a text without any (an emoji) is one word of its own."""
    return _WORD.findall(text.casefold()) or [text.strip()]


def word_shingles(words: Sequence[str]) -> frozenset[str]:
    return frozenset(" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def character_shingles(words: Sequence[str]) -> frozenset[str]:
    text = " ".join(words)
    return frozenset(text[i : i + 4] for i in range(max(1, len(text) - 3)))


def near_duplicates(known: Sequence[str], checked: Sequence[str]) -> dict[int, tuple[int, float]]:
    """Index of a checked text -> index of the most similar known text and their similarity, at least NEAR."""
    words = [words_of(text) for text in known], [words_of(text) for text in checked]
    long, short = range(SHORT_WORDS, 10**9), range(2 * SHORT_WORDS)  # one of twice the words is not near
    best: dict[int, tuple[float, int]] = {}
    for shingles, lengths in ((word_shingles, long), (character_shingles, short)):
        sets = ({i: shingles(own) for i, own in enumerate(texts) if len(own) in lengths} for texts in words)
        for j, i, similarity in _similar(*sets):
            is_either_short = min(len(words[0][j]), len(words[1][i])) < SHORT_WORDS
            if is_either_short == (lengths is short):
                best[i] = max(best.get(i, (0.0, 0)), (similarity, -j))
    return {i: (-minus_j, similarity) for i, (similarity, minus_j) in sorted(best.items())}


def _similar(
    known: Mapping[int, frozenset[str]], checked: Mapping[int, frozenset[str]]
) -> Iterator[tuple[int, int, float]]:
    """(known, checked, similarity) of every pair of sets that are near."""
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    if not known or not checked:
        return
    vectorizer: Any = CountVectorizer(analyzer=tuple)  # type: ignore[arg-type]
    known_rows, rows = vectorizer.fit_transform(known.values()), vectorizer.transform(checked.values())
    known_sizes, sizes = (np.array([len(shingles) for shingles in sets.values()]) for sets in (known, checked))
    names, checked_names = list(known), list(checked)
    for start in range(0, len(sizes), _ROWS_AT_ONCE):
        shared = (rows[start : start + _ROWS_AT_ONCE] @ known_rows.T).tocoo()
        i, j = start + shared.row, shared.col
        similarity = shared.data / (sizes[i] + known_sizes[j] - shared.data)
        for hit in np.flatnonzero(similarity >= NEAR):
            yield names[j[hit]], checked_names[i[hit]], float(similarity[hit])
