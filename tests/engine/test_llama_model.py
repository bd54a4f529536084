"""llama.cpp's interface on a tiny real model: batches filled from arrays, logits in order, flash attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from observer.engine.grammar import Grammar
from observer.engine.llama_context import BatchToken, LlamaContext
from observer.engine.llama_model import LlamaModel, n_common
from observer.export.gguf.write import write_gguf

PREFIX, ENDINGS = [5, 6, 7, 8], [[9, 10, 11], [12, 13], [14, 15, 16, 17]]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    path = write_gguf(tiny_model, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "f32", name="tiny")
    model = LlamaModel(path)
    yield model
    model.close()


def alone(model: LlamaModel, tokens: list[int]) -> list[np.ndarray]:
    """Logits after every token, decoded one at a time."""
    context = LlamaContext(model, n_ctx=512, n_seq_max=1, n_threads=1)
    found = []
    for place, token in enumerate(tokens):
        found += [logits.copy() for _, logits in context.decode([BatchToken(token, place, (0,), True)])]
    context.close()
    return found


@pytest.mark.parametrize("flash_attn", [False, True])
def test_tokens_shared_by_sequences_give_the_logits_of_each_sequence_alone(model: LlamaModel, flash_attn: bool) -> None:
    """The instruction is decoded once for all; every row sees it and its own tokens, and nobody else's."""
    everyone = tuple(range(len(ENDINGS)))
    batch = [BatchToken(token, place, everyone) for place, token in enumerate(PREFIX)]
    for number, ending in enumerate(ENDINGS):
        tokens = enumerate(ending, len(PREFIX))
        batch += [BatchToken(token, place, (number,), place != len(PREFIX)) for place, token in tokens]
    context = LlamaContext(model, n_ctx=256, n_seq_max=3, n_threads=1, flash_attn=flash_attn)
    found = {index: logits.copy() for index, logits in context.decode(batch)}
    context.close()
    wanted = [index for index, token in enumerate(batch) if token.wants_logits]
    expected = [logits for ending in ENDINGS for logits in alone(model, PREFIX + ending)[len(PREFIX) + 1 :]]
    assert list(found) == wanted
    np.testing.assert_allclose(np.stack(list(found.values())), np.stack(expected), atol=2e-3)


def test_more_outputs_than_one_call_returns_come_in_order(model: LlamaModel) -> None:
    tokens = [n % 200 for n in range(300)]
    context = LlamaContext(model, n_ctx=512, n_seq_max=1, n_threads=1)
    before = (model.n_decoded, model.n_outputs)
    batch = [BatchToken(token, place, (0,), True) for place, token in enumerate(tokens)]
    found = [(index, logits.copy()) for index, logits in context.decode(batch)]
    context.close()
    assert [index for index, _ in found] == list(range(300))
    assert (model.n_decoded - before[0], model.n_outputs - before[1]) == (300, 300)
    np.testing.assert_allclose(found[299][1], alone(model, tokens)[299], atol=2e-3)


def test_a_batch_after_a_longer_one_holds_nothing_of_it(model: LlamaModel) -> None:
    context = LlamaContext(model, n_ctx=256, n_seq_max=3, n_threads=1)
    list(context.decode([BatchToken(token, place, (0, 1, 2), True) for place, token in enumerate(PREFIX)]))
    for sequence in range(3):
        context.clear(sequence)
    ((index, logits),) = context.decode([BatchToken(9, 0, (1,), True)])
    assert index == 0
    np.testing.assert_allclose(logits, alone(model, [9])[0], atol=2e-3)
    context.close()


def test_end_and_control_tokens_are_those_of_the_chat_format(model: LlamaModel) -> None:
    start, end = model.tokenize("<|im_start|><|im_end|>")
    assert model.is_end(end)
    assert not model.is_end(start)
    assert {start, end} <= model.control_tokens
    assert not model.control_tokens & set(model.tokenize('{"entities":[]}'))


def test_a_grammar_is_asked_about_one_token_without_moving_on(model: LlamaModel) -> None:
    grammar = Grammar(model, 'root ::= "DISCARD"')
    first = model.tokenize("D")[0]
    other = model.tokenize("S")[0]
    assert [grammar.allows(first), grammar.allows(first), grammar.allows(other)] == [True, True, False]
    assert not any(grammar.allows(token) for token in model.control_tokens)
    grammar.close()


@pytest.mark.parametrize(("one", "other", "n"), [([], [1], 0), ([1, 2], [1, 3], 1), ([1, 2], [1, 2, 3], 2)])
def test_the_common_beginning_is_counted(one: list[int], other: list[int], n: int) -> None:
    assert n_common(one, other) == n_common(other, one) == n
