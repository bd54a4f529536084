"""The audit: a clean file passes, each broken hard rule is named, and the figures are those computed by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from observer.cli import main
from observer.data.audit.audit import run_audit
from observer.data.audit.command import DEFAULT_FILES, DEFAULT_MAX_LENGTH, DEFAULT_TOKENIZER
from observer.data.audit.content import content
from observer.data.audit.leakage import leakage
from observer.data.audit.measures import quantile
from observer.data.audit.probes import family_groups, run_probes
from observer.data.audit.report import to_markdown
from observer.data.audit.rows import AuditRow, count_tokens, read_rows
from observer.data.audit.similarity import character_shingles, near_duplicates, word_shingles
from observer.files import read_text
from observer.paths import CHALLENGE_JSONL, PROJECT_ROOT
from observer.prompts import Task, training_row
from observer.schema import parse_row
from tests.conftest import hostile_texts

Row = dict[str, Any]


def grading(user_message: str, label: str = "STORE", part: str = "train", **more: Any) -> Row:
    row = {"user_message": user_message, "assistant_message": "", "label": label, "source": f"synth/{part}"}
    return row | {"family": f"{part}.{user_message[:12]}"} | more


def extraction(user_message: str, name: str, part: str = "train", **more: Any) -> Row:
    """User LIKES `name`."""
    return {
        "user_message": user_message,
        "assistant_message": "",
        "entities": [{"name": "User", "type": "Person"}, {"name": name, "type": "Concept"}],
        "relationships": [{"subject": "User", "predicate": "LIKES", "object": name, "temporal": "ongoing"}],
        "source": f"synth/{part}",
        "family": f"{part}.{user_message[:12]}",
    } | more


CLEAN = [
    grading("on weekends we drive out to the lake and go fishing until dark"),
    grading("hello", "DISCARD"),
    extraction("honestly jazz is what keeps me going", "jazz"),
    grading("my brother has just started to train as a nurse in Leeds", "IMPORTANT", "val"),
    extraction("a good curry beats everything else", "curry", "val"),
]
CONTEXT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello, how can I help?"}]


def relation(**changes: str) -> list[Row]:
    return [{"subject": "User", "predicate": "LIKES", "object": "chess", "temporal": "ongoing"} | changes]


BROKEN: dict[str, tuple[list[Row], str]] = {
    "same prompt as a train row": ([grading("HELLO ", "DISCARD", "val")], "'HELLO' as"),
    "same user turn as a train row": ([extraction("Hello", "Hello", "val")], "'Hello' as"),
    "near-duplicate of a train row": (
        [grading("on weekends we drive out to the lake and go fishing until dawn", "STORE", "val")],
        "is 0.83 like",
    ),
    "family of a train row": (
        [grading("she paints", "STORE", "val", family="new/01+train.hello")],
        "'train.hello' as",
    ),
    "`unseen` that train contradicts": (
        [
            grading("Ana is home", "DISCARD", names=["Ana"]),
            grading("so is Ana then", "DISCARD", "val", names=["Ana"], unseen="family+name"),
        ],
        "claims an unseen name",
    ),
    "user turn with conflicting gold": ([grading("Hello", "STORE")], ": STORE"),
    "name or `when` not in the text": ([extraction("I like opera", "ballet")], "name 'ballet'"),
    "endpoint that is no entity": (
        [extraction("chess, always chess", "chess", relationships=relation(object="Chess club"))],
        "endpoint 'Chess club'",
    ),
    "line unreadable, or outside the schema": (
        [extraction("chess, always chess", "chess", relationships=relation(predicate="ADORES"))],
        "unknown value 'ADORES'",
    ),
    "name of over 5 words": (
        [extraction("I read the old man and the sea twice", "the old man and the sea")],
        "name 'the old man and the sea'",
    ),
    "row of over 1,000 tokens": ([grading("really " * 1_000, "DISCARD")], "tokens"),
}
BROKEN_TOO = {
    "same prompt as a train row": ["same user turn as a train row", "near-duplicate of a train row"],
    "same user turn as a train row": ["near-duplicate of a train row"],
}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def failed(self) -> list[str]:
        """The hard rules that the table says are broken."""
        return [line.split("|")[1].strip() for line in self.out.splitlines() if line.endswith("FAIL |")]


Audit = Callable[..., Outcome]


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counts a word, or a run of signs, as a token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def audit(tokenizer_json: Path, capsys: pytest.CaptureFixture[str]) -> Audit:
    def run(*arguments: str | Path, max_length: int = 400) -> Outcome:
        options = ["--tokenizer", str(tokenizer_json), "--max-length", str(max_length)]
        code = main(["data", "audit", *map(str, arguments), *options])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_clean_rows_pass(audit: Audit, tmp_path: Path) -> None:
    outcome = audit(write(tmp_path / "rows.jsonl", *CLEAN))
    assert outcome.code == 0
    assert outcome.failed == []
    assert "Every hard rule holds." in outcome.out


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_hard_rule_exits_1_and_is_named_with_its_line(rule: str, audit: Audit, tmp_path: Path) -> None:
    rows, what = BROKEN[rule]
    path, out = write(tmp_path / "rows.jsonl", *CLEAN, *rows), tmp_path / "audit.json"
    outcome = audit(path, "--json", out, max_length=1_000 if "tokens" in rule else 9_000)
    assert outcome.code == 1
    assert outcome.failed == [rule, *BROKEN_TOO.get(rule, [])]
    found = next(f for f in json.loads(out.read_text())["hard_rules"].values() if f["rule"] == rule)
    assert found["count"] == 1 and not found["passed"]
    assert f"{path}:" in found["examples"][0] and what in found["examples"][0]
    assert found["examples"][0] in outcome.err


def test_bad_lines_are_counted_with_file_and_line_and_the_rest_is_audited(audit: Audit, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", *CLEAN)
    bad.write_text(bad.read_text() + '{"user_message": \n[1]\n{"user_message": "", "label": "MAYBE"}\n')
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b'{"user_message": "caf\xe9"}\n')
    outcome = audit(bad, binary, tmp_path / "missing.jsonl", "--json", tmp_path / "audit.json")
    assert outcome.code == 1
    assert outcome.failed == ["line unreadable, or outside the schema"]
    for place in (f"{bad}:6: not JSON", f"{bad}:7: found a list", f"{binary}:1: not UTF-8", "missing.jsonl: no such"):
        assert place in outcome.err
    found = json.loads((tmp_path / "audit.json").read_text())["hard_rules"]["closed_inventories"]
    assert found["count"] == 6  # two lines, two files, and two faults of the last row
    assert "Traceback" not in outcome.err


def test_hostile_and_very_long_texts_are_audited_like_any_other(audit: Audit, tmp_path: Path) -> None:
    texts = [text for text in hostile_texts() if text] + ["a" * 100_000]
    rows = [grading(text, family=None) | {"assistant_message": text, "context": CONTEXT} for text in texts]
    outcome = audit(write(tmp_path / "rows.jsonl", *CLEAN, *rows), max_length=10**6)
    assert "Traceback" not in outcome.err
    assert f"| {len(CLEAN) + len(rows)} |" in outcome.out.replace("  ", " ").replace("  ", " ")


def test_files_without_a_row_are_an_error(audit: Audit, tmp_path: Path) -> None:
    outcome = audit(write(tmp_path / "empty.jsonl"))
    assert outcome.code == 1
    assert "no row to audit" in outcome.err


def test_a_missing_tokenizer_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *CLEAN)
    assert main(["data", "audit", str(path), "--tokenizer", str(path)]) == 1


def test_raw_rows_and_their_split_rows_are_audited_alike(tmp_path: Path) -> None:
    raw = [row | {"context": CONTEXT, "assistant_message": "I see.\nAnd then?"} for row in CLEAN]
    rows, faults = read_rows([write(tmp_path / "raw.jsonl", *raw)], Counter())
    parsed = [parse_row(row)[0] for row in raw]
    nulls = dict.fromkeys(["slices", "unseen", "origin"])  # as a table has them
    write(tmp_path / "train.jsonl", *(training_row(row) | nulls for row in parsed[:3] if row))
    write(tmp_path / "val.jsonl", *(training_row(row) | nulls for row in parsed[3:] if row))
    split, split_faults = read_rows([tmp_path / "train.jsonl", tmp_path / "val.jsonl"], Counter())
    assert faults == split_faults == []
    assert [replace(row, place="") for row in rows] == [replace(row, place="") for row in split]


def test_a_row_knows_its_turns(tmp_path: Path) -> None:
    row = grading("line one\nUSER: no turn", context=CONTEXT) | {"assistant_message": "Sure."}
    [read], _ = read_rows([write(tmp_path / "rows.jsonl", row)], Counter())
    assert read.user_turn == "line one\nUSER: no turn"
    assert read.reply == "Sure."
    assert read.context == "USER: hi\nASSISTANT: Hello, how can I help?"


@pytest.mark.parametrize(
    ("row", "file", "part"),
    [
        (grading("hi", part="val"), "rows.jsonl", "val"),
        (grading("hi", source="challenge"), "challenge/grading.jsonl", "challenge-grading"),
        (grading("hi", source=None), "mine/rows.jsonl", "mine-rows"),
    ],
)
def test_rows_fall_into_parts_by_source_or_by_file(row: Row, file: str, part: str, tmp_path: Path) -> None:
    [read], _ = read_rows([write(tmp_path / file, row)], Counter())
    assert read.part == part


def test_without_train_every_two_parts_are_compared(audit: Audit, tmp_path: Path) -> None:
    one = write(tmp_path / "one" / "rows.jsonl", grading("hello", source=None))
    two = write(tmp_path / "two" / "rows.jsonl", grading("hello", source=None))
    assert "same user turn as a train row" in audit(one, two).failed


def test_the_same_words_after_other_turns_are_no_conflict(audit: Audit, tmp_path: Path) -> None:
    rows = [*CLEAN, grading("hello", "STORE", context=CONTEXT)]
    assert audit(write(tmp_path / "rows.jsonl", *rows)).failed == []


def test_facts_in_another_order_are_no_conflict(audit: Audit, tmp_path: Path) -> None:
    both = [*relation(), *relation(object="go")]
    entities = [{"name": name, "type": "Concept"} for name in ("User", "chess", "go")]
    rows = [extraction("chess and go", "", entities=entities, relationships=both[::step]) for step in (1, -1)]
    assert audit(write(tmp_path / "rows.jsonl", *rows)).failed == []


def test_the_same_rows_give_the_same_bytes(audit: Audit, tmp_path: Path, tokenizer_json: Path) -> None:
    """Also in a fresh process, so that no hash order shows through."""
    path = write(tmp_path / "rows.jsonl", *CLEAN, *BROKEN["near-duplicate of a train row"][0])
    here = audit(path, "--markdown", tmp_path / "here.md")
    options = ["--tokenizer", str(tokenizer_json), "--max-length", "400", "--markdown", str(tmp_path / "there.md")]
    there = subprocess.run(
        [sys.executable, "-m", "observer.cli", "data", "audit", str(path), *options],
        capture_output=True, text=True, cwd=PROJECT_ROOT, env={"PYTHONHASHSEED": "1"},
    )  # fmt: skip
    assert (here.code, here.out) == (there.returncode, there.stdout)
    assert here.out == read_text(tmp_path / "here.md") == read_text(tmp_path / "there.md")


def test_shingles_by_hand() -> None:
    assert word_shingles("the cat sat on the mat".split()) == {"the cat sat", "cat sat on", "sat on the", "on the mat"}
    assert character_shingles(["abcde"]) == {"abcd", "bcde"}
    assert character_shingles(["no"]) == {"no"}


def test_near_duplicates_names_the_most_similar_known_text() -> None:
    known = ["one two three four five six seven eight nine ten", "i really like tea", "👍"]
    checked = ["One, two three four five six seven eight nine ten!", "I really like teas", "something else", "👍"]
    found = near_duplicates(known, checked)
    assert found == {0: (0, 1.0), 1: (1, 14 / 15), 3: (2, 1.0)}


def test_family_groups_are_connected_components() -> None:
    assert family_groups([("a", "b"), ("c",), ("b", "c"), ("d",), (), ()]) == [0, 0, 0, 1, 2, 3]


def test_quantiles_are_values_that_occur() -> None:
    assert [quantile([4, 1, 3, 2], share) for share in (0.5, 0.95, 1.0)] == [2, 4, 4]


LABELS = ("DISCARD", "STORE", "IMPORTANT")


def graded(i: int, text: str, family: str) -> AuditRow:
    part = "val" if i % 5 == 0 else "train"
    return AuditRow("", part, Task.GRADE, f"USER: {text}", LABELS[i % 3], None, families=(family,))


def test_the_length_probe_tells_labels_that_lengths_decide() -> None:
    rows = [graded(i, "word " * (1 + 10 * (i % 3) + i % 4), f"f{i // 3}") for i in range(300)]
    (_, lengths), _ = run_probes(rows)
    assert lengths.random == lengths.grouped == lengths.train_to_val == 1.0


def test_a_probe_that_knows_families_by_heart_fails_on_unseen_ones() -> None:
    rows = [graded(i, f"marker{i % 30} says so", f"f{i % 30}") for i in range(300)]
    (words, lengths), groups = run_probes(rows)
    assert groups.n == 30
    assert words.random == 1.0
    assert words.grouped is not None and words.grouped < 0.5
    assert lengths.random is not None and lengths.random < 0.6


def test_too_few_rows_leave_the_probes_unmeasured() -> None:
    (words, lengths), _ = run_probes([graded(1, "hi", "f"), graded(2, "ho", "g")])
    assert (words.random, words.grouped, words.train_to_val, lengths.random) == (None, None, None, None)


def test_measures_by_hand(audit: Audit, tmp_path: Path) -> None:
    ended = relation(temporal="completed", predicate="DOES")
    rows = [
        *CLEAN,
        extraction("I gave up chess", "chess", relationships=ended, context=CONTEXT, slices=["no_longer"]),
        extraction("nothing to see", "", entities=[], relationships=[]),
        grading("Ana and Bo came by", names=["Ana", "Bo"]),
        grading("Ana met Cem", part="val", names=["Ana", "Cem"], unseen="family+name"),
    ]
    out = tmp_path / "audit.json"
    assert audit(write(tmp_path / "rows.jsonl", *rows), "--json", out).code == 0
    report = json.loads(out.read_text())
    values = {key: measure["values"] for key, measure in report["measured"].items()}
    assert values["rows"] == {"train+val": 9, "train": 6, "val": 3}
    assert values["label_DISCARD"]["train+val"] == 1 / 5
    assert values["empty_extraction"]["train+val"] == values["change_or_ending"]["train+val"] == 1 / 4
    assert values["multi_turn"]["train+val"] == 1 / 9
    assert (values["names"]["val"], values["known_names"]["val"]) == (2, 1 / 2)
    assert (values["a_new_name"]["val"], values["only_new_names"]["val"]) == (1.0, 0.0)
    assert (values["unseen_family+name"]["val"], values["unseen_family+name"]["train"]) == (1.0, None)
    assert report["predicates"] == {"LIKES": 2, "DOES": 1}
    assert report["slices"]["no_longer"]["train, extract"] == 1
    assert any(warning.startswith("slice no_longer: 1 rows") for warning in report["warnings"])


# --- the shipped data ---


def without_probes(page: str) -> list[str]:
    """Their last digit may differ between processors."""
    return [line for line in page.splitlines() if not line.startswith(("| bag of words", "| lengths only"))]


def test_the_shipped_rows_break_no_hard_rule_and_the_committed_page_is_current(monkeypatch) -> None:
    monkeypatch.chdir(PROJECT_ROOT)
    audit = run_audit(DEFAULT_FILES, DEFAULT_TOKENIZER, DEFAULT_MAX_LENGTH, lambda line: None)
    assert audit.is_sound
    assert audit.warnings == []
    page = to_markdown(audit, "observer data audit")
    assert without_probes(page) == without_probes(read_text(PROJECT_ROOT / "docs/data-audit.md"))


def test_the_challenge_set_breaks_no_hard_rule_beside_the_shipped_rows(monkeypatch) -> None:
    monkeypatch.chdir(PROJECT_ROOT)
    rows, faults = read_rows([*DEFAULT_FILES, *CHALLENGE_JSONL], Counter())
    rules = [*leakage(rows), *content(count_tokens(rows, DEFAULT_TOKENIZER), faults, DEFAULT_MAX_LENGTH)]
    assert [rule.rule for rule in rules if rule.is_broken] == []
