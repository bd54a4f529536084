"""Relationships laid out as a tree from left to right, in which no line, name or label can cover another.

Each pair of names is joined once, by a line for each relationship between the two. A name that is met a second time is
drawn again, dashed, where it is met: so any graph stays a tree. Lengths are in SVG units, pixels at full size.
"""

from __future__ import annotations

import textwrap
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import regex
from rich.cells import cell_len

from observer.demo.highlight import visible
from observer.observation import ObservedRelationship
from observer.schema import USER

MAX_LINE_CHARACTERS, MAX_NAME_LINES, MAX_LABEL_CHARACTERS = 18, 3, 24
LINE_HEIGHT, NODE_PADDING, LANE_HEIGHT, ROW_GAP, MARGIN = 16.0, 14.0, 36.0, 10.0, 4.0
FAN, ARROW = 28.0, 12.0
"""How far lines run to part from one another, and the room before and behind a label."""
NAME_SIZE, LABEL_SIZE = 7.8, 7.4
"""Width of a character, on average and a little over."""


@dataclass(frozen=True)
class Node:
    """`x`, `y` is the upper left corner. `is_again`: this name is drawn elsewhere too."""

    lines: list[str]
    type: str
    is_again: bool
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Edge:
    """`path` is SVG, from left to right; the arrow is at its end when `is_forward`, else at its start."""

    path: str
    label: str
    when: str
    temporal: str
    is_forward: bool
    x: float
    y: float


@dataclass(frozen=True)
class Graph:
    """`sentence` tells the whole graph in words, for those who do not see it."""

    nodes: list[Node]
    edges: list[Edge]
    width: float
    height: float
    sentence: str


@dataclass
class _Branch:
    """A name, its lines to the name at its left (none at a root), and what hangs on it."""

    name: str
    lines: list[ObservedRelationship] = field(default_factory=list)
    children: list[_Branch] = field(default_factory=list)
    is_again: bool = False

    @property
    def height(self) -> float:
        return max(NODE_PADDING + LINE_HEIGHT * len(_name_lines(self.name)), LANE_HEIGHT * len(self.lines))

    @property
    def band(self) -> float:
        """The height that it takes with all that hangs on it."""
        return max(self.height + ROW_GAP, sum(child.band for child in self.children))


def lay_out(relationships: Sequence[ObservedRelationship], types: Mapping[str, str]) -> Graph:
    """`types` are those of names, where they are known."""
    roots = _trees(relationships)
    drawing = _Drawing(types, _columns(roots))
    top = MARGIN
    for root in roots:
        drawing.place(root, 0, top)
        top += root.band
    width = max((node.x + node.width for node in drawing.nodes), default=0.0) + MARGIN
    sentence = "; ".join(_sentence(line) for line in relationships)
    return Graph(drawing.nodes, drawing.edges, width, top + MARGIN, sentence)


@dataclass
class _Drawing:
    """What is drawn so far. `columns` is where the names of each depth begin."""

    types: Mapping[str, str]
    columns: Sequence[float]
    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    def place(self, branch: _Branch, depth: int, top: float) -> float:
        """Draw the branch into its band, and return the height of its middle."""
        x, middle = self.columns[depth], top + branch.band / 2
        width, type_ = _name_width(branch.name), self.types.get(branch.name, "")
        corner, lines = middle - branch.height / 2, _name_lines(branch.name)
        self.nodes.append(Node(lines, type_, branch.is_again, x, corner, width, branch.height))
        below = middle - sum(child.band for child in branch.children) / 2
        for child in branch.children:
            end = (self.columns[depth + 1], self.place(child, depth + 1, below))
            self.edges.extend(_edges(branch.name, child, (x + width, middle), end))
            below += child.band
        return middle


def _trees(relationships: Sequence[ObservedRelationship]) -> list[_Branch]:
    """Breadth first from User, then from whichever name has most lines among those not reached."""
    pairs: dict[frozenset[str], list[ObservedRelationship]] = {}
    for line in relationships:
        pairs.setdefault(frozenset({line.subject, line.object}), []).append(line)
    degree = Counter(name for pair in pairs for name in pair)
    reached: set[str] = set()
    roots = []
    for name, _ in sorted(degree.items(), key=lambda item: (item[0] != USER, -item[1])):
        if name not in reached:
            roots.append(_tree(name, pairs, reached))
    return roots


def _tree(name: str, pairs: dict[frozenset[str], list[ObservedRelationship]], reached: set[str]) -> _Branch:
    """Takes the pairs that it draws out of `pairs`, and adds its names to `reached`."""
    root = _Branch(name)
    reached.add(name)
    waiting = deque([root])
    while waiting:
        branch = waiting.popleft()
        for pair in [pair for pair in pairs if branch.name in pair]:
            other = next(iter(pair - {branch.name}), branch.name)
            child = _Branch(other, pairs.pop(pair), is_again=other in reached)
            branch.children.append(child)
            if not child.is_again:
                reached.add(other)
                waiting.append(child)
    return root


def _columns(roots: Sequence[_Branch]) -> list[float]:
    """Each wide enough for its names, each gap for its labels."""
    name_widths: dict[int, float] = {}
    gaps: dict[int, float] = {}
    for branch, depth in _walk(roots):
        name_widths[depth] = max(name_widths.get(depth, 0), _name_width(branch.name))
        labels = [text for line in branch.lines for text in (_label(line), _when(line))]
        gap = FAN + 2 * ARROW + LABEL_SIZE * max(map(cell_len, labels), default=0)
        gaps[depth] = max(gaps.get(depth, 0), gap)
    starts = [MARGIN]
    for depth, deeper in pairwise(sorted(name_widths)):
        starts.append(starts[-1] + name_widths[depth] + gaps[deeper])
    return starts


def _walk(branches: Sequence[_Branch], depth: int = 0) -> Iterator[tuple[_Branch, int]]:
    for branch in branches:
        yield branch, depth
        yield from _walk(branch.children, depth + 1)


def _edges(name: str, child: _Branch, start: tuple[float, float], end: tuple[float, float]) -> Iterator[Edge]:
    """A line for each relationship, one above the other: a curve out of the crowd, then straight under its label."""
    (x, y), (to_x, to_y) = start, end
    for number, line in enumerate(child.lines):
        lane = to_y + LANE_HEIGHT * (number - (len(child.lines) - 1) / 2)
        path = f"M{x:.1f} {y:.1f}C{x + FAN / 2:.1f} {y:.1f} {x + FAN / 2:.1f} {lane:.1f} {x + FAN:.1f} {lane:.1f}"
        yield Edge(
            path=f"{path}H{to_x:.1f}",
            label=_label(line),
            when=_when(line),
            temporal=str(line.temporal),
            is_forward=line.subject == name,
            x=x + FAN + ARROW / 2,
            y=lane,
        )


def _label(line: ObservedRelationship) -> str:
    return str(line.predicate).replace("_", " ").lower()


def _when(line: ObservedRelationship) -> str:
    return _cut(visible(line.when or ""), MAX_LABEL_CHARACTERS)


def _sentence(line: ObservedRelationship) -> str:
    when = f", {visible(line.when)}" if line.when else ""
    return f"{visible(line.subject)} {_label(line)} {visible(line.object)} ({line.temporal}{when})"


def _name_lines(name: str) -> list[str]:
    """The name broken at its blanks, and cut where even that is too long."""
    lines = textwrap.wrap(visible(name), MAX_LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False) or [""]
    if len(lines) > MAX_NAME_LINES:
        lines = [*lines[: MAX_NAME_LINES - 1], " ".join(lines[MAX_NAME_LINES - 1 :])]
    return [_cut(line, MAX_LINE_CHARACTERS) for line in lines]


def _name_width(name: str) -> float:
    return NAME_SIZE * max(map(cell_len, _name_lines(name))) + 22


def _cut(text: str, n_characters: int) -> str:
    characters = regex.findall(r"\X", text)
    return text if len(characters) <= n_characters else "".join(characters[: n_characters - 1]) + "…"
