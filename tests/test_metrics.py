"""Scorers against cases worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.baselines import majority_class, tfidf_probe
from eval.metrics import parse_answer, score_extraction, score_grading
from observer.schema import Extraction, Label

D, S, I = Label.DISCARD, Label.STORE, Label.IMPORTANT  # noqa: E741

USER_AT_ACME = Extraction.model_validate(
    {
        "entities": [{"name": "User", "type": "Person"}, {"name": "Acme", "type": "Organization"}],
        "relationships": [{"subject": "User", "predicate": "WORKS_AT", "object": "Acme", "temporal": "ongoing"}],
    }
)
EMPTY = Extraction()


def answer(*triples: str, entities: str = "User:Person Acme:Organization") -> str:
    """Compact JSON from `subject predicate object temporal` lines."""
    named = [dict(zip(("name", "type"), item.split(":"), strict=True)) for item in entities.split()]
    keys = ("subject", "predicate", "object", "temporal")
    relations = [dict(zip(keys, triple.split(), strict=True)) for triple in triples]
    return Extraction.model_validate({"entities": named, "relationships": relations}).to_compact_json()


def test_grading_scores_equal_the_hand_computed_ones() -> None:
    gold = [D, D, S, S, S, I, I, I, I, I]
    predicted = [D, S, S, S, I, I, I, I, I, D]
    scores = score_grading(gold, predicted)
    assert scores.n == 10
    assert scores.accuracy == pytest.approx(0.7)
    assert scores.confusion == [[1, 1, 0], [0, 2, 1], [1, 0, 4]]
    assert scores.per_class["DISCARD"].precision == pytest.approx(1 / 2)
    assert scores.per_class["DISCARD"].recall == pytest.approx(1 / 2)
    assert scores.per_class["STORE"].f1 == pytest.approx(2 / 3)
    assert scores.per_class["IMPORTANT"].f1 == pytest.approx(4 / 5)
    assert scores.per_class["IMPORTANT"].support == 5
    assert scores.macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 4 / 5) / 3)


def test_a_label_never_predicted_counts_as_zero_and_one_absent_everywhere_does_not_count() -> None:
    assert score_grading([D, S], [D, D]).macro_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert score_grading([D, D], [D, D]).macro_f1 == 1.0


def test_a_perfect_answer_scores_one_everywhere() -> None:
    scores = score_extraction([USER_AT_ACME, EMPTY], [USER_AT_ACME.to_compact_json(), EMPTY.to_compact_json()])
    assert scores.json_validity == scores.schema_validity == scores.exact_match == 1.0
    assert scores.entity_f1 == scores.triple_f1 == scores.triple_f1_temporal == 1.0
    assert (scores.correct_empty_rate, scores.n_empty) == (1.0, 1)


def test_a_wrong_temporal_costs_only_the_score_that_looks_at_it() -> None:
    scores = score_extraction([USER_AT_ACME], [answer("User WORKS_AT Acme completed")])
    assert (scores.triple_f1, scores.triple_f1_temporal, scores.exact_match) == (1.0, 0.0, 0.0)


def test_f1_is_micro_over_all_rows() -> None:
    # row 1: gold 1 triple, found 2 of which 1 right; row 2: gold 1, found none. right 1, gold 2, found 2.
    answers = [answer("User WORKS_AT Acme ongoing", "User LIKES Acme ongoing"), answer(entities="Acme:Place")]
    scores = score_extraction([USER_AT_ACME, USER_AT_ACME], answers)
    assert scores.triple_f1_temporal == pytest.approx(2 * 1 / (2 + 2))
    assert scores.triple_precision_temporal == scores.triple_recall_temporal == pytest.approx(1 / 2)
    # entities: right 2 (row 1), gold 4, found 3 (Acme as a Place is wrong).
    assert scores.entity_f1 == pytest.approx(2 * 2 / (4 + 3))


@pytest.mark.parametrize(
    ("gold", "found"),
    [
        ("Ana MARRIED_TO User ongoing", "User MARRIED_TO Ana ongoing"),
        ("Ana FRIEND_OF Bo ongoing", "Bo FRIEND_OF Ana ongoing"),
        ("User CHILD_OF Ana ongoing", "Ana PARENT_OF User ongoing"),
        ("User LIKES Ana ongoing", "User LIKES ana ongoing"),
    ],
)
def test_two_ways_to_say_one_thing_match(gold: str, found: str) -> None:
    expected = parse_answer(answer(gold))
    assert expected is not None
    assert score_extraction([expected], [answer(found)]).triple_f1_temporal == 1.0


def test_direction_matters_for_other_predicates() -> None:
    expected = parse_answer(answer("Ana PARENT_OF Bo ongoing"))
    assert expected is not None
    assert score_extraction([expected], [answer("Bo PARENT_OF Ana ongoing")]).triple_f1 == 0.0


@pytest.mark.parametrize(
    ("text", "is_json", "is_schema"),
    [
        ("", False, False),
        ("null", False, False),
        ("[]", False, False),
        ('{"entities":[', False, False),
        ("[" * 100_000, False, False),
        ("{}", True, True),
        ('{"entities":[],"relationships":[],"more":1}', True, False),
        ('{"entities":[{"name":"Acme","type":"Company"}],"relationships":[]}', True, False),
        (answer("User WORKS_AT Nokia ongoing"), True, False),  # Nokia is no entity
        (answer("User WORKS_AT Acme ongoing"), True, True),
    ],
)
def test_json_and_schema_validity_are_told_apart(text: str, is_json: bool, is_schema: bool) -> None:
    scores = score_extraction([USER_AT_ACME], [text])
    assert (scores.json_validity, scores.schema_validity) == (float(is_json), float(is_schema))


def test_an_empty_gold_wants_a_valid_empty_answer() -> None:
    answers = ["", EMPTY.to_compact_json(), answer("User WORKS_AT Acme ongoing"), EMPTY.to_compact_json()]
    scores = score_extraction([EMPTY, EMPTY, EMPTY, USER_AT_ACME], answers)
    assert (scores.correct_empty_rate, scores.n_empty) == (pytest.approx(1 / 3), 3)
    assert score_extraction([USER_AT_ACME], [""]).correct_empty_rate is None


def test_nothing_to_find_and_nothing_found_is_right() -> None:
    assert score_extraction([EMPTY], [EMPTY.to_compact_json()]).triple_f1 == 1.0


@given(st.lists(st.tuples(st.sampled_from(list(Label)), st.sampled_from(list(Label))), min_size=1))
def test_the_confusion_matrix_holds_every_row(pairs: list[tuple[Label, Label]]) -> None:
    scores = score_grading([gold for gold, _ in pairs], [predicted for _, predicted in pairs])
    assert sum(map(sum, scores.confusion)) == scores.n == len(pairs)
    assert scores.accuracy == pytest.approx(sum(scores.confusion[i][i] for i in range(3)) / len(pairs))


@given(st.text())
def test_any_text_can_be_scored_as_an_answer(text: str) -> None:
    scores = score_extraction([USER_AT_ACME], [text])
    assert scores.json_validity >= scores.schema_validity


def test_the_majority_class_is_the_most_frequent_of_train() -> None:
    assert majority_class([D, I, I], 2) == ["IMPORTANT", "IMPORTANT"]


def test_the_probe_learns_words_and_copes_with_one_label() -> None:
    texts, labels = ("thanks a lot", "i love tea", "i work at acme") * 4, ("DISCARD", "STORE", "IMPORTANT") * 4
    assert tfidf_probe(texts, labels, ("they work at nokia", "thanks")) == ["IMPORTANT", "DISCARD"]
    assert tfidf_probe(("a", "b"), ("STORE", "STORE"), ("c",)) == ["STORE"]
