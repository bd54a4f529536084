"""llama.cpp's C interface in Python's terms: the weights and the vocabulary of one GGUF, and what llama.cpp says.

With `llama_context` it owns every ctypes call and the lifetime of what they allocate.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp

from observer.errors import ObserverError

_GGUF_MAGIC = b"GGUF"
_ERROR_LEVEL = 4

_last_errors: deque[str] = deque(maxlen=3)


@llama_cpp.llama_log_callback
def _keep_errors(level: int, text: bytes, _: Any) -> None:
    if level == _ERROR_LEVEL:
        _last_errors.append(text.decode("utf-8", "replace").strip())


def usable_cores() -> int:
    """Cores this process may run on; where the system does not say, all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def last_errors() -> list[str]:
    """What llama.cpp last complained of."""
    return list(_last_errors)


def silence_log() -> None:
    """Keep llama.cpp from writing to stderr; its last errors go into our messages."""
    llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p(0))


class LlamaModel:
    """The weights and vocabulary of one GGUF.

    `n_decoded` and `n_outputs` count the tokens put through its layers, and those whose logits were asked for.
    """

    def __init__(self, path: Path) -> None:
        check_is_gguf(path)
        silence_log()
        _last_errors.clear()
        llama_cpp.llama_backend_init()
        handle = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not handle:
            reason = _last_errors[0] if _last_errors else "no reason given"
            raise ObserverError(f"{path}: llama.cpp cannot load it ({reason}); export or download it again")
        self.path = path
        self.handle: Any = handle
        self.vocab: Any = llama_cpp.llama_model_get_vocab(handle)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.n_ctx_train = llama_cpp.llama_model_n_ctx_train(handle)
        self.n_decoded = self.n_outputs = 0
        self._counting = threading.Lock()
        self._pieces: dict[int, bytes] = {}

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None

    def count(self, n_decoded: int, n_outputs: int) -> None:
        """Add to the counts; contexts of several threads do."""
        with self._counting:
            self.n_decoded += n_decoded
            self.n_outputs += n_outputs

    def metadata(self, key: str) -> str | None:
        """A value of the GGUF's header as text, such as `general.name`."""
        buffer = ctypes.create_string_buffer(1024)
        found = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))  # type: ignore[arg-type]
        return buffer.value.decode("utf-8", "replace") if found >= 0 else None

    @property
    def is_recurrent(self) -> bool:
        """Whether some of its layers keep a running state instead of a cache, as in Mamba."""
        return llama_cpp.llama_model_is_recurrent(self.handle) or llama_cpp.llama_model_is_hybrid(self.handle)

    @property
    def has_window(self) -> bool:
        """Whether some of its layers look back no further than a number of tokens."""
        return llama_cpp.llama_model_n_swa(self.handle) > 0

    def tokenize(self, text: str) -> list[int]:
        """Token ids; control tokens in the text are parsed, so the text must have been through `prompts.clean`."""
        data = text.encode("utf-8")
        room = len(data) + 8
        buffer = (llama_cpp.llama_token * room)()
        n_tokens = llama_cpp.llama_tokenize(self.vocab, data, len(data), buffer, room, False, True)
        assert n_tokens >= 0, "a token is at least one byte"
        return list(buffer[:n_tokens])

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of answer tokens; control tokens are left out, broken UTF-8 becomes U+FFFD."""
        return b"".join(self.piece(token) for token in tokens).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer: `<|im_end|>`, `<|endoftext|>`."""
        return token in self.end_tokens

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        return frozenset(t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self.vocab, t))

    @cached_property
    def control_tokens(self) -> frozenset[int]:
        """Those of the chat format and the padding of the vocabulary; an answer holds none but its end."""
        return frozenset(t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_control(self.vocab, t))

    def piece(self, token: int) -> bytes:
        """What the token adds to a text; nothing for a control token."""
        if token not in self._pieces:
            self._pieces[token] = self._read_piece(token)
        return self._pieces[token]

    def _read_piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        length = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)  # type: ignore[arg-type]
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)  # type: ignore[arg-type]
        return buffer.raw[:length]


def n_common(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items two sequences begin with together."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def check_is_gguf(path: Path) -> None:
    """Raise ObserverError unless the file is there and begins as a GGUF does."""
    try:
        with path.open("rb") as stream:
            magic = stream.read(len(_GGUF_MAGIC))
    except OSError as error:
        what = error.strerror or str(error)
        raise ObserverError(f"{path}: {what.lower()}; name a GGUF file, such as outputs/RUN/gguf/NAME.gguf") from error
    if magic != _GGUF_MAGIC:
        raise ObserverError(f"{path}: not a GGUF file; export or download it again")
