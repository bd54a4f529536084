"""A model that only says what its list holds already may do so until its bound: the list ends before that.

One item said twice does not end it: weak models do that, and go on to what is new.
"""

from __future__ import annotations

import json

_LISTS = (('{"entities":[', '],"relationships":['), ('],"relationships":[', "]}"))
"""What a list of our compact JSON begins with, and what ends it."""
_REPEATS = 2
"""Items that are none of them new, one after the other."""


def without_repeats(answer: str) -> str | None:
    """A beginning of the answer, its last list ended before items that are all there already; None without such."""
    place, decoder = 0, json.JSONDecoder()
    for start, end in _LISTS:
        if not answer.startswith(start, place):
            return None
        place += len(start)
        seen: set[str] = set()
        n_repeats, kept = 0, place
        while answer.startswith("{", place):
            try:
                _, after = decoder.raw_decode(answer, place)
            except ValueError:  # not yet whole
                return None
            item = answer[place:after]
            n_repeats = n_repeats + 1 if item in seen else 0
            kept = kept if n_repeats else after
            if n_repeats == _REPEATS:
                return answer[:kept] + end
            seen.add(item)
            place = after + answer.startswith(",", after)
    return None
