"""Where the base model is, whether it is one we can use, and its tokenizer. Weights are loaded in `model`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from observer.config import Config
from observer.errors import ObserverError
from observer.prompts import IM_END, IM_START
from observer.weights.checkpoint import list_tensors, read_shape
from observer.weights.dequantize import dequantized_base
from observer.weights.gguf_places import find_gguf, names_gguf
from observer.weights.tokenizer import kind_of, pre_tokenizer_of, prepare_tokenizer, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEEDED_FILES = ("*.safetensors", "*.json", "merges.txt")


def base_folder(config: Config, *, download: bool = True) -> Path:
    """The folder of the base model: as given, the hub's copy in the local cache, or what a GGUF was dequantized to.

    Raises ObserverError when it is not there (and, for a hub id, cannot be downloaded), has no
    safetensors weights, or is of an architecture that we cannot export.
    """
    base = config.model.base
    if names_gguf(base):
        folder = dequantized_base(find_gguf(base), base, config.model.sha256)
        check_base(folder)
        return folder
    if config.model.sha256:
        raise ObserverError(f"model.sha256: is the hash of a GGUF file, and model.base {base} is none; leave it out")
    folder = Path(base)
    if not folder.is_dir():
        if looks_local(base):
            raise ObserverError(
                f"model.base: {base}: no such folder; restore it with `git checkout -- {base}`, "
                "or set model.base to a folder or hub id"
            )
        folder = _hub_snapshot(base, config.model.revision, download)
    check_base(folder)
    return folder


def with_commit(config: Config, folder: Path) -> Config:
    """The config with the commit that the hub's copy in `folder` is of, where it names none: what is saved says it."""
    commit, is_pinned = folder.name, config.model.revision == folder.name
    if folder.parent.name != "snapshots" or Path(config.model.base).is_dir() or is_pinned:
        return config
    print(
        f"model.revision is {config.model.revision or 'not set'}: {config.model.base} is commit {commit} today; "
        "set it, or another day may fetch another model",
        file=sys.stderr,
    )
    return config.model_copy(update={"model": config.model.model_copy(update={"revision": commit})})


def looks_local(base: str) -> bool:
    """Whether a name is meant as a path: `data/nano-base` is, `Qwen/Qwen3-0.6B` is not."""
    path = Path(base)
    return (
        names_gguf(base)
        or path.is_absolute()
        or base.startswith((".", "~"))
        or len(path.parts) != 2
        or Path(path.parts[0]).is_dir()
    )


def check_base(folder: Path) -> None:
    """Raise ObserverError unless the folder holds a model of ours in safetensors with its tokenizer."""
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise ObserverError(
            f"model.base: {folder}: has no {', '.join(missing)}; "
            "a Hugging Face folder with safetensors weights is needed"
        )
    list_tensors(folder, read_shape(folder))  # what merge and export will ask of it


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The base's tokenizer with our chat template. Raises ObserverError without ChatML tokens, or for a kind of
    tokenizer that our export does not know."""
    tokenizer = read_tokenizer(folder)
    missing = [token for token in (IM_START, IM_END) if token not in tokenizer.get_vocab()]
    if missing:
        raise ObserverError(f"model.base: {folder}: its tokenizer has no {', '.join(missing)}; take a ChatML base")
    pre_tokenizer_of(folder, kind_of(cast(Any, tokenizer).backend_tokenizer))  # as it is saved with a merged model
    return prepare_tokenizer(tokenizer)


def _hub_snapshot(base: str, revision: str | None, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(base, revision=revision, allow_patterns=list(NEEDED_FILES), local_files_only=not download)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        what = "neither in the local cache nor downloadable" if download else "not in the local cache"
        raise ObserverError(
            f"model.base: {base}: {what} ({type(error).__name__}); check the name and the network, "
            f"or set model.base to a folder that holds it"
        ) from error
