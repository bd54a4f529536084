"""The fenced blocks, links and headings of the Markdown pages."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from observer.paths import PROJECT_ROOT


@dataclass(frozen=True)
class Block:
    """`line` is the number of the first line after the fence."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(PROJECT_ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command and the output that the page shows for it, or None where it shows none."""

    place: str
    text: str
    output: str | None


def pages() -> list[Path]:
    return [PROJECT_ROOT / "README.md", *sorted((PROJECT_ROOT / "docs").rglob("*.md"))]


@cache
def _tokens(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


def blocks_of(page: Path) -> list[Block]:
    lines, blocks = page.read_text(encoding="utf-8").splitlines(), []
    for token in _tokens(page):
        if token.type == "fence":
            assert token.map and lines[token.map[1] - 1].strip() == token.markup, f"{page}: a fence has no end"
            blocks.append(Block(page, token.map[0] + 2, token.info.strip(), token.content))
    return blocks


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a shell block, lines that end in a backslash joined; in `console` they follow a `$ `."""
    is_console = block.language == "console"
    lines = block.text.splitlines()
    at = 0
    while at < len(lines):
        start, line = at, lines[at]
        at += 1
        while line.endswith("\\"):
            line, at = f"{line[:-1]} {lines[at].strip()}", at + 1
        place = f"{block.page.relative_to(PROJECT_ROOT)}:{block.line + start}"
        output: list[str] = []
        if is_console:
            assert line.startswith("$ "), f"{place}: a console block begins with a command after `$ `"
            while at < len(lines) and not lines[at].startswith("$ "):
                output.append(lines[at])
                at += 1
        if line.strip():
            yield Command(place, line.removeprefix("$ "), "\n".join(output) if output else None)


def links_of(page: Path) -> list[str]:
    inside = [child.attrs for token in _tokens(page) for child in token.children or ()]
    return [str(given[name]) for given in inside for name in ("href", "src") if name in given]


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    counts, anchors, tokens = Counter[str](), set[str](), _tokens(page)
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(child.content for child in inline.children or ())
            anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            anchors.add(f"{anchor}-{counts[anchor]}" if counts[anchor] else anchor)
            counts[anchor] += 1
    return anchors
