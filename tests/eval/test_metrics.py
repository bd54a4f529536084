"""Scorers against cases worked out by hand, and against scikit-learn's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from eval.metrics.baselines import majority_class, tfidf_probe
from eval.metrics.extraction import ExtractionScores, score_extraction, score_validity
from eval.metrics.grading import LABELS, confusion_counts, macro_f1, score_grading
from eval.metrics.row_counts import f1_of, is_grounded, parse_answer, triple_counts
from observer.schema import Extraction, Label

D, S, I = Label.DISCARD, Label.STORE, Label.IMPORTANT  # noqa: E741

USER_AT_ACME = Extraction.model_validate(
    {
        "entities": [{"name": "User", "type": "Person"}, {"name": "Acme", "type": "Organization"}],
        "relationships": [{"subject": "User", "predicate": "WORKS_AT", "object": "Acme", "temporal": "ongoing"}],
    }
)
EMPTY = Extraction()
TEXT = "USER: i work at Acme"

label_pairs = st.lists(st.tuples(st.sampled_from(list(Label)), st.sampled_from(list(Label))), min_size=1)


def answer(*triples: str, entities: str = "User:Person Acme:Organization") -> str:
    """Compact JSON from `subject predicate object temporal [when]` lines."""
    named = [dict(zip(("name", "type"), item.split(":"), strict=True)) for item in entities.split()]
    keys = ("subject", "predicate", "object", "temporal", "when")
    relations = [dict(zip(keys, triple.split(), strict=False)) for triple in triples]
    return Extraction.model_validate({"entities": named, "relationships": relations}).to_compact_json()


def extraction(*triples: str, entities: str = "User:Person Acme:Organization") -> Extraction:
    return Extraction.model_validate_json(answer(*triples, entities=entities))


def scored(gold: list[Extraction], answers: list[str], text: str = TEXT) -> ExtractionScores:
    return score_extraction(gold, answers, [text] * len(gold))


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
    # squared steps: 1 (D as S) + 1 (S as I) + 4 (I as D) = 6. By chance, with gold 2, 3, 5 and predicted 2, 3, 5:
    # (2*3 + 3*2 + 3*5 + 5*3 + 4 * (2*5 + 5*2)) / 10 = 12.2
    assert scores.quadratic_kappa == pytest.approx(1 - 6 / 12.2)
    assert scores.mean_cost == pytest.approx((1 + 1 + 4) / 10)
    assert (scores.brier, scores.ece, scores.reliability, scores.intervals) == (None, None, [], {})


def test_junk_kept_and_facts_missed_equal_the_hand_computed_ones() -> None:
    gold, predicted = [D, D, D, D, S, I, I], [D, S, I, D, D, D, I]
    beliefs = probabilities(
        (0.95, 0.05, 0), (0.4, 0.6, 0), (0.1, 0, 0.9), (0.7, 0.3, 0), (0.6, 0.4, 0), (0.85, 0.15, 0), (0, 0, 1)
    )
    scores = score_grading(gold, predicted, beliefs)
    assert scores.false_keep_rate == pytest.approx(2 / 4) and scores.missed_rate == pytest.approx(1 / 2)
    curve = {point.threshold: (point.false_keep_rate, point.missed_rate) for point in scores.keep_curve}
    assert curve[0.02] == (1.0, 0.0)  # every DISCARD row has more than 2 % of being kept
    assert curve[0.1] == (0.75, 0.0)  # 0.6, 0.9 and 0.3 are over it, 0.05 is not; 0.15 and 1 are
    assert curve[0.5] == (0.5, 0.5)
    assert curve[0.95] == (0.0, 0.5)
    assert list(curve) == sorted(curve)


def test_without_rows_of_a_label_its_rate_is_unknown() -> None:
    scores = score_grading([S, S], [D, S], probabilities((0.6, 0.4, 0), (0, 1, 0)))
    assert (scores.false_keep_rate, scores.missed_rate) == (None, None)
    assert scores.keep_curve[0].false_keep_rate is None and scores.keep_curve[0].missed_rate is None
    assert score_grading([D, I], [D, I]).keep_curve == []


def test_all_right_or_all_wrong_is_as_sure_as_the_rows_that_are_counted_are_many() -> None:
    # Clopper-Pearson of n of n: the lower end is (alpha / 2) ** (1 / n); of 0 of n, the upper end is 1 minus that
    least = [pytest.approx(0.025 ** (1 / max(n, 1))) for n in range(8)]
    gold, families = [D] * 7 + [I] * 3, [str(n) for n in range(10)]
    graded = score_grading(gold, gold, groups=families).intervals
    assert (1 - graded["missed_rate"].high, 1 - graded["false_keep_rate"].high) == (least[3], least[7])
    assert graded["IMPORTANT.recall"].low == graded["IMPORTANT.precision"].low == least[3]
    kept = score_grading(gold, [D] * 6 + [I] * 4, groups=families).intervals  # one more is called IMPORTANT
    assert (kept["DISCARD.precision"].low, kept["IMPORTANT.recall"].low) == (least[6], least[3])

    one, two = answer("User WORKS_AT Acme ongoing"), [EMPTY.to_compact_json()] * 2
    seldom = score_extraction([USER_AT_ACME] * 3, [one, *two], [TEXT] * 3, groups=families[:3]).intervals
    often = score_extraction([USER_AT_ACME, EMPTY, EMPTY], [one] * 3, [TEXT] * 3, groups=families[:3]).intervals
    assert seldom["triple_precision_temporal"].low == often["triple_recall_temporal"].low == least[1]


def test_forgetting_what_matters_costs_most() -> None:
    def cost(gold: Label, predicted: Label) -> float:
        return score_grading([gold], [predicted]).mean_cost

    costs = {(gold, predicted): cost(gold, predicted) for gold in Label for predicted in Label}
    assert all(costs[label, label] == 0 for label in Label)
    assert costs.pop((I, D)) > max(costs.values())


def test_a_label_never_predicted_counts_as_zero_and_one_absent_everywhere_does_not_count() -> None:
    assert score_grading([D, S], [D, D]).macro_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert score_grading([D, D], [D, D]).macro_f1 == 1.0
    assert score_grading([D, D], [D, D]).quadratic_kappa is None


def probabilities(*rows: tuple[float, float, float]) -> list[dict[Label, float]]:
    return [dict(zip(Label, row, strict=True)) for row in rows]


def test_brier_and_calibration_equal_the_hand_computed_ones() -> None:
    gold, predicted = [D, S, I, I], [D, S, D, I]
    beliefs = probabilities((0.75, 0.25, 0), (0.125, 0.75, 0.125), (0.5, 0, 0.5), (0, 0, 1))
    scores = score_grading(gold, predicted, beliefs)
    # squared distances: (1/4)^2 * 2; (1/4)^2 + (1/8)^2 * 2; (1/2)^2 * 2; 0
    assert scores.brier == pytest.approx((0.125 + 0.09375 + 0.5 + 0) / 4)
    assert [(b.confidence, b.accuracy, b.count) for b in scores.reliability] == [(0.5, 0, 1), (0.75, 1, 2), (1, 1, 1)]
    assert scores.ece == pytest.approx((1 * 0.5 + 2 * 0.25 + 0) / 4)


def test_rows_without_probabilities_have_no_calibration() -> None:
    scores = score_grading([D, S], [D, S], [*probabilities((1, 0, 0)), {}])
    assert (scores.brier, scores.ece, scores.reliability) == (None, None, [])


def test_intervals_hold_the_value_and_are_named_as_the_fields() -> None:
    gold, predicted = [D, S, I, I, S, D] * 5, [D, S, I, D, S, S] * 5
    beliefs = probabilities(*[(0.5, 0.25, 0.25)] * 30)
    scores = score_grading(gold, predicted, beliefs, [f"family {n // 2}" for n in range(30)])
    classes = {f"{label}.{name}" for label in LABELS for name in ("precision", "recall", "f1")}
    whole = {"accuracy", "macro_f1", "quadratic_kappa", "mean_cost", "false_keep_rate", "missed_rate", "brier"}
    assert set(scores.intervals) == whole | classes
    assert scores.n_families == 15
    for name, interval in scores.intervals.items():
        value = getattr(scores.per_class[name.split(".")[0]], name.split(".")[1]) if "." in name else None
        assert interval.low <= (getattr(scores, name) if value is None else value) <= interval.high
    extracted = score_extraction([USER_AT_ACME, EMPTY], ["", answer()], [TEXT, TEXT], groups=["a", "b"])
    assert set(extracted.intervals) <= set(ExtractionScores.__dataclass_fields__)
    assert len(extracted.intervals) == 13  # all but temporal accuracy: no triple was found


@given(label_pairs)
@settings(max_examples=40)
def test_grading_scores_agree_with_scikit_learn(pairs: list[tuple[Label, Label]]) -> None:
    gold, predicted = ([str(pair[side]) for pair in pairs] for side in (0, 1))
    scores = score_grading(gold, predicted)
    assert scores.confusion == metrics.confusion_matrix(gold, predicted, labels=LABELS).tolist()
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(gold, predicted))
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(gold, predicted, average="macro"))
    columns = metrics.precision_recall_fscore_support(gold, predicted, labels=LABELS, zero_division=0.0)  # type: ignore[arg-type]
    for one, *expected in zip(scores.per_class.values(), *columns, strict=True):  # type: ignore[arg-type]
        assert [one.precision, one.recall, one.f1, one.support] == pytest.approx(expected)
    if scores.quadratic_kappa is not None:
        steps = [[LABELS.index(label) for label in side] for side in (gold, predicted)]
        assert scores.quadratic_kappa == pytest.approx(metrics.cohen_kappa_score(*steps, weights="quadratic"))


@given(st.lists(st.tuples(st.sampled_from(list(Label)), st.tuples(*[st.floats(0.01, 1)] * 3)), min_size=3))
@settings(max_examples=40)
def test_brier_agrees_with_scikit_learn(rows: list[tuple[Label, tuple[float, float, float]]]) -> None:
    gold = [label for label, _ in rows]
    table = np.array([weights for _, weights in rows])
    table /= table.sum(1, keepdims=True)
    beliefs = probabilities(*map(tuple, table))
    scores = score_grading(gold, [list(Label)[row.argmax()] for row in table], beliefs)
    by_name = sorted(LABELS)
    shares = table[:, [LABELS.index(label) for label in by_name]]
    expected = metrics.brier_score_loss([str(g) for g in gold], shares, labels=by_name, scale_by_half=False)  # type: ignore[arg-type]
    assert scores.brier == pytest.approx(expected)
    assert scores.brier is not None and 0 <= scores.brier <= 2
    assert scores.ece is not None and 0 <= scores.ece <= 1
    assert sum(one.count for one in scores.reliability) == len(rows)


def test_macro_f1_takes_many_confusions_at_once() -> None:
    one = confusion_counts([D, D, S, I], [D, S, S, I]).sum(0)
    other = confusion_counts([D, D], [D, D]).sum(0)
    nothing = np.zeros(9, dtype=int)
    found = macro_f1(np.stack([one, other, nothing]))
    assert found[:2] == pytest.approx([(2 / 3 + 2 / 3 + 1) / 3, 1.0])
    assert np.isnan(found[2])


def test_a_perfect_answer_scores_one_everywhere() -> None:
    scores = scored([USER_AT_ACME, EMPTY], [USER_AT_ACME.to_compact_json(), EMPTY.to_compact_json()])
    assert scores.json_validity == scores.schema_validity == scores.exact_match == 1.0
    assert scores.entity_f1 == scores.entity_f1_partial == 1.0
    assert scores.triple_f1 == scores.triple_f1_temporal == scores.triple_f1_when == scores.temporal_accuracy == 1.0
    assert (scores.correct_empty_rate, scores.n_empty) == (1.0, 1)
    assert scores.hallucination_rate == scores.truncation_rate == 0.0


def test_a_wrong_temporal_costs_only_the_scores_that_look_at_it() -> None:
    scores = scored([USER_AT_ACME], [answer("User WORKS_AT Acme completed")])
    assert (scores.triple_f1, scores.triple_f1_temporal, scores.exact_match) == (1.0, 0.0, 0.0)
    assert scores.temporal_accuracy == 0.0


def test_a_wrong_when_costs_only_the_score_that_looks_at_it() -> None:
    gold = extraction("User WORKS_AT Acme ongoing Monday")
    answers = ["User WORKS_AT Acme ongoing", "User WORKS_AT Acme ongoing MONDAY", "User WORKS_AT Acme ongoing Friday"]
    scores = scored([gold] * 3, [answer(a) for a in answers])
    assert (scores.triple_f1_temporal, scores.triple_f1_when) == (1.0, pytest.approx(1 / 3))


def test_temporal_accuracy_looks_at_the_triples_that_were_found() -> None:
    # gold: lived in Acme and lives in it again; Rio was not found. Of the two found, one temporal is right.
    entities = "User:Person Acme:Place Rio:Place"
    triples = "User LIVES_IN Acme completed", "User LIVES_IN Acme ongoing", "User LIKES Rio ongoing"
    found = answer("User LIVES_IN Acme ongoing", "User VISITS Rio future", entities=entities)
    scores = scored([extraction(*triples, entities=entities)], [found])
    assert scores.temporal_accuracy == pytest.approx(1 / 2)
    assert scored([USER_AT_ACME], [""]).temporal_accuracy is None


def test_f1_is_micro_over_all_rows() -> None:
    # row 1: gold 1 triple, found 2 of which 1 right; row 2: gold 1, found none. right 1, gold 2, found 2.
    answers = [answer("User WORKS_AT Acme ongoing", "User LIKES Acme ongoing"), answer(entities="Acme:Place")]
    scores = scored([USER_AT_ACME, USER_AT_ACME], answers)
    assert scores.triple_f1_temporal == pytest.approx(2 * 1 / (2 + 2))
    assert scores.triple_precision_temporal == scores.triple_recall_temporal == pytest.approx(1 / 2)
    # entities: right 2 (row 1), gold 4, found 3 (Acme as a Place is wrong).
    assert scores.entity_f1 == pytest.approx(2 * 2 / (4 + 3))


def test_counts_are_right_gold_and_found_of_each_row() -> None:
    gold = [extraction("User WORKS_AT Acme ongoing", "User LIKES Acme ongoing"), EMPTY]
    answers = [answer("User WORKS_AT Acme completed", "User OWNS Acme ongoing"), "{not json"]
    assert triple_counts(gold, answers, "triple").tolist() == [[1, 2, 2], [0, 0, 0]]
    assert triple_counts(gold, answers, "temporal").tolist() == [[0, 2, 2], [0, 0, 0]]
    assert triple_counts(gold, answers, "entity").tolist() == [[2, 2, 2], [0, 0, 0]]
    assert f1_of(triple_counts(gold, answers, "triple")).tolist() == [0.5, 1.0]


def named(*names: str, kind: str = "Person") -> Extraction:
    return Extraction.model_validate({"entities": [{"name": name, "type": kind} for name in names]})


@pytest.mark.parametrize(
    ("gold", "found", "n_right"),
    [
        (["Ana Silva"], ["Ana"], 1),  # all words of one stand in the other
        (["the Boston Marathon"], ["Marathon, Boston"], 1),
        (["The Office"], ["The Wire"], 0),  # a shared word is not enough
        (["Ana"], ["Anabel"], 0),
        (["Ana Silva", "Ana Costa"], ["Ana"], 1),  # each is matched once
        (["Ana", "Ana Silva"], ["Ana Silva", "Silva"], 2),  # Ana with Ana Silva, Ana Silva with Silva
        (["🙂"], ["🙂"], 1),
        (["café Ítaca"], ["CAFÉ ÍTACA".replace("É", "E\u0301")], 1),  # another normal form
    ],
)
def test_partial_entities_overlap_in_words(gold: list[str], found: list[str], n_right: int) -> None:
    answers = [named(*found, kind="Concept").to_compact_json()]
    assert triple_counts([named(*gold)], answers, "entity_partial").tolist() == [[n_right, len(gold), len(found)]]
    assert triple_counts([named(*gold)], answers, "entity")[0, 0] == 0


@given(st.lists(st.text(min_size=1), max_size=4), st.lists(st.text(min_size=1), max_size=4))
def test_partial_matches_are_at_least_the_strict_ones(gold: list[str], found: list[str]) -> None:
    both = [named(*gold)], [named(*found).to_compact_json()]
    strict, partial = triple_counts(*both, "entity")[0], triple_counts(*both, "entity_partial")[0]
    assert strict[0] <= partial[0] <= min(strict[1:])


@pytest.mark.parametrize(
    ("name", "is_in_text"),
    [
        ("Acme", True),
        ("acme corp", True),
        ("Corp Acme", False),
        ("Acm", False),
        ("User", True),
        ("Zoë", True),
        ("ZOE\u0308", True),
        ("C++", True),
        ("🙂", True),
        ("🙁", False),
    ],
)
def test_a_name_is_grounded_where_its_words_follow_one_another(name: str, is_in_text: bool) -> None:
    assert is_grounded(name, "USER: at Acme\n  Corp with Zoë, in C++ 🙂") == is_in_text


def test_hallucinations_are_names_that_nobody_said() -> None:
    # User, Acme and Rio once each, though Acme has two roles; endpoints count without an entity
    found = json.loads(answer("User WORKS_AT Acme ongoing", "User LIVES_IN Rio ongoing"))
    assert scored([USER_AT_ACME], [json.dumps(found)]).hallucination_rate == pytest.approx(1 / 3)
    assert scored([USER_AT_ACME], [EMPTY.to_compact_json()]).hallucination_rate is None


def test_truncated_answers_are_counted() -> None:
    scores = score_extraction([USER_AT_ACME] * 4, [""] * 4, [TEXT] * 4, truncated=[True, False, False, True])
    assert scores.truncation_rate == 0.5


@pytest.mark.parametrize(
    ("gold", "found"),
    [
        ("Ana MARRIED_TO User ongoing", "User MARRIED_TO Ana ongoing"),
        ("Ana FRIEND_OF Bo ongoing", "Bo FRIEND_OF Ana ongoing"),
        ("User CHILD_OF Ana ongoing", "Ana PARENT_OF User ongoing"),
        ("User LIKES Ana ongoing", "User LIKES ana ongoing"),
        ("User LIKES Zoë ongoing", "User LIKES Zoe\u0308 ongoing"),
    ],
)
def test_two_ways_to_say_one_thing_match(gold: str, found: str) -> None:
    assert scored([extraction(gold)], [answer(found)]).triple_f1_temporal == 1.0


def test_direction_matters_for_other_predicates() -> None:
    assert scored([extraction("Ana PARENT_OF Bo ongoing")], [answer("Bo PARENT_OF Ana ongoing")]).triple_f1 == 0.0


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
    scores, free = scored([USER_AT_ACME], [text]), score_validity([text], ["a"])
    assert (scores.json_validity, scores.schema_validity) == (float(is_json), float(is_schema))
    assert (free.n, free.json_validity, free.schema_validity) == (1, float(is_json), float(is_schema))


def test_an_empty_gold_wants_a_valid_empty_answer() -> None:
    answers = ["", EMPTY.to_compact_json(), answer("User WORKS_AT Acme ongoing"), EMPTY.to_compact_json()]
    scores = scored([EMPTY, EMPTY, EMPTY, USER_AT_ACME], answers)
    assert (scores.correct_empty_rate, scores.n_empty) == (pytest.approx(1 / 3), 3)
    assert scored([USER_AT_ACME], [""]).correct_empty_rate is None


def test_an_exact_match_has_the_same_attributes() -> None:
    def with_role(role: str) -> Extraction:
        return Extraction.model_validate({"entities": [{"name": "Bo", "type": "Person", "attributes": {"role": role}}]})

    answers = [with_role(role).to_compact_json() for role in ("chef", "cook")]
    assert scored([with_role("chef")] * 2, answers).exact_match == 0.5


@given(st.text())
def test_any_text_can_be_scored_as_an_answer(text: str) -> None:
    scores = scored([USER_AT_ACME], [text])
    assert scores.json_validity >= scores.schema_validity
    for level in ("triple", "temporal", "when", "entity", "entity_partial"):
        assert 0 <= float(f1_of(triple_counts([USER_AT_ACME], [text], level))[0]) <= 1


def test_the_types_alone_make_an_answer() -> None:
    assert parse_answer(answer("User WORKS_AT Nokia ongoing")) is not None
    assert parse_answer('{"entities":[{"name":"Acme","type":"Company"}]}') is None


def test_the_majority_class_is_the_most_frequent_of_train() -> None:
    assert majority_class([D, I, I], 2) == ["IMPORTANT", "IMPORTANT"]


def test_the_probe_learns_words_and_copes_with_one_label() -> None:
    texts, labels = ("thanks a lot", "i love tea", "i work at acme") * 4, ("DISCARD", "STORE", "IMPORTANT") * 4
    assert tfidf_probe(texts, labels, ("they work at nokia", "thanks")) == ["IMPORTANT", "DISCARD"]
    assert tfidf_probe(("a", "b"), ("STORE", "STORE"), ("c",)) == ["STORE"]
