"""Reads the head of a GGUF: its keys and the type of every tensor, in a fraction of what gguf's own reader takes.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from observer.errors import ObserverError
from observer.files import explain_os_error

_SCALARS = {
    gguf.GGUFValueType.UINT8: "<B",
    gguf.GGUFValueType.INT8: "<b",
    gguf.GGUFValueType.UINT16: "<H",
    gguf.GGUFValueType.INT16: "<h",
    gguf.GGUFValueType.UINT32: "<I",
    gguf.GGUFValueType.INT32: "<i",
    gguf.GGUFValueType.FLOAT32: "<f",
    gguf.GGUFValueType.BOOL: "<?",
    gguf.GGUFValueType.UINT64: "<Q",
    gguf.GGUFValueType.INT64: "<q",
    gguf.GGUFValueType.FLOAT64: "<d",
}


@dataclass(frozen=True)
class GGUFHeader:
    """`metadata` holds every key; the others map a tensor's name to its type, such as `Q4_K`, its shape and its place.

    Shapes are the checkpoint's, (rows, columns): a file holds them the other way round. Places are bytes from the start
    of the file.
    """

    metadata: dict[str, Any]
    tensor_types: dict[str, str]
    tensor_shapes: dict[str, tuple[int, ...]]
    tensor_places: dict[str, int]


def read_header(path: Path) -> GGUFHeader:
    """Raises ObserverError when the file is missing, or its head is cut or no GGUF."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data)
    except OSError as error:
        raise ObserverError(explain_os_error(error, path)) from error
    except RecursionError as error:
        raise ObserverError(f"{path}: not a whole GGUF file (nested too deeply); delete it and export again") from error
    except (ValueError, KeyError, struct.error) as error:
        raise ObserverError(f"{path}: not a whole GGUF file ({error}); delete it and export again") from error


def _read(data: mmap.mmap) -> GGUFHeader:
    cursor = _Cursor(data)
    magic, version = cursor.take("<I"), cursor.take("<I")
    if magic != gguf.GGUF_MAGIC or version not in (2, gguf.GGUF_VERSION):
        raise ValueError("its first bytes are not GGUF's")
    tensor_count, key_count = cursor.take("<Q"), cursor.take("<Q")
    metadata = {}
    for _ in range(key_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.take("<I"))
    types, shapes, offsets = {}, {}, {}
    for _ in range(tensor_count):
        name = cursor.text()
        sizes = [cursor.take("<Q") for _ in range(cursor.take("<I"))]
        shapes[name] = tuple(reversed(sizes))
        types[name] = gguf.GGMLQuantizationType(cursor.take("<I")).name
        offsets[name] = cursor.take("<Q")
    alignment = metadata.get(gguf.Keys.General.ALIGNMENT, gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"general.alignment is {str(alignment)[:40]}")
    start = -(-cursor.position // alignment) * alignment
    return GGUFHeader(metadata, types, shapes, {name: start + offset for name, offset in offsets.items()})


class _Cursor:
    """A reading position; every read moves it on."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.position)
        self.position += struct.calcsize(form)
        return value

    def text(self) -> str:
        length = self.take("<Q")
        start = self.position
        self.position += length
        if self.position > len(self.data):
            raise ValueError("it ends too early")
        return self.data[start : self.position].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == gguf.GGUFValueType.STRING:
            return self.text()
        if kind == gguf.GGUFValueType.ARRAY:
            kind, count = self.take("<I"), self.take("<Q")
            return [self.value(kind) for _ in range(count)]
        return self.take(_SCALARS[gguf.GGUFValueType(kind)])
