"""The surface frames of `frames/*.txt`: sections, families, variants, replies, and which split a family serves.

A file holds `== section` headings; each line below is one family, `[a|b]` its variants, `@tag ` its slices,
`> ` an assistant reply that fits every frame of the section.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FRAMES = Path(__file__).parent / "frames"
Split = Literal["train", "val", "base"]
SPLIT_CYCLE: tuple[Split, ...] = ("train", "base", "val", "base", "train", "base", "base")
"""The k-th family of a section serves SPLIT_CYCLE[k % 7]; `base` families only ever teach the nano base."""

SLOT = re.compile(r"\{(\w+)\}")
_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_TAG = re.compile(r"@(\w+)\s+")


@dataclass(frozen=True)
class Family:
    """A frame with its close variants."""

    id: str
    split: Split
    slices: tuple[str, ...]
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    name: str
    families: tuple[Family, ...]
    replies: tuple[str, ...]

    def of(self, split: Split) -> list[Family]:
        return [family for family in self.families if family.split == split]


@functools.cache
def load_sections(folder: Path = FRAMES) -> dict[str, Section]:
    """Every section of the folder's files by name."""
    lines: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.txt")):
        name = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("== "):
                name = line[3:].strip()
                assert name not in lines, f"{path.name}: section {name} appears twice"
                lines[name] = []
            elif line.strip():
                lines[name].append(line.strip())
    return {name: _section(name, content) for name, content in lines.items()}


def expand(line: str) -> list[str]:
    """All variants of a line with `[a|b]` alternatives."""
    parts = _ALTERNATIVES.split(line)  # text, alternatives, text, …
    choices = [part.split("|") if k % 2 else [part] for k, part in enumerate(parts)]
    return [re.sub(r"  +", " ", "".join(pick)).strip() for pick in itertools.product(*choices)]


def _section(name: str, lines: Sequence[str]) -> Section:
    families: list[Family] = []
    for line in (text for text in lines if not text.startswith(">")):
        slices = tuple(_TAG.findall(re.match(r"(?:@\w+\s+)*", line).group()))  # type: ignore[union-attr]
        text = re.sub(r"^(?:@\w+\s+)*", "", line)
        index = len(families)
        split = SPLIT_CYCLE[index % len(SPLIT_CYCLE)]
        families.append(Family(f"{name}/{index:02d}", split, slices, tuple(expand(text))))
    replies = [reply for text in lines if text.startswith(">") for reply in expand(text[1:].strip())]
    return Section(name, tuple(families), tuple(replies))
