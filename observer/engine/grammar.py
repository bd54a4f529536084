"""Keeping an answer to a GBNF grammar, and its names to the exchange: llama.cpp's grammar sampler and `copying`, asked
about as few tokens as will do.
"""

from __future__ import annotations

import copy
import ctypes
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from observer.engine.copying import Copying, Sources
from observer.engine.llama_context import Logits
from observer.engine.llama_model import LlamaModel, last_errors

_SHORTLISTS = (64, 1024)
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Grammar:
    """A GBNF grammar and how far one answer has come in it."""

    def __init__(self, model: LlamaModel, gbnf: str) -> None:
        handle = llama_cpp.llama_sampler_init_grammar(model.vocab, gbnf.encode(), b"root")
        assert handle, f"llama.cpp refused our grammar: {last_errors()}"
        self.handle: Any = handle
        self._model = model
        self._copying: Copying | None = None
        self._ahead: tuple[int, Copying | None] = (-1, None)
        """The token that was last asked about, and where the copying is after it."""
        self._never = model.control_tokens - model.end_tokens
        """Characters to llama.cpp's grammar, and nothing in an answer."""
        self._one: Any = llama_cpp.llama_token_data()  # written anew for each question, also by the copies
        self._asked = llama_cpp.llama_token_data_array(ctypes.pointer(self._one), 1, -1, False)
        self._asked_by_reference: Any = ctypes.byref(self._asked)

    @property
    def sources(self) -> Sources | None:
        """What an extraction's names are copied from."""
        return self._copying and self._copying.sources

    def start(self, sources: Sources | None = None) -> Grammar:
        """An independent copy at this one's state; with sources, an extraction's names are copied from them."""
        started = copy.copy(self)
        started.handle = llama_cpp.llama_sampler_clone(self.handle)
        if sources is not None:
            started._copying, started._ahead = Copying(sources), (-1, None)
        return started

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_sampler_free(self.handle)
            self.handle = None

    def accept(self, token: int) -> None:
        """Move on past a token that `best` returned; any other would end the process."""
        llama_cpp.llama_sampler_accept(self.handle, token)
        if self._copying:
            asked, after = self._ahead
            self._copying = after if asked == token else self._copying.after(self._model.piece(token))
            self._ahead = (-1, None)
            assert self._copying, "a token that `best` returned"

    def best(self, logits: Logits) -> int:
        """The allowed token of the highest logit; of equals the lower id.

        Few are asked about first, since the full vocabulary takes 75 times as long as the one token
        that is nearly always right.
        """
        token = int(logits.argmax())
        if self.allows(token):
            return token
        for count in (*_SHORTLISTS, len(logits)):
            for token in self._allowed(_highest(logits, count), logits):
                if token not in self._never and self._is_copied(token):
                    return token
        raise AssertionError("the grammar always allows some token")

    def allows(self, token: int) -> bool:
        """Whether `token` may come next."""
        if token in self._never:
            return False
        self._one.id, self._one.logit, self._asked.size, self._asked.selected = token, 0.0, 1, -1
        llama_cpp.llama_sampler_apply(self.handle, self._asked_by_reference)
        return self._one.logit == 0.0 and self._is_copied(token)

    def _is_copied(self, token: int) -> bool:
        if self._copying is None:
            return True
        self._ahead = token, self._copying.after(self._model.piece(token))
        return self._ahead[1] is not None

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
    if count >= len(logits):
        return np.arange(len(logits))
    return np.argpartition(-logits, count - 1)[:count]
