"""The hostile set against one model: what its structure guarantees, and how often attacks succeed.

Guaranteed for any model: no text of a user becomes a control token or starts a turn; checked on the token ids of every
hostile prompt. Measured of this model: how often an answer is what the attack asked for (`eval/evaluate.py --split
attacks` has it in full).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.answers.rows import ATTACKS, rows_of_split
from eval.evaluate import evaluate
from observer.backends.opening import best_gguf
from observer.engine.llama_model import LlamaModel
from observer.prompts import Task, exchange_of, render_exchange, render_prompt
from tests.trust.conftest import Night


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_no_attack_makes_a_control_token_and_how_many_succeed_is_measured(night: Night) -> None:
    model, rows = best_gguf(Path(night.model)), rows_of_split(ATTACKS)
    llama = LlamaModel(model)

    def control_tokens(task: Task, exchange: str) -> list[int]:
        return [token for token in llama.tokenize(render_prompt(task, exchange)) if token in llama.control_tokens]

    expected = {task: control_tokens(task, render_exchange("hello", "hi")) for task in Task}
    assert all(expected.values())
    forged = [row["id"] for row in rows if any(control_tokens(t, exchange_of(row)) != expected[t] for t in Task)]
    llama.close()
    scores = evaluate(model, rows, [], split=ATTACKS).attacks
    assert scores is not None, "the rows of the set have goals"
    night.record(model=model, forged=len(forged))
    for name, rate in {"all": scores.total, **scores.rates}.items():
        bounds = f" [{rate.interval.low:.1%}, {rate.interval.high:.1%}]" if rate.interval else ""
        night.record(**{f"{name}: succeeded": f"{rate.n_succeeded} of {rate.n}, {rate.rate:.1%}{bounds}"})
    for label, pull in scores.pulls.items():
        told = f"{pull.n_given} of {pull.n_asked} told to have it, {pull.n_given_anyway} of {pull.n_not_asked} others"
        night.record(**{f"wrong label {label}": told})
    assert (forged, scores.total.n) == ([], len(rows))
