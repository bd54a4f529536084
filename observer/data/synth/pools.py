"""What slots are filled with: the lists of `pools/*.txt`, split so that no name of the base appears in the rows.

Of every list 40 % serve the nano base, 50 % train and val, 10 % val alone ("unseen names").
The base also gets made-up words, so that it has to learn to copy instead of to remember.
"""

from __future__ import annotations

import functools
import random
import string
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from observer.schema import EntityType

POOLS = Path(__file__).parent / "pools"
Names = Literal["base", "shared", "unseen"]
_NAMES_CYCLE: tuple[Names, ...] = (
    *("shared", "base", "shared", "base", "shared"),
    *("unseen", "base", "shared", "base", "shared"),
)

SLOT_TYPES: dict[str, EntityType] = {
    "name": EntityType.PERSON,
    "person": EntityType.PERSON,
    "boss": EntityType.PERSON,
    "who": EntityType.PERSON,
    "pet": EntityType.ANIMAL,
    "org": EntityType.ORGANIZATION,
    "school": EntityType.ORGANIZATION,
    "club": EntityType.ORGANIZATION,
    "city": EntityType.PLACE,
    "country": EntityType.PLACE,
    "place": EntityType.PLACE,
    "product": EntityType.PRODUCT,
    "medication": EntityType.PRODUCT,
    "tech": EntityType.TECHNOLOGY,
    "event": EntityType.EVENT,
}
"""Slots not named here hold concepts."""

SECRETS = {"password", "pin", "api_key", "card"}
"""Slots that no gold may ever hold."""
NO_NAMES = SECRETS | {"age", "date", "when", "rel", "species", "she", "She", "her", "her_obj", "hers"}
"""Slots whose values are no names that a split could hold out."""

_WHOLE = {"species"}  # kinds, not names
_MADE_UP_TITLE = {"org", "school", "club", "city", "country", "place", "pet", "product", "tech", "event", "project"}
_MADE_UP_LOWER = {
    *("like", "dislike", "topic", "activity", "condition", "allergen", "medication", "role", "subject", "diet", "pref"),
}
_ONSETS = "b br c ch cl d dr f fl g gr h j k kl l m n p pr qu r s sh sk sl st t tr v w y z".split()
_NUCLEI = "a e i o u a e i o ai ea ou ie".split()
_CODAS = "l m n r s t x nd rk ll ss th".split() + [""] * 12
_SUFFIXES = {
    "org": ["", "", " Systems", " Logistics", " Labs", " & Sons", " Foods", " Group"],
    "school": [" University", " College", " Institute"],
    "club": [" Club", " Choir", " Society", " Union"],
    "place": ["", " Bay", " Valley", " Island"],
    "product": [" X2", " 500", " Pro", "", " Mini"],
    "event": ["", " Festival", "Con", " Summit"],
    "project": ["", " rewrite", " migration"],
}


@dataclass(frozen=True)
class Draw:
    """Draws slot values for one split; the same generator state gives the same values."""

    rng: random.Random
    names: Names

    def value(self, slot: str) -> str:
        """A bare value of the slot, such as `Siemens` for `org`."""
        if SLOT_TYPES.get(slot) is EntityType.PERSON:
            return self.person()
        if slot == "age":
            return str(self.rng.randint(18, 79))
        if slot == "date":
            return f"{self.rng.choice(MONTHS)} {self.rng.randint(1, 28)}"
        if slot in SECRETS:
            return self._secret(slot)
        return self.of_same_kind(slot, 1)[0]

    def unlike(self, slot: str, others: Iterable[str]) -> str:
        """A value that a reader cannot take for one of the others: no word of theirs is in it."""
        taken = {word for other in others for word in other.casefold().split()}
        for _ in range(100):
            value = self.value(slot)
            if not taken & set(value.casefold().split()):
                return value
        raise AssertionError(f"no value of {slot} is unlike {sorted(taken)}")

    def of_same_kind(self, slot: str, count: int) -> list[str]:
        """`count` different values that may replace one another: two phones, two editors, tea and coffee."""
        groups = _groups(slot, self.names)
        large_enough = [group for group in groups if len(group) >= count] or [values(slot, self.names)]
        drawn = self.rng.sample(self.rng.choice(large_enough), count)
        return [self._made_up(slot) or value for value in drawn]

    def person(self, gender: str | None = None) -> str:
        """A name; about a third with a last name."""
        gender = gender or self.rng.choice(["female", "male"])
        first = self.rng.choice(values(f"first_{gender}", self.names))
        last = self.rng.choice(values("last", self.names))
        if self.names == "base" and self.rng.random() < 0.6:
            first = self.word().capitalize()
            last = self.word().capitalize()
        return f"{first} {last}" if self.rng.random() < 0.3 else first

    def _secret(self, slot: str) -> str:
        """Something nobody should paste: random, so that it opens nothing."""
        digits = "".join(self.rng.choices(string.digits, k=16))
        letters = "".join(self.rng.choices(string.ascii_letters + string.digits, k=20))
        if slot == "pin":
            return digits[: self.rng.choice([4, 4, 6])]
        if slot == "card":
            return " ".join(digits[k : k + 4] for k in range(0, 16, 4))
        if slot == "api_key":
            return self.rng.choice(["sk-", "api_", "ghp_", "tok-", ""]) + letters
        mark = self.rng.choice("!#_-.$")
        return f"{self.word().capitalize()}{mark}{self.word()}{digits[:2]}"

    def _made_up(self, slot: str) -> str | None:
        if self.names != "base":
            return None
        if slot in _MADE_UP_TITLE and self.rng.random() < 0.6:
            words = [self.word().capitalize() for _ in range(self.rng.choice([1, 1, 2]))]
            return " ".join(words) + self.rng.choice(_SUFFIXES.get(slot, [""]))
        if slot in _MADE_UP_LOWER and self.rng.random() < 0.35:
            return " ".join(self.word() for _ in range(self.rng.choice([1, 1, 2])))
        return None

    def word(self) -> str:
        syllables = self.rng.choice([1, 2, 2, 2, 3])
        return "".join(self.rng.choice(_ONSETS) + self.rng.choice(_NUCLEI) + self.rng.choice(_CODAS)
                       for _ in range(syllables))  # fmt: skip


MONTHS = "January February March April May June July August September October November December".split()


@functools.cache
def _lines(slot: str) -> list[str]:
    return (POOLS / f"{slot}.txt").read_text(encoding="utf-8").split("\n")[:-1]


@functools.cache
def values(slot: str, names: Names) -> list[str]:
    return [value for group in _groups(slot, names) for value in group]


@functools.cache
def _groups(slot: str, names: Names) -> list[list[str]]:
    """Values grouped by what may replace what; a `kind<TAB>value` list by kind, pairs as pairs."""
    kinds: dict[str, list[str]] = {}
    pairs = slot == "pref"
    for k, line in enumerate(_lines(slot)):
        if slot not in _WHOLE and _NAMES_CYCLE[k % 10] != names:
            continue
        left, _, right = line.partition("\t")
        if pairs:
            kinds[str(k)] = [left, right]
        elif slot in ("product", "tech"):
            kinds.setdefault(left, []).append(right)
        else:
            kinds.setdefault("", []).append(left)
    return list(kinds.values())
