"""Verdicts by hand-computed cases: which model is better, on which rows, and when the rows cannot tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from eval.answers.answering import Answers
from eval.answers.origin import Machine, ModelInfo
from eval.reports.comparison import Comparison, check_rows, compare_many
from eval.reports.comparison_report import Origin, to_markdown, verdict_table
from eval.reports.row_differences import row_differences, worst
from observer.errors import ObserverError
from observer.observation import Completion, Grade
from observer.prompts import Task, prompt_messages
from observer.schema import Entity, EntityType, Extraction, Label, Predicate, Relationship, Temporal

LABELS = list(Label)
N_RESAMPLES = 1000
LIVES_IN = Extraction(
    entities=[Entity(name="User", type=EntityType.PERSON), Entity(name="Oslo", type=EntityType.PLACE)],
    relationships=[
        Relationship(subject="User", predicate=Predicate("LIVES_IN"), object="Oslo", temporal=Temporal.ONGOING)
    ],
)
LIVED_IN = LIVES_IN.model_copy(
    update={"relationships": [LIVES_IN.relationships[0].model_copy(update={"temporal": Temporal.COMPLETED})]}
)
NOTHING = Extraction()


def row(task: Task, number: int, gold: str, family: str | None = None) -> dict[str, Any]:
    return {
        "prompt": prompt_messages(task, f"USER: message {number}"),
        "completion": [{"role": "assistant", "content": gold}],
        "task": str(task),
        "id": f"{task}-{number}",
        "family": family,
    }


def answers(
    name: str,
    labels: Sequence[tuple[Label, Label]] = (),
    extractions: Sequence[tuple[Extraction, Extraction | str]] = (),
    families: Sequence[str] | None = None,
) -> Answers:
    """Answers to made-up rows, each given as (gold, answer)."""
    texts = [e if isinstance(e, str) else e.to_compact_json() for _, e in extractions]
    family = list(families or [None] * max(len(labels), len(extractions)))
    return Answers(
        model=ModelInfo(name, name, "f16", 1, False),
        split="val",
        date="2026-11-22T00:00:00+00:00",
        machine=Machine("none", 1, 1),
        environment={},
        grade_rows=[row(Task.GRADE, n, str(gold), family[n]) for n, (gold, _) in enumerate(labels)],
        grades=[Grade(label, {}) for _, label in labels],
        extract_rows=[
            row(Task.EXTRACT, n, gold.to_compact_json(), family[n]) for n, (gold, _) in enumerate(extractions)
        ],
        completions=[Completion(text, (), False) for text in texts],
    )


def compared(reference: Answers, model: Answers) -> Comparison:
    return compare_many(reference, [model], n_resamples=N_RESAMPLES)[0]


def test_a_model_that_turns_nine_right_labels_wrong_is_worse_by_mcnemar() -> None:
    """Nine rows where only the reference is right: p = 2 * (1/2)^9 = 0.0039, four tests' Holm at most 0.0156."""
    gold = [Label.STORE] * 9 + [Label.DISCARD] * 11
    reference = answers("a", [(label, label) for label in gold])
    model = answers("b", [(label, Label.DISCARD) for label in gold])
    comparison = compared(reference, model)
    accuracy_test, macro_f1_test = comparison.tests
    assert accuracy_test.method == "mcnemar_exact"
    assert accuracy_test.p_value == pytest.approx(2 / 2**9)
    assert accuracy_test.difference == pytest.approx(-9 / 20)
    assert accuracy_test.interval.low <= -9 / 20 <= accuracy_test.interval.high < 0
    # B: DISCARD P 11/20 R 1 F1 22/31, STORE 0 -> macro over the two that occur
    assert macro_f1_test.model == pytest.approx(22 / 31 / 2)
    assert [test.verdict for test in comparison.tests] == ["worse", "worse"]
    assert [test.corrected_p for test in comparison.tests] == pytest.approx(
        [max(2 / 2**9, 2 * 2 / (N_RESAMPLES + 1)), 4 / (N_RESAMPLES + 1)]
    )


def test_the_better_model_is_called_better_and_the_same_rows_the_other_way_worse() -> None:
    gold = [Label.STORE, Label.IMPORTANT, Label.DISCARD] * 10
    right = answers("right", [(label, label) for label in gold])
    wrong = answers("wrong", [(label, Label.STORE) for label in gold])
    forward = compared(wrong, right)
    backward = compared(right, wrong)
    assert {test.verdict for test in forward.tests} == {"better"}
    assert {test.verdict for test in backward.tests} == {"worse"}
    for there, back in zip(forward.tests, backward.tests, strict=True):
        assert there.difference == pytest.approx(-back.difference)
        assert there.interval.low == pytest.approx(-back.interval.high)
        assert there.p_value == pytest.approx(back.p_value)


def test_equal_answers_differ_by_nothing_with_p_of_one() -> None:
    labels = [(Label.STORE, Label.DISCARD), (Label.DISCARD, Label.DISCARD)] * 5
    extractions = [(LIVES_IN, LIVED_IN), (LIVES_IN, LIVES_IN)] * 5
    comparison = compared(answers("a", labels, extractions), answers("copy", labels, extractions))
    assert [test.measure for test in comparison.tests] == ["accuracy", "macro_f1", "entity_f1", "triple_f1_temporal"]
    for test in comparison.tests:
        assert (test.difference, test.p_value, test.corrected_p) == (0, 1, 1)
        assert (test.interval.low, test.interval.high) == (0, 0)
        assert test.verdict == "no evidence"
    assert comparison.differences == []


def test_rows_of_one_family_count_as_one_observation() -> None:
    """Twelve wrong answers are evidence when their wordings are unlike; all of two families, hardly any."""
    labels = [(Label.STORE, Label.STORE)] * 12, [(Label.STORE, Label.DISCARD)] * 11 + [(Label.STORE, Label.STORE)]
    verdicts = []
    for families in (None, ["one"] * 11 + ["other"]):
        reference, model = (answers(name, labels[n], families=families) for n, name in enumerate("ab"))
        verdicts.append(compared(reference, model).tests[1].verdict)
    assert verdicts == ["worse", "no evidence"]


def test_holm_runs_over_all_comparisons_made_together() -> None:
    gold = [Label.STORE] * 7 + [Label.DISCARD] * 13
    reference = answers("a", [(label, label) for label in gold])
    model = answers("b", [(label, Label.DISCARD) for label in gold])
    alone = compared(reference, model).tests[0]
    among_many = compare_many(reference, [model] * 10, n_resamples=N_RESAMPLES)[0].tests[0]
    assert alone.p_value == among_many.p_value == pytest.approx(2 / 2**7)  # 0.0156
    assert alone.verdict == "worse"
    assert among_many.corrected_p > alone.corrected_p
    assert among_many.verdict == "no evidence"


def test_answers_to_other_rows_are_refused_in_one_line() -> None:
    labels = [(Label.STORE, Label.STORE)] * 4
    with pytest.raises(
        ObserverError, match=r"b: answers 3 rows of val; 3 of them are among the 4 rows of val"
    ) as error:
        compared(answers("a", labels), answers("b", labels[:3]))
    assert "\n" not in str(error.value)
    other_gold = answers("b", [(Label.DISCARD, Label.STORE)] * 4)
    with pytest.raises(ObserverError, match="0 of them"):
        compared(answers("a", labels), other_gold)
    check_rows(other_gold, other_gold.grade_rows, "val")


def test_differing_rows_begin_with_the_largest_loss() -> None:
    labels = [Label.IMPORTANT] * 4
    reference = answers(
        "a", [(g, p) for g, p in zip(labels, [LABELS[2], LABELS[2], LABELS[0], LABELS[1]], strict=True)]
    )
    model = answers("b", [(g, p) for g, p in zip(labels, [LABELS[1], LABELS[0], LABELS[2], LABELS[1]], strict=True)])
    found = row_differences(reference, model)
    assert [(d.id, d.gain) for d in found] == [("grade-1", -1.0), ("grade-0", -0.5), ("grade-2", 1.0)]
    assert (found[0].gold, found[0].reference, found[0].model) == ("IMPORTANT", "IMPORTANT", "DISCARD")


def test_extractions_differ_by_what_they_say_not_by_how_it_is_ordered() -> None:
    shuffled = json.dumps(
        json.loads(LIVES_IN.to_compact_json()) | {"entities": LIVES_IN.model_dump()["entities"][::-1]}
    )
    reference = answers("a", extractions=[(LIVES_IN, LIVES_IN), (LIVES_IN, LIVES_IN), (LIVES_IN, NOTHING)])
    model = answers("b", extractions=[(LIVES_IN, shuffled), (LIVES_IN, "{cut"), (LIVES_IN, LIVED_IN)])
    found = row_differences(reference, model)
    # two entities and one triple: all right, then nothing; nothing, then 2 of 3 right
    assert [(d.id, d.gain) for d in found] == [("extract-1", -1.0), ("extract-2", pytest.approx(2 / 3))]


def test_the_worst_rows_are_losses_of_both_tasks() -> None:
    labels = [(Label.IMPORTANT, Label.IMPORTANT)] * 20, [(Label.IMPORTANT, Label.DISCARD)] * 20
    extractions = [(LIVES_IN, LIVES_IN)] * 3, [(LIVES_IN, LIVED_IN)] * 3
    reference, model = (answers(name, labels[n], extractions[n]) for n, name in enumerate("ab"))
    differences = row_differences(reference, model)
    assert len(differences) == 23
    assert [d.task for d in worst(differences, 10)] == ["grade"] * 7 + ["extract"] * 3
    assert worst(row_differences(answers("b", labels[1]), answers("a", labels[0])), 10) == []


def test_the_report_shows_verdicts_and_both_answers_beside_gold_and_survives_hostile_rows() -> None:
    reference, model = answers("a", [(Label.STORE, Label.STORE)]), answers("b", [(Label.STORE, Label.DISCARD)])
    for part in (reference, model):
        part.grade_rows[0]["prompt"][-1]["content"] = "USER: ```\n# not a heading"
    comparison = compared(reference, model)
    environment = {"packages": {"llama-cpp-python": "1"}, "git_commit": "c"}
    origin = Origin(
        "python eval/compare.py a b", "today", environment, {"a": "a.answers.jsonl", "b": "b.answers.jsonl"}
    )
    text = to_markdown([comparison], origin)
    assert "python eval/compare.py a b" in text
    assert "````text\nUSER: ```\n# not a heading\n\ngold      STORE\nreference STORE\nmodel     DISCARD\n````" in text
    table = verdict_table([comparison]).splitlines()
    assert len({len(line) for line in table}) == 1
    assert "no evidence" in table[2] and "-1.000 [-1.000, -1.000]" in table[2]
    assert json.loads(json.dumps(comparison.to_json()))["differences"] == 1
