"""The generator: gold read off the world's log, splits that share nothing they must not, the same bytes again."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import random
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from observer.data.importing import read_raw_rows
from observer.data.synth.bloom_filter import Seen
from observer.data.synth.clauses import fill
from observer.data.synth.generate import base_rows, stream_rows, write_data
from observer.data.synth.pools import Draw, values
from observer.data.synth.surface import SLOT, SPLIT_CYCLE, expand, load_sections
from observer.data.synth.verbalize import Verbalizer
from observer.data.synth.world import LASTING, TODAY, TRACKS, Span, sample_view, time_expression, views
from observer.files import read_jsonl
from observer.paths import (
    EVERYDAY_JSONL,
    EXTRACTION_JSONL,
    GRADING_JSONL,
    PERSONAL_JSONL,
    PROJECT_ROOT,
    TRAIN_JSONL,
    VAL_JSONL,
)
from observer.prompts import SYSTEM_PROMPT, row_exchange, row_task, training_row
from observer.schema import ExtractionRow, GradingRow, Label, Predicate, RawRow, highest_label, parse_row

FILES = (GRADING_JSONL, EXTRACTION_JSONL, TRAIN_JSONL, VAL_JSONL)


@pytest.fixture(scope="module")
def rows() -> list[RawRow]:
    parsed = [parse_row(value) for path in FILES[:2] for _, value in read_jsonl(PROJECT_ROOT / path)]
    assert [faults for _, faults in parsed if faults] == []
    return [row for row, _ in parsed if row is not None]


def extraction_rows(rows: list[RawRow]) -> list[ExtractionRow]:
    return [row for row in rows if isinstance(row, ExtractionRow)]


def families(rows: list[RawRow]) -> set[str]:
    return {part for row in rows for part in (row.family or "").split("+")}


def everything_said(row: RawRow) -> str:
    return "\n".join([*(turn.content for turn in row.context), row.user_message, row.assistant_message])


# --- the shipped files ---


def test_counts_and_label_shares_are_as_promised(rows: list[RawRow]) -> None:
    labels = Counter(row.label for row in rows if isinstance(row, GradingRow))
    assert sum(labels.values()) == 1700
    assert len(extraction_rows(rows)) == 1600
    for label, percent in ((Label.DISCARD, 11), (Label.STORE, 31), (Label.IMPORTANT, 58)):
        assert abs(100 * labels[label] / 1700 - percent) < 1
    assert len(read_jsonl(PROJECT_ROOT / TRAIN_JSONL)) == 2640
    assert len(read_jsonl(PROJECT_ROOT / VAL_JSONL)) == 660


def test_train_and_val_hold_every_raw_row_once_in_conversational_form(rows: list[RawRow]) -> None:
    by_task_and_id = {(str(row_task(row)), row.id): row for row in rows}
    shipped = [value for path in FILES[2:] for _, value in read_jsonl(PROJECT_ROOT / path)]
    assert sorted((value["task"], value["id"]) for value in shipped) == sorted(by_task_and_id)
    for value in shipped:
        assert value == json.loads(json.dumps(training_row(by_task_and_id[value["task"], value["id"]])))
        assert value["prompt"][0]["content"] == SYSTEM_PROMPT


def test_no_prompt_of_a_task_occurs_twice(rows: list[RawRow]) -> None:
    prompts = Counter((type(row), row_exchange(row)) for row in rows)
    assert max(prompts.values()) == 1


def test_labels_follow_from_the_facts_of_their_reasoning(rows: list[RawRow]) -> None:
    for row in rows:
        if isinstance(row, GradingRow):
            stated = [word for word in row.reasoning.split() if word in set(Predicate)]
            is_beyond_the_inventory = "RELATED_TO" in stated and row.label is Label.IMPORTANT
            assert row.label is highest_label(stated) or is_beyond_the_inventory, row.reasoning


def test_val_rows_alone_say_what_train_never_shows(rows: list[RawRow]) -> None:
    assert all((row.unseen is None) == (row.part == "train") for row in rows)


def test_no_secret_is_in_any_gold(rows: list[RawRow]) -> None:
    pasted = [row for row in extraction_rows(rows) if "secrets" in row.slices]
    secret = re.compile(r"\d{4}( \d{4}){3}|\b\d{6}\b|(sk-|api_|ghp_|tok-)\w{20}|\w+[!#_.$-]\w+\d\d")
    assert any(secret.search(row.user_message) for row in pasted)
    assert not [row for row in pasted if secret.search(row.extraction.to_compact_json())]


def test_a_train_contrast_set_occurs_with_and_without_facts(rows: list[RawRow]) -> None:
    forms: dict[str, set[bool]] = {}
    for row in extraction_rows(rows):
        for family in (row.family or "").split("+"):
            if family.startswith("contrast.") and row.source == "synth/train":
                forms.setdefault(family, set()).add(bool(row.relationships))
    assert sum(len(found) == 2 for found in forms.values()) >= 10


def test_no_slot_is_left_unfilled(rows: list[RawRow]) -> None:
    slots = {slot for section in load_sections().values() for family in section.families
             for variant in family.variants for slot in SLOT.findall(variant)}  # fmt: skip
    assert not [row for row in rows for slot in slots if f"{{{slot}}}" in everything_said(row)]


# --- the natural rows ---


def natural(rows: list[RawRow]) -> list[RawRow]:
    return [row for row in rows if row.origin == "natural"]


@pytest.fixture(scope="module")
def everyday() -> list[RawRow]:
    return [placed.row for placed in read_raw_rows([PROJECT_ROOT / EVERYDAY_JSONL]).rows]


@pytest.fixture(scope="module")
def personal() -> list[RawRow]:
    return [placed.row for placed in read_raw_rows([PROJECT_ROOT / PERSONAL_JSONL]).rows]


def test_natural_rows_are_as_many_as_promised_with_the_shares_of_all(rows: list[RawRow]) -> None:
    labels = Counter(row.label for row in natural(rows) if isinstance(row, GradingRow))
    assert labels.total() >= 900 and len(extraction_rows(natural(rows))) >= 800
    for label, percent in ((Label.DISCARD, 11), (Label.STORE, 31), (Label.IMPORTANT, 58)):
        assert abs(100 * labels[label] / labels.total() - percent) < 1.5


def test_everyday_rows_have_both_tasks_and_the_shares_of_life(everyday: list[RawRow]) -> None:
    labels = Counter(row.label for row in everyday if isinstance(row, GradingRow))
    assert labels.total() == len(extraction_rows(everyday)) >= 2600
    for label, percent in ((Label.DISCARD, 75), (Label.STORE, 15), (Label.IMPORTANT, 10)):
        assert abs(100 * labels[label] / labels.total() - percent) < 1
    assert sum(row.part == "val" for row in everyday) == 2 * 294


def test_personal_rows_are_for_training_alone_and_mostly_hold_facts(personal: list[RawRow]) -> None:
    labels = Counter(row.label for row in personal if isinstance(row, GradingRow))
    facts = [row for row in extraction_rows(personal) if row.relationships]
    assert labels.total() == len(extraction_rows(personal)) >= 4000 and all(row.part == "train" for row in personal)
    assert labels.total() - labels[Label.DISCARD] == len(facts) >= 0.7 * labels.total()
    assert all(row.origin == "natural" for row in personal)


def test_no_family_and_no_name_of_a_natural_row_is_in_train_and_held_out(
    rows: list[RawRow], everyday: list[RawRow], personal: list[RawRow]
) -> None:
    all_rows = natural(rows) + everyday + personal
    train, held_out = ([row for row in all_rows if row.part == part] for part in ("train", "val"))
    assert not {row.family for row in train} & {row.family for row in held_out}
    assert not {name for row in train for name in row.names} & {name for row in held_out for name in row.names}
    cells = {row.frame for row in all_rows}
    assert len(cells) >= 150 and len({row.family for row in all_rows}) >= 150


def test_an_exchange_is_in_one_file_of_natural_rows_or_in_the_others(
    rows: list[RawRow], everyday: list[RawRow], personal: list[RawRow]
) -> None:
    shipped, further, told = ({row.id for row in part} for part in (rows, everyday, personal))
    assert not further & shipped and not told & (shipped | further)


# --- the nano base learns from other families and other names ---


def test_base_rows_share_no_family_and_no_name_with_the_shipped_rows(rows: list[RawRow]) -> None:
    assert not families(list(itertools.islice(base_rows(), 2000))) & families(rows)
    for slot in ("org", "city", "product", "like", "first_female", "last"):
        pools = [set(values(slot, names)) for names in ("base", "shared", "unseen")]
        assert all(pools)
        assert not pools[0] & pools[1] and not pools[0] & pools[2] and not pools[1] & pools[2]


def test_base_rows_are_a_stream_that_repeats_from_its_seed() -> None:
    first, again = (list(itertools.islice(base_rows(7), 50)) for _ in range(2))
    assert first == again


# --- streaming ---


def test_a_longer_stream_begins_with_the_shorter_one() -> None:
    longer = list(itertools.islice(stream_rows(1000), 60))
    assert longer == list(stream_rows(60)) != list(stream_rows(60, seed=1))
    assert Counter(split for split, _ in longer) == {"train": 48, "val": 12}


def test_streaming_keeps_no_rows(tmp_path: Path) -> None:
    load_sections()  # what is loaded once is no growth
    write_data(tmp_path, 50)
    peaks = []
    for n_rows in (300, 900):
        tracemalloc.start()
        write_data(tmp_path, n_rows)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] + 100_000


def test_what_was_said_is_seen_again() -> None:
    seen = Seen()
    row = GradingRow(user_message="Thanks!", assistant_message="Sure.", label=Label.DISCARD)
    assert seen.is_new(row, "train")
    assert not seen.is_new(row, "train")
    assert not seen.is_new(row.model_copy(update={"user_message": "thanks!", "assistant_message": "Bye."}), "val")
    assert seen.is_new(row.model_copy(update={"assistant_message": "Bye."}), "train")


# --- frames ---


def test_a_contrast_set_is_one_family_dealt_out_to_the_sections_of_its_forms() -> None:
    homes: dict[str, set[str]] = {}
    for section in load_sections().values():
        for family in section.families:
            if family.form:
                homes.setdefault(family.id, set()).add(section.name)
    assert len(homes) >= 300
    assert homes["contrast.job/00"] == {
        *("job.current", "none.negation", "none.hypothetical", "none.question", "3p.job.current"),
    }


@pytest.mark.parametrize(
    ("line", "variants", "slices", "replies"),
    [
        ("hi {name} => Hello {name}. / Hi [there|]!", ["hi {name}"], (), ("Hello {name}.", "Hi there!", "Hi !")),
        (r"@code_block a:\n```\n  x\[0\]\n```", ["a:\n```\n  x[0]\n```"], ("code_block",), ()),
        ("@plan @sarcasm [a|b]  c", ["a c", "b c"], ("plan", "sarcasm"), ()),
    ],
)
def test_a_line_holds_tags_variants_and_replies(
    tmp_path: Path, line: str, variants: list[str], slices: tuple[str, ...], replies: tuple[str, ...]
) -> None:
    (tmp_path / "x.txt").write_text(f"== some.section\n{line}\n> Okay.\n", encoding="utf-8")
    section = load_sections(tmp_path)["some.section"]
    (family,) = section.families
    assert (list(family.variants), family.slices, family.replies) == (variants, slices, replies)
    assert section.replies == ["Okay."]


def test_every_section_serves_every_split_and_uses_known_slots() -> None:
    known = {slot for facts in TRACKS.values() for _, _, slot in facts}
    for section in load_sections().values():
        assert all(section.of(split) for split in set(SPLIT_CYCLE)), section.name
        parts = section.name.split(".")
        if len(parts) >= 2 and parts[-2] in TRACKS:
            main = TRACKS[parts[-2]][0][2]
            assert main in known
            assert all(f"{{{main}}}" in variant for family in section.families for variant in family.variants)


def test_expand_multiplies_alternatives_and_closes_gaps() -> None:
    assert expand("I [work|am] at {org} [now|]") == [
        "I work at {org} now",
        "I work at {org}",
        "I am at {org} now",
        "I am at {org}",
    ]


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("I'm a {role}", {"role": "architect"}, "I'm an architect"),
        ("I'm a {role}", {"role": "nurse"}, "I'm a nurse"),
        ("a {product}, finally", {"product": "Eurorack"}, "a Eurorack, finally"),
        ("A {species} called {pet}", {"species": "owl", "pet": "Ada"}, "An owl called Ada"),
        ("data {role}", {"role": "analyst"}, "data analyst"),
        ("a {role}", {"role": "HR manager"}, "an HR manager"),
        ("a {role}", {"role": "UX designer"}, "a UX designer"),
    ],
)
def test_fill_chooses_the_article(template: str, values: dict[str, str], expected: str) -> None:
    assert fill(template, values) == expected


# --- the world ---


def span(start: str, end: str | None) -> Span:
    return Span({"org": start}, dt.date.fromisoformat(start), dt.date.fromisoformat(end) if end else None)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2020-01-01", None, "ongoing"),
        ("2020-01-01", "2026-06-18", "ongoing"),
        ("2020-01-01", "2026-06-17", "completed"),
        ("2026-06-17", None, "ongoing"),
        ("2026-06-18", None, "future"),
    ],
)
def test_temporal_state_is_read_off_the_dates(start: str, end: str | None, expected: str) -> None:
    assert span(start, end).temporal(dt.date(2026, 6, 17)) == expected


def test_a_change_needs_two_spans_that_touch() -> None:
    today = dt.date(2026, 6, 17)
    touching = [span("2020-01-01", "2024-01-01"), span("2024-01-01", None)]
    apart = [span("2020-01-01", "2023-01-01"), span("2024-01-01", None)]
    assert {view.pattern for view in views(touching, today)} == {"past", "current", "correction", "change"}
    assert {view.pattern for view in views(apart, today)} == {"past", "current", "correction"}
    change = next(view for view in views(touching, today) if view.pattern == "change")
    assert change.before is not None
    assert change.before.temporal(today) == "completed" and change.span.temporal(today) == "ongoing"


def test_a_change_never_goes_from_one_thing_to_the_same() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        view = sample_view(rng, Draw(rng, "shared"), "school", "change")
        assert view.before is not None
        old, new = view.before.values["school"], view.span.values["school"]
        assert not set(old.casefold().split()) & set(new.casefold().split())


def test_nobody_gets_over_what_lasts() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        assert sample_view(rng, Draw(rng, "shared"), "condition", "past").span.values["condition"] not in LASTING


def test_time_expressions_point_to_the_right_side_of_today() -> None:
    rng = random.Random(0)
    for days in range(1, 2000, 7):
        past = time_expression(rng, TODAY - dt.timedelta(days=days))
        assert "next" not in past and not past.startswith("soon")
    for days in range(1, 320, 3):
        future = time_expression(rng, TODAY + dt.timedelta(days=days))
        assert "ago" not in future and "last" not in future and "back" not in future


def test_a_turn_never_names_one_thing_for_two_facts() -> None:
    for seed in range(300):
        exchange = Verbalizer(random.Random(seed), "train", "shared").exchange(empty=False)
        objects = [relation.object for relation in exchange.relationships]
        assert len(objects) == len(set(objects))


def test_an_empty_exchange_states_nothing() -> None:
    for seed in range(200):
        exchange = Verbalizer(random.Random(seed), "train", "shared").exchange(empty=True)
        assert exchange.entities == [] and exchange.relationships == [] and exchange.label is Label.DISCARD
