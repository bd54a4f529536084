"""A model that only repeats its items: its list ends there, and the answer goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from observer.engine.engine import Engine
from observer.engine.repeats import without_repeats
from observer.engine.rows import Row
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


def test_a_row_that_repeats_itself_goes_on_as_one_that_never_did(nano_gguf: Path) -> None:
    """It begins as one that had to wait, amid its answer, another beside it. No cell of what was taken back is left."""
    exchanges = [render_exchange("Ana is my friend", ""), render_exchange("I live in Oslo", "")]
    rows: list[Row] = []
    with Engine(nano_gguf, n_threads=1, max_new_tokens=200) as engine:
        (alone,) = engine.extract(exchanges[1:])
        for beginning in (f"{ENTITIES},{ANA},{ANA}", f'{ENTITIES}],"relationships":['):
            row, beside = engine._rows(exchanges, None, Task.EXTRACT, 200)
            row.tokens, row.grammar = engine.model.tokenize(beginning), engine._extraction_grammar().start()
            row.logprobs = [0.0] * len(row.tokens)
            for token in row.tokens:
                row.grammar.accept(token)
            engine._run([row, beside], engine._extraction_grammar(), lambda *_: None, logprobs=True)
            assert (beside.repeated, tuple(beside.tokens)) == (False, alone.tokens)
            assert row.has_ended and not row.forced and len(row.logprobs) == len(row.tokens)
            rows.append(row)
        repeated, plain = (engine.model.detokenize(row.tokens) for row in rows)
    assert [row.repeated for row in rows] == [True, False]
    assert repeated == plain
    Extraction.model_validate_json(plain)
