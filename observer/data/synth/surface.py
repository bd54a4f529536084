"""The surface frames of `frames/*.txt`: sections, families, variants, replies, and which split a family serves.

A file holds `== section` headings; each line below is one family: `[a|b]` its variants, `@tag ` its slices,
`=> reply / reply` replies of its own, `\\n` a line break, `\\[` a bracket. A line `> reply` fits all of the section.
Below `== contrast.TRACK` a line holds one core sentence in the five forms of CONTRAST_FORMS, parted by ` ~ `.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

FRAMES = Path(__file__).parent / "frames"
Split = Literal["train", "val", "base"]
SPLIT_CYCLE: tuple[Split, ...] = ("train", "base", "val", "base", "train", "base", "base")
"""The k-th family of a section serves SPLIT_CYCLE[k % 7]; `base` families only ever teach the nano base."""

CONTRAST_FORMS = {
    # form -> the section that its frames join
    "asserted": "{track}.current",
    "negated": "none.negation",
    "hypothetical": "none.hypothetical",
    "question": "none.question",
    "third": "3p.{track}.current",
}

SLOT = re.compile(r"\{(\w+)\}")
_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_TAG = re.compile(r"@(\w+)\s+")
_ESCAPES = {r"\n": "\n", r"\[": "\ue000", r"\]": "\ue001"}


@dataclass(frozen=True)
class Family:
    """A frame with its close variants; `form` tells the members of a contrast set, which share an id, apart."""

    id: str
    split: Split
    slices: tuple[str, ...]
    variants: tuple[str, ...]
    replies: tuple[str, ...] = ()
    form: str = ""


@dataclass
class Section:
    name: str
    families: list[Family] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)

    def of(self, split: Split) -> list[Family]:
        return self._by_split[split]

    @functools.cached_property
    def _by_split(self) -> dict[Split, list[Family]]:
        return {split: [f for f in self.families if f.split == split] for split in SPLIT_CYCLE}


@functools.cache
def load_sections(folder: Path = FRAMES) -> dict[str, Section]:
    """Every section of the folder's files by name, contrast sets dealt out to the sections they belong to."""
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
    contrasts = [name for name in lines if name.startswith("contrast.")]
    sections = {name: _section(name, content) for name, content in lines.items() if name not in contrasts}
    for name in contrasts:
        for section, family in _contrast_families(name, lines[name]):
            sections[section].families.append(family)
    return sections


def expand(line: str) -> list[str]:
    """All variants of a line with `[a|b]` alternatives."""
    for escape, character in _ESCAPES.items():
        line = line.replace(escape, character)
    parts = _ALTERNATIVES.split(line)  # text, alternatives, text, …
    choices = [part.split("|") if k % 2 else [part] for k, part in enumerate(parts)]
    texts = ("".join(pick).replace("\ue000", "[").replace("\ue001", "]") for pick in itertools.product(*choices))
    return [re.sub(r"(?<=\S)  +", " ", text).strip(" ") for text in texts]  # indentation stays


def _section(name: str, lines: Sequence[str]) -> Section:
    section = Section(name)
    for line in lines:
        if line.startswith(">"):
            section.replies += expand(line[1:].strip())
        else:
            section.families.append(_family(f"{name}/{len(section.families):02d}", len(section.families), line))
    return section


def _contrast_families(name: str, lines: Sequence[str]) -> Iterator[tuple[str, Family]]:
    """(section, family) of every form of every set."""
    track = name.partition(".")[2]
    for index, line in enumerate(lines):
        for (form, section), text in zip(CONTRAST_FORMS.items(), line.split("~"), strict=False):
            if text.strip():
                yield section.format(track=track), _family(f"{name}/{index:02d}", index, text.strip(), form)


def _family(id: str, index: int, line: str, form: str = "") -> Family:
    tags = re.match(r"(?:@\w+\s+)*", line)
    assert tags is not None
    text, _, replies = line[tags.end() :].partition(" => ")
    return Family(
        id=id,
        split=SPLIT_CYCLE[index % len(SPLIT_CYCLE)],
        slices=tuple(_TAG.findall(tags.group())),
        variants=tuple(expand(text)),
        replies=tuple(variant for reply in replies.split(" / ") if reply for variant in expand(reply)),
        form=form,
    )
