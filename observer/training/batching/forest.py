"""How rows become a batch: a forest, in which every shared instruction stands once and nothing is padded.

A tree is an instruction and the rows that begin with it: its tokens are the instruction's, then each row's own, their
positions going on from it. A row sees the instruction and itself, which `attention` computes; all else in the model
treats tokens one by one. So loss and gradients are those of the rows one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

import numpy as np
import torch

from observer.training.rows import IGNORED

SHORTEST_SHARED_PREFIX = 16
"""Tokens; for fewer, a tree's own calls of attention cost more than they save."""
LIKE_LENGTH = 1.25
"""Rows of a tree whose lengths differ by less go through attention together, padded to one another there alone."""

Row = Mapping[str, Sequence[int]]
"""`input_ids` and `labels`, of one length; the first label comes after a prompt."""


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
    """Rows of like length, next to one another in the batch.

    `spread` indexes their tokens as (n_rows * longest), each row padded with its last; `gather` leads back. Both are
    None where all are equally long. `mask` is (longest, prefix + longest): what a row's token sees.
    """

    tokens: slice
    n_rows: int
    longest: int
    mask: torch.Tensor
    spread: torch.Tensor | None
    gather: torch.Tensor | None


@dataclass(frozen=True)
class Tree:
    """One instruction, empty for rows that share none, and its rows, the shortest first."""

    prefix: slice
    lengths: tuple[int, ...]
    groups: tuple[RowGroup, ...]

    @property
    def prefix_length(self) -> int:
        return self.prefix.stop - self.prefix.start


@dataclass(frozen=True)
class Forest:
    """Where the parts of a batch are."""

    trees: tuple[Tree, ...]

    def to(self, device: torch.device | str) -> Forest:
        """The same with its indices and masks on `device`; the trainer calls it as it does for tensors."""
        return Forest(tuple(_tree_to(tree, torch.device(device)) for tree in self.trees))


def collate(rows: Sequence[Row]) -> Batch:
    """Lay rows out as a forest."""
    ids, labels = (np.concatenate([row[name] for row in rows]).astype(np.int64) for name in ("input_ids", "labels"))
    ends = np.cumsum([len(row["input_ids"]) for row in rows])
    starts = ends - [len(row["input_ids"]) for row in rows]
    packed: list[np.ndarray] = []  # for every token of the batch, where it is in `ids`
    positions: list[np.ndarray] = []
    trees, n_tokens = [], 0
    for n_shared, members in group_by_prefix(ids, labels, starts, ends):
        members = sorted(members, key=lambda row: ends[row] - starts[row])
        pieces = [(starts[members[0]], 0, n_shared)]
        pieces += [(starts[row], n_shared, ends[row] - starts[row]) for row in members]
        packed += [np.arange(start + first, start + last) for start, first, last in pieces]
        positions += [np.arange(first, last) for _, first, last in pieces]
        trees.append(grow_tree(n_tokens, n_shared, [int(last - first) for _, first, last in pieces[1:]]))
        n_tokens += sum(int(last - first) for _, first, last in pieces)
    order = np.concatenate(packed)
    place = np.zeros(len(ids), dtype=np.int64)
    place[order] = np.arange(len(order))
    return Batch(
        input_ids=torch.from_numpy(ids[order])[None],
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        labels=torch.from_numpy(labels[order])[None],
        scored=torch.from_numpy(place[np.flatnonzero(labels != IGNORED) - 1]),
        forest=Forest(tuple(trees)),
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(**{name: part.to(device) for name, part in batch.items()})  # type: ignore[typeddict-item, attr-defined]


def group_by_prefix(
    ids: np.ndarray, labels: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> list[tuple[int, list[int]]]:
    """Rows by the tokens they begin with: how many they share, and which they are; those that share none at the end.

    The last token of a prompt is never shared: what it predicts is scored once for every row.
    """
    prompts = [_prompt_length(labels[start:end]) - 1 for start, end in zip(starts, ends, strict=True)]
    by_beginning: dict[bytes, list[int]] = {}
    for row, (start, prompt) in enumerate(zip(starts, prompts, strict=True)):
        by_beginning.setdefault(ids[start : start + min(prompt, SHORTEST_SHARED_PREFIX)].tobytes(), []).append(row)
    trees, alone = [], []
    for members in by_beginning.values():
        longest = min(prompts[row] for row in members)
        beginnings = np.stack([ids[starts[row] : starts[row] + longest] for row in members])
        n_shared = int(np.cumprod((beginnings == beginnings[0]).all(0)).sum())
        if len(members) > 1 and n_shared >= SHORTEST_SHARED_PREFIX:
            trees.append((n_shared, members))
        else:
            alone += members
    return trees + ([(0, alone)] if alone else [])


def grow_tree(start: int, n_shared: int, lengths: Sequence[int]) -> Tree:
    """The tree whose instruction begins at token `start` of the batch; `lengths` of the rows' own tokens, ascending."""
    groups, row_start, members = [], start + n_shared, list[int]()
    for length in lengths:
        if members and length >= LIKE_LENGTH * members[0]:
            groups.append(_row_group(row_start, n_shared, members))
            row_start, members = row_start + sum(members), []
        members.append(length)
    groups.append(_row_group(row_start, n_shared, members))
    return Tree(slice(start, start + n_shared), tuple(lengths), tuple(groups))


def _prompt_length(labels: np.ndarray) -> int:
    is_labelled = labels != IGNORED
    return int(is_labelled.argmax()) if is_labelled.any() else len(labels)


def _row_group(start: int, n_shared: int, lengths: Sequence[int]) -> RowGroup:
    n_rows, longest = len(lengths), lengths[-1]
    mask = torch.from_numpy(np.tri(longest, n_shared + longest, n_shared, dtype=bool))
    tokens = slice(start, start + sum(lengths))
    if lengths[0] == longest:
        return RowGroup(tokens, n_rows, longest, mask, None, None)
    columns, length = np.arange(longest), np.array(lengths)[:, None]
    spread = np.cumsum(length, axis=0) - length + np.minimum(columns, length - 1)
    gather = np.flatnonzero(columns < length)
    return RowGroup(tokens, n_rows, longest, mask, torch.from_numpy(spread.ravel()), torch.from_numpy(gather))


def _tree_to(tree: Tree, device: torch.device) -> Tree:
    return replace(tree, groups=tuple(_group_to(group, device) for group in tree.groups))


def _group_to(group: RowGroup, device: torch.device) -> RowGroup:
    spread, gather = (None if index is None else index.to(device) for index in (group.spread, group.gather))
    return replace(group, mask=group.mask.to(device), spread=spread, gather=gather)


@dataclass(frozen=True)
class Padded:
    """The same batch as rows padded on the right, (rows, longest); `place` finds each token of the forest in them."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    place: torch.Tensor


def pad(batch: Batch) -> Padded:
    """Unpack a forest, for models that cannot run one. What fills the rows is masked and read by nothing."""
    rows, device = [], batch["input_ids"].device
    for tree in batch["forest"].trees:
        start = tree.prefix.stop
        for length in tree.lengths:
            rows.append((tree.prefix.start, tree.prefix_length, start, length))
            start += length
    prefix, n_shared, own, length = torch.tensor(rows, device=device).T[:, :, None]
    columns = torch.arange(int((n_shared + length).max()), device=device)
    tokens = torch.where(columns < n_shared, prefix + columns, own + columns - n_shared)
    mask = columns < n_shared + length
    place = torch.empty_like(batch["input_ids"][0])
    place[tokens[mask]] = mask.flatten().nonzero()[:, 0]
    return Padded(batch["input_ids"][0][tokens * mask], mask.long(), place)
