"""The fenced blocks, links and headings of the Markdown pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from observer.paths import PROJECT_ROOT

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_INLINE_CODE = re.compile(r"`[^`\n]*`")


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


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    n_fences = len(re.findall(r"^ *```", text, re.MULTILINE))
    assert n_fences == 2 * len(found), f"{page}: a fence has no end"
    return [
        Block(page, text.count("\n", 0, match.start("text")) + 1, match["language"], _dedent(match)) for match in found
    ]


def _dedent(match: re.Match[str]) -> str:
    return re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)


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


def prose_of(page: Path) -> str:
    """The text without its code."""
    return _INLINE_CODE.sub("", _FENCE.sub("", page.read_text(encoding="utf-8")))


def links_of(page: Path) -> list[str]:
    return _LINK.findall(prose_of(page))


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    anchors: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        n_before = sum(
            other == anchor or re.fullmatch(f"{re.escape(anchor)}-\\d+", other) is not None for other in anchors
        )
        anchors.add(f"{anchor}-{n_before}" if n_before else anchor)
    return anchors
