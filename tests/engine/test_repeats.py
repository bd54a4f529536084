"""A model that only repeats its items: its list ends there, and the answer goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from observer.engine.engine import Engine
from observer.engine.repeats import without_repeats
from observer.prompts import Task, render_exchange
from observer.schema import Extraction

USER, ANA = '{"name":"User","type":"Person"}', '{"name":"Ana","type":"Person"}'
KNOWS = '{"subject":"User","predicate":"FRIEND_OF","object":"Ana","temporal":"ongoing"}'
KNEW = KNOWS.replace("ongoing", "completed")
ENTITIES = f'{{"entities":[{USER},{ANA}'


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"{ENTITIES},{ANA},{ANA}", f'{ENTITIES}],"relationships":['),
        (f"{ENTITIES},{USER},{ANA}", f'{ENTITIES}],"relationships":['),
        (
            f'{ENTITIES}],"relationships":[{KNOWS},{KNEW},{KNOWS},{KNEW}',
            f'{ENTITIES}],"relationships":[{KNOWS},{KNEW}]}}',
        ),
        (f'{ENTITIES},{ANA}],"relationships":[{KNOWS}', None),  # once, and on
        (f'{ENTITIES},{ANA},{{"name":"Rex","type":"Animal"}},{ANA}', None),
        (f"{ENTITIES}", None),
        (f'{ENTITIES},{ANA},{{"name":"Ana"', None),
        (f'{ENTITIES}],"relationships":[{KNOWS},{KNEW}]}}', None),
        ('{"entities":[],"relationships":[]}', None),
        ("", None),
    ],
)
def test_a_list_ends_before_two_items_of_which_none_is_new(answer: str, expected: str | None) -> None:
    assert without_repeats(answer) == expected


def test_a_row_that_repeats_itself_goes_on_with_what_comes_after_the_list(nano_gguf: Path) -> None:
    """The row begins as one that had to wait, in the middle of an answer; another is answered beside it."""
    exchanges = [render_exchange("Ana is my friend", ""), render_exchange("I live in Oslo", "")]
    with Engine(nano_gguf, n_threads=1, max_new_tokens=200) as engine:
        (alone,) = engine.extract(exchanges[1:])
        rows = engine._rows(exchanges, None, Task.EXTRACT, 200)
        row, grammar = rows[0], engine._extraction_grammar()
        row.tokens = engine.model.tokenize(f"{ENTITIES},{ANA},{ANA}")
        row.logprobs = [0.0] * len(row.tokens)
        row.grammar = grammar.start()
        for token in row.tokens:
            row.grammar.accept(token)
        engine._run(rows, grammar, lambda *_: None, logprobs=True)
        text = engine.model.detokenize(row.tokens)
        assert (rows[1].repeated, tuple(rows[1].tokens)) == (False, alone.tokens)
    assert row.repeated and not row.forced
    assert text.startswith(f'{ENTITIES}],"relationships":[')
    assert row.has_ended
    Extraction.model_validate_json(text)
    assert len(row.logprobs) == len(row.tokens)


def test_an_answer_after_a_cut_is_that_of_the_text_it_goes_on_from(nano_gguf: Path) -> None:
    """No cell of what was taken back is left: the same answer comes of a row that never said it."""
    exchange = render_exchange("Ana is my friend", "")
    answers = []
    with Engine(nano_gguf, n_threads=1, max_new_tokens=200) as engine:
        for beginning in (f"{ENTITIES},{ANA},{ANA}", f'{ENTITIES}],"relationships":['):
            (row,) = engine._rows([exchange], None, Task.EXTRACT, 200)
            row.tokens, row.grammar = engine.model.tokenize(beginning), engine._extraction_grammar().start()
            for token in row.tokens:
                row.grammar.accept(token)
            engine._run([row], engine._extraction_grammar(), lambda *_: None, logprobs=False)
            answers.append(engine.model.detokenize(row.tokens))
    assert answers[0] == answers[1]
