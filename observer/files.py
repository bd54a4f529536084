"""Reading and writing files: atomic writes, JSONL, hashes, and clear errors for what a disk can do wrong."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from observer.errors import ObserverError, raise_all

_DISK_FAULT = re.compile(
    r"PytorchStreamWriter|inline_container\.cc:\d+\] \. unexpected pos|iostream error"  # torch, which tells no number
    r"|No space left|Disk quota|os error (?P<number>27|28|30|122)\b"  # Python and Rust
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
PRIVATE = 0o600
"""Mode of files that hold conversations, or what was said in them."""


@contextlib.contextmanager
def atomic_path(path: Path, *, is_private: bool = False) -> Iterator[Path]:
    """Yield a sibling temporary path; on success fsync it and move it to `path`, else delete it.

    Works for a file or a folder; a file that `is_private`, such as one of conversations, is there from the start and
    its owner's alone. What killed processes have left of the same file goes.
    Raises ObserverError when the folder is read-only or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors_explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent, path.name)
            _remove(temporary)
            if is_private:
                os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
            yield temporary
            if temporary.is_file():
                _fsync(temporary)
            elif path.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
            _fsync(path.parent)
    finally:
        _remove(temporary)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete temporary files of `atomic_path` whose processes were killed: those of all files, or of one."""
    for leftover in folder.glob(f".{glob.escape(name) if name else '*'}.*.tmp"):
        import psutil

        process = leftover.name.split(".")[-2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            _remove(leftover)


def write_text(path: Path, text: str, *, is_private: bool = False) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path, is_private=is_private) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any, *, is_private: bool = False) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", is_private=is_private)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]], *, is_private: bool = False) -> None:
    """Write one JSON object a line, atomically."""
    with (
        atomic_path(path, is_private=is_private) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as stream,
    ):
        for row in rows:
            write_row(stream, row)


def write_row(stream: TextIO, row: dict[str, Any]) -> None:
    """One JSON object and a line break."""
    stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_text(path: Path) -> str:
    """Read UTF-8 text, without a byte-order mark. Raises ObserverError when missing, unreadable or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ObserverError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from error
    except OSError as error:
        raise ObserverError(explain_os_error(error, path)) from error


def parse_json(text: str | bytes) -> Any:
    """Values that can be written as UTF-8 again: halves of characters, `\\ud800` alone, become question marks.

    Raises json.JSONDecodeError, also where Python's own parser fails otherwise: depth, digits, encoding.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = json.loads(text)
        if not _SURROGATE.search(text):
            return value
        return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError:
        raise json.JSONDecodeError("not UTF-8 text", "", 0) from None
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except ValueError:
        raise json.JSONDecodeError("a number of too many digits", "", 0) from None


def read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number, object) pairs, blank lines left out.

    Raises ObserverError naming every malformed line of the file.
    """
    rows, faults = scan_jsonl(path)
    raise_all(faults)
    return rows


def scan_jsonl(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], list[str]]:
    """The readable (line number, object) pairs and a fault for every malformed line."""
    rows: list[tuple[int, dict[str, Any]]] = []
    faults: list[str] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            faults.append(f"{path}:{number}: not JSON ({error.msg}); one object a line is expected")
            continue
        if isinstance(row, dict):
            rows.append((number, row))
        else:
            faults.append(f"{path}:{number}: found a {type(row).__name__}; one JSON object a line is expected")
    return rows, faults


def sha256_file(path: Path) -> str:
    """Hex digest of a file, or of a folder's files by name and content (sorted)."""
    digest = hashlib.sha256()
    if path.is_dir():
        for child in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{child.relative_to(path).as_posix()}\0{sha256_file(child)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


ANOTHER_FOLDER = "or name another folder with --set run.output_dir=DIR"


def check_writable(folder: Path, needed_bytes: int = 0, fix: str = ANOTHER_FOLDER) -> None:
    """Raise ObserverError unless files of `needed_bytes` in all can be written below `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:  # without a name: a kill leaves nothing
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise ObserverError(explain_os_error(error, folder)) from error
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise ObserverError(
            f"{folder}: {needed_bytes / 1e6:,.0f} MB needed, {free_bytes / 1e6:,.0f} MB free; free some space, {fix}"
        )


@contextlib.contextmanager
def disk_errors_explained(path: Path) -> Iterator[None]:
    """Turn what Python and the libraries that write for us raise on a full or read-only disk into one line."""
    try:
        yield
    except ObserverError:
        raise
    except OSError as error:
        raise ObserverError(explain_os_error(error, path)) from error
    except Exception as error:  # safetensors, tokenizers and torch have errors of their own
        if not (found := _DISK_FAULT.search(str(error))):
            raise
        number = int(found["number"] or errno.ENOSPC)
        raise ObserverError(explain_os_error(OSError(number, os.strerror(number)), path)) from error


def explain_os_error(error: OSError, path: Path) -> str:
    """One line for the errors a disk gives: place, what was found, what to do."""
    what, fix = error.strerror or str(error), "check the path"
    if isinstance(error, FileNotFoundError):
        what, fix = "no such file", "check the path, relative to the folder you run from"
    elif error.errno == errno.EFBIG:
        what, fix = "larger than this disk or `ulimit -f` lets a file be", "raise the limit, or name another folder"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        what, fix = "the disk is full", "free some space and run the same command again"
    elif error.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
        what, fix = "cannot be written or read here", "fix its permissions, or name another folder"
    elif isinstance(error, (NotADirectoryError, FileExistsError)):
        what, fix = "a file is in the way of a folder", "move it away"
    return f"{path}: {what}; {fix}"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # nothing there, or a file where its folder should be
            path.unlink()
