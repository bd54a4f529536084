"""How rows become a batch: a forest, in which every shared beginning stands once and nothing is padded.

A tree has up to three levels: an instruction, the exchanges that follow it, and what follows an exchange, which is the
cue and the answer of each task asked of it. A row of an exchange that no other row shares is one piece of the second
level. A token sees the pieces its row is made of, up to itself, which `attention` computes; all else in the model
treats tokens one by one. So loss and gradients are those of the rows one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch

from observer.training.batching.varlen import Segments, Span, segments_of
from observer.training.rows import IGNORED

SHORTEST_SHARED_PREFIX = 16
"""Tokens; for fewer, the calls of attention of a tree or an exchange cost more than they save."""
LIKE_LENGTH = 1.25
"""Rows of a tree whose lengths differ by less go through attention together, padded to one another there alone."""
FILLED_UP_TO = 256
"""The tokens of a batch on a GPU are a multiple of it, for few shapes; what that gains was not measured yet."""

Row = Mapping[str, Any]
"""`input_ids` and `labels`, of one length; the first label comes after a prompt. The trainer's have a `weight`."""


class Batch(TypedDict):
    """`input_ids`, `position_ids` and `labels` are (1, tokens); `scored` are the positions whose next token is
    labelled, row after row in the order the rows were given. `n_tokens` is the trainer's count of the rows' tokens."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    scored: torch.Tensor
    forest: Forest
    n_tokens: NotRequired[int]


@dataclass(frozen=True)
class RowGroup:
    """Pieces of one level and like length, next to one another in the batch; "rows" here.

    `spread` indexes their tokens as (n_rows * longest), each row padded with its last; `gather` leads back. Both are
    None where all are equally long. `stems` indexes the exchange that each row continues, (n_rows * longest stem), in
    the whole batch, padded likewise; None on the second level, which continues the instruction alone. `mask` says what
    a row's token sees of prefix, stem and row: (longest, keys), or (n_rows, 1, longest, keys) with stems.
    """

    tokens: slice
    n_rows: int
    longest: int
    mask: torch.Tensor
    spread: torch.Tensor | None
    gather: torch.Tensor | None
    stems: torch.Tensor | None = None


class Piece(NamedTuple):
    """Tokens of the batch next to one another: where they start, how many, and which piece of the tree they continue.

    `parent` is None for a piece that continues the instruction itself.
    """

    start: int
    length: int
    parent: int | None = None


@dataclass(frozen=True)
class Tree:
    """One instruction, empty for rows that share none, and its pieces: the second level, then the third.

    `groups` hold the same pieces in the same order. A piece is a row, or its end, unless another continues it.
    """

    prefix: slice
    pieces: tuple[Piece, ...]
    groups: tuple[RowGroup, ...]

    @property
    def prefix_length(self) -> int:
        return self.prefix.stop - self.prefix.start


@dataclass(frozen=True)
class Forest:
    """Where the parts of a batch are; `segments` say it for one call of attention, the groups of its trees for many."""

    trees: tuple[Tree, ...]
    segments: Segments

    def to(self, device: torch.device | str) -> Forest:
        """The same with its indices and masks on `device`; the trainer calls it as it does for tensors."""
        if torch.device(device) == self.segments.keys.device:
            return self
        holders = [*(group for tree in self.trees for group in tree.groups), self.segments]
        *groups, segments = move_together(holders, torch.device(device))
        moved = iter(groups)
        trees = (replace(tree, groups=tuple(next(moved) for _ in tree.groups)) for tree in self.trees)
        return Forest(tuple(trees), segments)


def collate(rows: Sequence[Row], multiple: int | None = None) -> Batch:
    """Lay rows out as a forest.

    With a `multiple`, filler that nothing reads follows, so that the tokens are a multiple of it and so are the keys
    of `segments`: fewer shapes for what is compiled, chosen or allocated by shape.
    """
    ids, labels = (np.concatenate([row[name] for row in rows]).astype(np.int64) for name in ("input_ids", "labels"))
    ends = np.cumsum([len(row["input_ids"]) for row in rows])
    starts = ends - [len(row["input_ids"]) for row in rows]
    packed: list[np.ndarray] = []  # for every token of the batch, where it is in `ids`
    positions: list[np.ndarray] = []
    trees, n_tokens = [], 0
    for tree in group_by_prefix(ids, labels, starts, ends):
        n_shared = tree.n_shared
        spans = [(starts[tree.rows[0]], 0, n_shared)]  # (start of a row in `ids`, first of its tokens, last)
        branches = sorted(tree.branches, key=lambda branch: branch.end(starts, ends) - n_shared)
        spans += [(starts[branch.rows[0]], n_shared, branch.end(starts, ends)) for branch in branches]
        twigs = [(row, number, branch.n_shared) for number, branch in enumerate(branches) if len(branch.rows) > 1
                 for row in branch.rows]  # fmt: skip
        twigs.sort(key=lambda twig: ends[twig[0]] - starts[twig[0]] - twig[2])
        spans += [(starts[row], first, ends[row] - starts[row]) for row, _, first in twigs]
        parents = [None] * len(branches) + [number for _, number, _ in twigs]
        packed += [np.arange(start + first, start + last) for start, first, last in spans]
        positions += [np.arange(first, last) for _, first, last in spans]
        lengths = [int(last - first) for _, first, last in spans[1:]]
        trees.append(grow_tree(n_tokens, n_shared, lengths, parents))
        n_tokens += n_shared + sum(lengths)
    sequences = [spans for tree in trees for spans in _spans_of_pieces(tree)]
    if multiple is not None:
        n_filler = multiple - n_tokens % multiple
        trees.append(grow_tree(n_tokens, 0, [n_filler], [None]))
        n_keys = sum(length for spans in sequences for _, length in spans) + n_filler
        sequences.append([(n_tokens, 1)] * (-n_keys % multiple) + [(n_tokens, n_filler)])
        packed.append(len(ids) + np.arange(n_filler))
        positions.append(np.zeros(n_filler, dtype=np.int64))
        ids, labels = np.append(ids, np.zeros(n_filler, np.int64)), np.append(labels, np.full(n_filler, IGNORED))
    order = np.concatenate(packed)
    place = np.zeros(len(ids), dtype=np.int64)
    place[order] = np.arange(len(order))
    return Batch(
        input_ids=torch.from_numpy(ids[order])[None],
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        labels=torch.from_numpy(labels[order])[None],
        scored=torch.from_numpy(place[np.flatnonzero(labels != IGNORED) - 1]),
        forest=Forest(tuple(trees), segments_of(sequences)),
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(**{name: part.to(device) for name, part in batch.items()})  # type: ignore[typeddict-item, attr-defined]


class Branch(NamedTuple):
    """Rows with the same beginning, of `n_shared` tokens; one row alone shares nothing."""

    n_shared: int
    rows: list[int]

    def end(self, starts: np.ndarray, ends: np.ndarray) -> int:
        """How many tokens of its first row are the branch's: those shared, or all of a row alone."""
        (row, *others) = self.rows
        return self.n_shared if others else int(ends[row] - starts[row])


class SharedPrefix(NamedTuple):
    """Rows that begin with the same `n_shared` tokens, and the branches that share more."""

    n_shared: int
    rows: list[int]
    branches: list[Branch]


def group_by_prefix(ids: np.ndarray, labels: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> list[SharedPrefix]:
    """Rows by the tokens they begin with, then by what follows; those that share none at the end.

    The last token of a prompt is never shared: what it predicts is scored once for every row.
    """
    prompts = [_prompt_length(labels[start:end]) - 1 for start, end in zip(starts, ends, strict=True)]
    shared: list[SharedPrefix] = []
    alone: list[int] = []
    for members in _by_beginning(ids, starts, prompts, range(len(prompts)), 0):
        n_shared = _n_common(ids, starts, prompts, members)
        if len(members) < 2 or n_shared < SHORTEST_SHARED_PREFIX:
            alone += members
        else:
            shared.append(SharedPrefix(n_shared, members, _branches(ids, starts, prompts, members, n_shared)))
    return shared + ([SharedPrefix(0, alone, _each_alone(alone))] if alone else [])


def _branches(
    ids: np.ndarray, starts: np.ndarray, prompts: Sequence[int], members: Sequence[int], n_shared: int
) -> list[Branch]:
    branches = []
    for rows in _by_beginning(ids, starts, prompts, members, n_shared):
        n_common = _n_common(ids, starts, prompts, rows)
        is_one = len(rows) > 1 and n_common >= n_shared + SHORTEST_SHARED_PREFIX
        branches += [Branch(n_common, rows)] if is_one else _each_alone(rows)
    return branches


def _each_alone(rows: Sequence[int]) -> list[Branch]:
    return [Branch(0, [row]) for row in rows]


def _by_beginning(
    ids: np.ndarray, starts: np.ndarray, prompts: Sequence[int], rows: Iterable[int], first: int
) -> list[list[int]]:
    """Rows by the SHORTEST_SHARED_PREFIX tokens of their prompts from the `first` on, or what there is of them."""
    groups: dict[bytes, list[int]] = {}
    for row in rows:
        last = min(prompts[row], first + SHORTEST_SHARED_PREFIX)
        groups.setdefault(ids[starts[row] + first : starts[row] + last].tobytes(), []).append(row)
    return list(groups.values())


def _n_common(ids: np.ndarray, starts: np.ndarray, prompts: Sequence[int], rows: Sequence[int]) -> int:
    """How many tokens the prompts of all rows begin with in common."""
    shortest = min(prompts[row] for row in rows)
    beginnings = np.stack([ids[starts[row] : starts[row] + shortest] for row in rows])
    return int(np.cumprod((beginnings == beginnings[0]).all(0)).sum())


def grow_tree(start: int, n_shared: int, lengths: Sequence[int], parents: Sequence[int | None]) -> Tree:
    """The tree whose instruction begins at token `start` of the batch.

    `lengths` are those of its pieces, and `parents` the pieces they continue: both levels ascending by length.
    """
    starts = start + n_shared + np.cumsum([0, *lengths])
    pieces = [Piece(int(at), length, parent) for at, length, parent in zip(starts, lengths, parents, strict=False)]
    groups: list[RowGroup] = []
    members: list[Piece] = []
    for piece in pieces:
        is_like = members and (piece.parent is None) == (members[0].parent is None)
        if members and not (is_like and piece.length < LIKE_LENGTH * members[0].length):
            groups.append(_row_group(n_shared, members, pieces))
            members = []
        members.append(piece)
    groups.append(_row_group(n_shared, members, pieces))
    return Tree(slice(start, start + n_shared), tuple(pieces), tuple(groups))


def _prompt_length(labels: np.ndarray) -> int:
    is_labelled = labels != IGNORED
    return int(is_labelled.argmax()) if is_labelled.any() else len(labels)


def _row_group(n_shared: int, members: Sequence[Piece], pieces: Sequence[Piece]) -> RowGroup:
    n_rows, longest = len(members), members[-1].length
    tokens = slice(members[0].start, members[-1].start + longest)
    lengths = np.array([[piece.length] for piece in members])
    spread, gather, stems = None, None, None
    if members[0].length != longest:
        spread = _padded(np.cumsum(lengths, axis=0) - lengths, lengths)
        gather = torch.from_numpy(np.flatnonzero(np.arange(longest) < lengths))
    mask = np.tri(longest, n_shared + longest, n_shared, dtype=bool)
    if members[0].parent is not None:
        of = [pieces[piece.parent] for piece in members if piece.parent is not None]
        lengths = np.array([[stem.length] for stem in of])
        stems = _padded(np.array([[stem.start] for stem in of]), lengths)
        is_token = np.arange(lengths.max()) < lengths
        sees_stem = np.broadcast_to(is_token[:, None, None], (n_rows, 1, longest, is_token.shape[1]))
        before, own = (np.broadcast_to(part, (n_rows, 1, *part.shape)) for part in np.split(mask, [n_shared], axis=1))
        mask = np.concatenate([before, sees_stem, own], axis=-1)
    return RowGroup(tokens, n_rows, longest, torch.from_numpy(mask), spread, gather, stems)


def _padded(starts: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Indices of runs of tokens, (n, 1) starts and lengths, each padded with its last to the longest; flat."""
    return torch.from_numpy((starts + np.minimum(np.arange(lengths.max()), lengths - 1)).ravel())


def move_together(holders: Sequence[Any], device: torch.device) -> list[Any]:
    """The same dataclasses with their tensors on `device`, in one copy: one from pinned memory waits for nothing."""
    names = [[name for name, part in vars(holder).items() if isinstance(part, torch.Tensor)] for holder in holders]
    tensors = [getattr(holder, name) for holder, own in zip(holders, names, strict=True) for name in own]
    ends = np.cumsum([-(-part.nbytes // 8) * 8 for part in tensors])  # a view of 8 bytes starts at a multiple of 8
    buffer = torch.empty(int(ends[-1]), dtype=torch.uint8, pin_memory=device.type == "cuda")
    places = [slice(end - -(-part.nbytes // 8) * 8, end) for part, end in zip(tensors, ends.tolist(), strict=True)]
    for part, place in zip(tensors, places, strict=True):
        buffer[place][: part.nbytes].copy_(part.contiguous().view(-1).view(torch.uint8))
    buffer = buffer.to(device, non_blocking=True)
    moved = (buffer[place][: part.nbytes].view(part.dtype).view(part.shape)
             for part, place in zip(tensors, places, strict=True))  # fmt: skip
    return [replace(holder, **{name: next(moved) for name in own}) for holder, own in zip(holders, names, strict=True)]


@dataclass(frozen=True)
class Padded:
    """The same batch as rows padded on the right, (rows, longest); `place` finds each token of the forest in them."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    place: torch.Tensor


def pad(batch: Batch) -> Padded:
    """Unpack a forest, for models that cannot run one. What fills the rows is masked and read by nothing."""
    device = batch["input_ids"].device
    rows = [own for tree in batch["forest"].trees for own in _tokens_of_rows(tree)]
    length = torch.tensor([len(row) for row in rows], device=device)[:, None]
    mask = torch.arange(int(length.max()), device=device) < length
    tokens = torch.zeros(mask.shape, dtype=torch.long, device=device)
    tokens[mask] = torch.from_numpy(np.concatenate(rows)).to(device)
    place = torch.empty_like(batch["input_ids"][0])
    place[tokens[mask]] = mask.flatten().nonzero()[:, 0]
    return Padded(batch["input_ids"][0][tokens * mask], mask.long(), place)


def _tokens_of_rows(tree: Tree) -> Iterator[np.ndarray]:
    """Where the tokens of each row of a tree are in the batch."""
    continued = {piece.parent for piece in tree.pieces}
    paths = list(_spans_of_pieces(tree))[-len(tree.pieces) :]
    for number, spans in enumerate(paths):
        if number not in continued:
            yield np.concatenate([np.arange(start, start + length) for start, length in spans])


def _spans_of_pieces(tree: Tree) -> Iterator[list[Span]]:
    """What the instruction, if there is one, and then each piece of a tree continues, and at the end itself."""
    before = [(tree.prefix.start, tree.prefix_length)] * bool(tree.prefix_length)
    if before:
        yield before
    for piece in tree.pieces:
        path = [piece] if piece.parent is None else [tree.pieces[piece.parent], piece]
        yield [*before, *((part.start, part.length) for part in path)]
