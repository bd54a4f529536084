"""A model with random weights in any shape, to time training where no weights can be reached.

The benchmarks' `--random-shape` makes it. Speed and memory depend on the shape alone; what it learns says nothing.
Without `--vocab` it takes the nano base's tokenizer: its ids stay below the vocabulary size, the ids above it are never
met, and its rows are longer than with Qwen's own.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer.errors import ObserverError, raise_all
from observer.files import atomic_path, write_json
from observer.paths import NANO_BASE
from observer.runs.manifest import fingerprint
from observer.weights.base import load_tokenizer
from observer.weights.checkpoint import ModelShape, config_values
from observer.weights.size import KNOWN_SHAPES
from observer.weights.tokenizer import prepare_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RANDOM_BASES = Path("outputs/random-bases")
CARD = "random-base.json"


def random_base(shape: str, *, vocab: Path | None = None, dtype: str = "bfloat16", root: Path = RANDOM_BASES) -> Path:
    """The folder of the base with this shape, made when it is not there; the same weights every time.

    Raises ObserverError for a shape it cannot read, or a vocabulary larger than the shape's.
    """
    wanted = parse_shape(shape)
    size, _, changes = shape.casefold().partition(":")
    parts = [size, fingerprint({"changes": changes})[:8] if changes else "", dtype]
    folder = root / "-".join(filter(None, [*parts, _vocab_file(vocab).stem if vocab else ""]))
    card = {"shape": asdict(wanted), "vocab": _vocab_file(vocab).name if vocab else str(NANO_BASE), "dtype": dtype}
    if _read_card(folder) != card:
        tokenizer = load_vocabulary(vocab)
        if len(tokenizer) > wanted.vocab_size:
            raise ObserverError(
                f"--random-shape {shape}: vocab_size {wanted.vocab_size:,} is smaller than the tokenizer's "
                f"{len(tokenizer):,}; add vocab_size={len(tokenizer)}"
            )
        _make(folder, wanted, tokenizer, dtype, card)
    return folder


def parse_shape(text: str) -> ModelShape:
    """`0.6b` or `0.6b:block_count=2,vocab_size=4096`. Raises ObserverError naming every fault."""
    size, _, rest = text.casefold().partition(":")
    sizes = {name.removeprefix("qwen3-"): shape for name, shape in KNOWN_SHAPES.items()}
    names = [field.name for field in fields(next(iter(sizes.values())))]
    faults = [] if size in sizes else [f"--random-shape {text}: unknown size {size!r}; known: {', '.join(sizes)}"]
    changes: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in names or not value.isdigit():
            faults.append(f"--random-shape {text}: {part!r} is not KEY=NUMBER; keys: {', '.join(names)}")
        else:
            changes[key] = bool(int(value)) if key == "is_tied" else int(value)
    raise_all(faults)
    return replace(sizes[size], **changes)


def load_vocabulary(vocab: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer inside a GGUF, or the nano base's, with our chat template."""
    from transformers import AutoTokenizer

    if vocab is None:
        return load_tokenizer(NANO_BASE)
    file = _vocab_file(vocab)
    return prepare_tokenizer(
        AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    )


def model_config(shape: ModelShape, tokenizer: Any) -> Any:
    """Our shape in transformers' names."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        shape.model_type,
        **config_values(shape),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )


def _make(folder: Path, shape: ModelShape, tokenizer: PreTrainedTokenizerBase, dtype: str, card: dict) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(getattr(torch, dtype))
        model = AutoModelForCausalLM.from_config(model_config(shape, tokenizer))
    finally:
        torch.set_default_dtype(before)
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / CARD, card)


def _vocab_file(vocab: Path) -> Path:
    files = sorted(vocab.glob("*.gguf")) if vocab.is_dir() else [vocab] if vocab.is_file() else []
    if not files:
        raise ObserverError(f"--vocab {vocab}: no GGUF there; name a GGUF file or a folder with one")
    return files[0]


def _read_card(folder: Path) -> dict | None:
    path = folder / CARD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
