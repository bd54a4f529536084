"""Token ids of texts seen before, as Arrow files: tokenizing is most of what a start does before it loads weights.

A file's name is the hash of the tokenizer and of the texts, so nothing in it can be out of date.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from observer.errors import ObserverError
from observer.files import atomic_path

FILES_KEPT = 16
"""A set of rows has four: prompts and completions of train and val. The oldest go."""


def look_up(
    texts: list[str], tokenizer: str, encode: Callable[[list[str]], list[list[int]]], folder: Path
) -> list[list[int]]:
    """`encode(texts)`, or what it gave before. `tokenizer` is its whole definition, such as tokenizer.json."""
    path = folder / f"{_key(texts, tokenizer)}.arrow"
    found = _read(path)
    if found is None:
        found = encode(texts)
        _write(path, found)
    return found


def _key(texts: list[str], tokenizer: str) -> str:
    digest = hashlib.sha256(tokenizer.encode())
    for text in texts:
        digest.update(f"\0{len(text)}\0{text}".encode())
    return digest.hexdigest()


def _read(path: Path) -> list[list[int]] | None:
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            return reader.read_all()["input_ids"].to_pylist()
    except (OSError, pa.ArrowInvalid):  # not there, or not whole
        return None


def _write(path: Path, ids: list[list[int]]) -> None:
    table = pa.table({"input_ids": pa.array(ids, pa.list_(pa.int32()))})
    try:
        with atomic_path(path, is_private=True) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
            writer.write_table(table)
    except ObserverError:  # a cache that cannot be written costs time, not the run
        return
    others = [(_modified(file), file) for file in path.parent.glob("*.arrow") if file != path]
    for _, old in sorted(others, reverse=True)[FILES_KEPT - 1 :]:
        old.unlink(missing_ok=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another run has just removed it
        return 0.0
