"""llama.cpp's C interface in Python's terms: one GGUF, one context, tokens in, logits out.

Owns every ctypes call and the lifetime of what they allocate. What to decode, and when, is `engine`'s.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
import numpy.typing as npt

from observer.errors import ObserverError

Logits = npt.NDArray[np.float32]
_GGUF_MAGIC = b"GGUF"
_ERROR_LEVEL = 4
_BATCH_TOKENS = 2048
_BATCH_OUTPUTS = 128
"""Rows of logits a decode call may ask for; each takes the vocabulary in floats."""
_SHORTLIST = 64
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

_last_errors: deque[str] = deque(maxlen=3)


@llama_cpp.llama_log_callback
def _keep_errors(level: int, text: bytes, _: Any) -> None:
    if level == _ERROR_LEVEL:
        _last_errors.append(text.decode("utf-8", "replace").strip())


def usable_cores() -> int:
    """Cores this process may run on; where the system does not say, all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def silence_log() -> None:
    """Keep llama.cpp from writing to stderr; its last errors go into our messages."""
    llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p(0))


class BatchToken(NamedTuple):
    """One token of a decode call; it is added to every sequence named."""

    token: int
    position: int
    sequences: tuple[int, ...]
    wants_logits: bool = False


class LlamaModel:
    """The weights and vocabulary of one GGUF."""

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

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None

    def metadata(self, key: str) -> str | None:
        """A value of the GGUF's header as text, such as `general.name`."""
        buffer = ctypes.create_string_buffer(1024)
        found = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))  # type: ignore[arg-type]
        return buffer.value.decode("utf-8", "replace") if found >= 0 else None

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
        return b"".join(self._piece(token) for token in tokens).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer: `<|im_end|>`, `<|endoftext|>`."""
        return llama_cpp.llama_vocab_is_eog(self.vocab, token)

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        length = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)  # type: ignore[arg-type]
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)  # type: ignore[arg-type]
        return buffer.raw[:length]


class LlamaContext:
    """A unified KV cache of `n_ctx` cells shared by up to `n_seq_max` sequences."""

    def __init__(self, model: LlamaModel, *, n_ctx: int, n_seq_max: int, n_threads: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = _BATCH_TOKENS
        params.n_seq_max = n_seq_max
        params.n_threads = params.n_threads_batch = n_threads
        params.kv_unified = True
        # Flash attention on a CPU sums the values in float16.
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        self.handle: Any = llama_cpp.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise ObserverError(f"{model.path}: no memory for a context of {n_ctx:,} tokens; use fewer sequences")
        self.n_ctx = n_ctx
        self._n_vocab = model.n_vocab
        self._memory: Any = llama_cpp.llama_get_memory(self.handle)
        self._batch: Any = llama_cpp.llama_batch_init(_BATCH_TOKENS, 0, n_seq_max)

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self.handle)
            self.handle = None

    def decode(self, tokens: Sequence[BatchToken]) -> Iterator[tuple[int, Logits]]:
        """Decode all tokens; yield (index, logits) for those that want them.

        The logits are a view that the next step of the iteration may overwrite.
        """
        for start, stop in _chunks(tokens):
            self._fill(tokens[start:stop])
            code = llama_cpp.llama_decode(self.handle, self._batch)
            if code != 0:
                raise RuntimeError(f"llama_decode returned {code}: {'; '.join(_last_errors)}")
            for index in range(start, stop):
                if tokens[index].wants_logits:
                    pointer = llama_cpp.llama_get_logits_ith(self.handle, index - start)
                    yield index, np.ctypeslib.as_array(pointer, (self._n_vocab,))

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> None:
        """Let `target` share the first `n_tokens` cells of `source`."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)

    def clear(self, sequence: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def _fill(self, tokens: Sequence[BatchToken]) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, item in enumerate(tokens):
            batch.token[i] = item.token
            batch.pos[i] = item.position
            batch.n_seq_id[i] = len(item.sequences)
            for j, sequence in enumerate(item.sequences):
                batch.seq_id[i][j] = sequence
            batch.logits[i] = item.wants_logits


class Grammar:
    """A GBNF grammar and how far one answer has come in it."""

    def __init__(self, model: LlamaModel, gbnf: str) -> None:
        self.handle: Any = llama_cpp.llama_sampler_init_grammar(model.vocab, gbnf.encode(), b"root")
        self._vocab: Any = model.vocab
        assert self.handle, f"llama.cpp refused our grammar: {list(_last_errors)}"

    def start(self) -> Grammar:
        """An independent copy at this one's state."""
        copy = Grammar.__new__(Grammar)
        copy._vocab = self._vocab
        copy.handle = llama_cpp.llama_sampler_clone(self.handle)
        return copy

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_sampler_free(self.handle)
            self.handle = None

    def accept(self, token: int) -> None:
        """Move on past a token that `best` returned; any other would end the process."""
        llama_cpp.llama_sampler_accept(self.handle, token)

    def best(self, logits: Logits) -> int:
        """The allowed token of the highest logit; of equals the lower id.

        Few are asked about first, since the full vocabulary takes 75 times as long as the one token
        that is nearly always right.
        """
        for count in (1, _SHORTLIST, len(logits)):
            for token in self._allowed(_highest(logits, count), logits):
                if self._is_text(token):
                    return token
        raise AssertionError("the grammar always allows some token")

    def _is_text(self, token: int) -> bool:
        """Control tokens other than the end are characters to llama.cpp's grammar, and nothing in an answer."""
        return not llama_cpp.llama_vocab_is_control(self._vocab, token) or llama_cpp.llama_vocab_is_eog(
            self._vocab, token
        )

    def _allowed(self, tokens: npt.NDArray[np.intp], logits: Logits) -> list[int]:
        """Those of `tokens` that may come next, the highest logit first."""
        candidates = np.zeros(len(tokens), _TOKEN_DATA)
        candidates["id"], candidates["logit"] = tokens, logits[tokens]
        pointer = candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(pointer, len(tokens), -1, False)
        llama_cpp.llama_sampler_apply(self.handle, ctypes.byref(array))  # type: ignore[arg-type]
        allowed = tokens[np.isfinite(candidates["logit"])]
        return allowed[np.lexsort((allowed, -logits[allowed]))].tolist()


def _highest(logits: Logits, count: int) -> npt.NDArray[np.intp]:
    """The ids of the `count` highest logits, in no order."""
    if count == 1:
        return np.array([logits.argmax()])
    if count >= len(logits):
        return np.arange(len(logits))
    return np.argpartition(-logits, count - 1)[:count]


def _chunks(tokens: Sequence[BatchToken]) -> Iterator[tuple[int, int]]:
    """Ranges that keep within what one decode call may hold and return."""
    start = n_outputs = 0
    for index, item in enumerate(tokens):
        if index - start == _BATCH_TOKENS or (item.wants_logits and n_outputs == _BATCH_OUTPUTS):
            yield start, index
            start, n_outputs = index, 0
        n_outputs += item.wants_logits
    if tokens:
        yield start, len(tokens)


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
