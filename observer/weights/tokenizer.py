"""The pre-tokenizers we know, tokenizers of models we make ourselves, and the chat template every saved model has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer.errors import ObserverError
from observer.prompts import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START
from observer.weights.checkpoint import faults_of_transformers, read_json_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = [END_OF_TEXT, IM_START, IM_END]
ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>")
"""Qwen's and SmolLM's, Llama 3's."""
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """How a byte-level BPE cuts a text into words, as in tokenizer.json.

    `pattern` None: each digit alone, the rest by GPT-2's pattern.
    """

    pattern: str | None
    has_nfc: bool = False
    """Its texts are brought to NFC first. llama.cpp does not do so; our prompts are in NFC already."""
    ignores_merges: bool = False
    """A word that is a token is not built from parts."""

    def steps(self) -> list[Any]:
        """The parts of tokenizers' pre-tokenizer, in order."""
        from tokenizers import Regex, pre_tokenizers

        if self.pattern is None:
            return [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        split = pre_tokenizers.Split(Regex(self.pattern), behavior="isolated")
        return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


PRE_TOKENIZERS = {
    "qwen2": PreTokenizer(rf"{_WORDS}|\p{{N}}|{_REST}", has_nfc=True),
    "smollm": PreTokenizer(None),
    "llama-bpe": PreTokenizer(rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}", ignores_merges=True),
}
"""By llama.cpp's name, the value of tokenizer.ggml.pre."""


def pre_tokenizer_of(place: Path, tokenizer: Mapping[str, Any]) -> str:
    """Which of PRE_TOKENIZERS a tokenizer.json has. Raises ObserverError, naming `place`, for another, or no BPE."""
    model = tokenizer.get("model")
    if isinstance(model, dict) and model.get("type") == "BPE":
        found = _digest(tokenizer.get("pre_tokenizer")), bool(model.get("ignore_merges"))
        for name, known in PRE_TOKENIZERS.items():
            steps = [json.loads(step.__getstate__()) for step in known.steps()]
            if found == (_digest({"type": "Sequence", "pretokenizers": steps}), known.ignores_merges):
                return name
    kinds = ", ".join(PRE_TOKENIZERS)
    raise ObserverError(f"{place}: its tokenizer is no byte-level BPE of the kinds {kinds}; take another base")


def kind_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `pre_tokenizer_of` reads of a tokenizer.json; to spell all of it takes long at Qwen's vocabulary."""
    model, steps = tokenizer.model, tokenizer.pre_tokenizer
    return {
        "model": {"type": type(model).__name__, "ignore_merges": getattr(model, "ignore_merges", False)},
        "pre_tokenizer": json.loads(steps.__getstate__()) if steps else None,
    }


def byte_level_bpe(kind: PreTokenizer, **model: Any) -> Tokenizer:
    """A tokenizer without added tokens; `model` is what tokenizers' BPE takes, such as vocab and merges."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(ignore_merges=kind.ignores_merges, **model))
    if kind.has_nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(kind.steps())
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def build_tokenizer(texts: Iterable[str], vocab_size: int, kind: str = "qwen2") -> PreTrainedTokenizerBase:
    """Train a byte-level BPE of a kind of PRE_TOKENIZERS, with Qwen's special tokens, on `texts`."""
    from tokenizers import pre_tokenizers, trainers

    tokenizer = byte_level_bpe(PRE_TOKENIZERS[kind])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return as_pretrained(tokenizer)


def as_pretrained(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    """As transformers holds it, with our chat template."""
    from transformers import PreTrainedTokenizerFast

    return prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False))


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer our chat template; generation ends at `<|im_end|>`, padding is the end of a text."""
    known = tokenizer.get_vocab()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = IM_END
    tokenizer.pad_token = next((token for token in ENDS_OF_TEXT if token in known), IM_END)
    return tokenizer


def _digest(pre_tokenizer: Any) -> Any:
    """What of a pre-tokenizer decides where words begin."""
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if isinstance(pre_tokenizer, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return None
    keys = ("type", "pattern", "behavior", "invert", "individual_digits", "add_prefix_space", "use_regex")
    return [[part.get(key) for key in keys] for part in parts]


def tokenizer_json(folder: Path) -> Path:
    """The only file a tokenizer is read from. Raises ObserverError when it is not in `folder`."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ObserverError(
            f"{path}: no such file; copy it from the model's base, or save one there with transformers: "
            f"AutoTokenizer.from_pretrained(BASE).save_pretrained({str(folder)!r})"
        )
    return path


def check_tokenizer(folder: Path) -> None:
    """Raise ObserverError unless the files are there and hold JSON."""
    for path in (tokenizer_json(folder), folder / "tokenizer_config.json"):
        if path.exists():
            read_json_object(path)


def tokenizer_folder(adapter: Path, base: Path) -> Path:
    """Where the tokenizer of an adapter's model is: its own goes before that of its base."""
    return adapter if (adapter / "tokenizer.json").exists() else base


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers reads it. Raises ObserverError for files that are missing or broken."""
    from transformers import AutoTokenizer

    check_tokenizer(folder)
    with faults_of_transformers(folder):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
