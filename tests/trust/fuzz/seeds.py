"""What fuzzing starts from: pieces of the shipped files, and small files of every format that our code reads."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from observer.observation import Completion, Exchange, Observation
from observer.observe.observations_file import to_line
from observer.paths import ATTACKS_JSONL, CHALLENGE_JSONL, PROJECT_ROOT
from observer.turns.after_model import observation
from observer.turns.before_model import prepare
from tests.conftest import hostile_texts
from tests.support.benchmark_samples import sample_answers
from tests.trust.fuzz.files import scratch

_AT = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
_ROWS = (*ATTACKS_JSONL, *CHALLENGE_JSONL)


def configs() -> list[bytes]:
    overrides = (
        "",
        "training.learning_rate=1e-4",
        "run.name=x",
        "lora.target_modules=[q_proj]",
        "export.tensor_types={}",
    )
    texts = [path.read_text(encoding="utf-8") for path in sorted((PROJECT_ROOT / "configs").glob("*.yaml"))]
    texts.append("run: &a {name: x}\nlora: {r: 1}\n")
    return [joined(text, override) for text in texts for override in overrides]


def rows() -> list[bytes]:
    lines = [line for path in _ROWS for line in _lines(path)[::9]]
    old = {"user_message": "I left Siemens", "assistant_message": None, "entities": [{"name": "I", "type": "PERSON",
           "attributes": {"age": 4, "tags": ["a"]}}, {"name": "Siemens", "type": "Company", "attributes": None}],
           "relationships": [{"subject": "user", "predicate": "RESIGNED_FROM", "object": "siemens", "temporal": "past"}
                             ]}  # fmt: skip
    return [*lines, as_json(old), b"\n".join([*lines[:3], b"no JSON", b"[]", as_json(old)])]


def chats() -> list[bytes]:
    messages = {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "I moved to Porto"},
                {"role": "assistant", "content": [{"type": "text", "text": "Nice"}]}], "id": "a",
                "at": "2026-01-02T03:04:05Z"}  # fmt: skip
    twice = b"\n".join(as_json({"user_message": text, "id": text}) for text in ("a", "a", "b~2"))
    text = b"USER: I moved to Porto\n  with Ana\nASSISTANT: Nice\n---\nuser: hi\n\nUSER: bye"
    return [as_json(messages), text, twice, b"\n".join([as_json(messages), text]), *rows()[::20]]


def turns() -> list[bytes]:
    said = [{"role": "user", "content": "I moved to Porto"}, {"role": "assistant", "content": "Nice"}]
    return [joined("I moved"), joined(json.dumps(said)), joined(json.dumps(["I moved", "Nice"]), json.dumps(said))]


def messages() -> list[bytes]:
    """Exchanges: hostile texts, attacks, and talk of secrets."""
    secrets = [
        "my wifi password is Hunter-22x! and the pin for the door is 4821",
        "card 4111 1111 1111 1111, exp 04/29, 123; IBAN DE89 3704 0044 0532 0130 00",
        "sk-abcdefghijklmnopqrstuv https://me:secret@host/x Bearer abcdefghij eyJabcdefgh.abcdefgh.x",
        "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\n4821 is my pin, login: bob / x7!kk2",
        "my seed phrase is: orbit candle walnut fence glove siren",
    ]
    attacks = [row for path in ATTACKS_JSONL for row in map(json.loads, _lines(path)[::4])]
    exchanges = [joined(row["user_message"], row["assistant_message"]) for row in attacks]
    return [joined(text, "ok", text) for text in (*hostile_texts(), *secrets)] + exchanges


def answers() -> list[bytes]:
    return [*(joined(answer, said) for said, answer in _extractions()), b"STORE", b'"STORE"', b"<think>x</think>{}",
            b'```json\n{"entities":[],"relationships":[]}\n```',
            as_json({"label": "STORE", "reasoning": "x", "confidence": 0.5})]  # fmt: skip


def observed() -> list[bytes]:
    told = '{"entities":[{"name":"Hunter-22x!","type":"Person","attributes":{"detail":"4821"}}],"relationships":[]}'
    secret = joined("my password is Hunter-22x! and my pin is 4821", "ok", told)
    return [secret, *(joined(said, "Nice", answer, "So?") for said, answer in _extractions())]


def times() -> list[bytes]:
    said = ["two years ago", "since 2019", "from 2019 to 2021", "last March", "in three weeks", "next Friday",
            "tonight", "2019-2021", "for 3 years", "until next year", "desde hace 2 años", "seit 2019", "3.4.2020",
            "noon", "yesterday at 5pm", "昨天", "в прошлом году", "the 3rd", "1700000000", "in 9999 years"]  # fmt: skip
    bases = [
        "2026-11-22T12:30:00+00:00",
        "2024-02-29T00:00:00",
        "0001-01-01T00:00:00+00:00",
        "9999-12-31T23:59:59-12:00",
    ]
    return [joined(when, base) for when in said for base in bases]


def observations() -> list[bytes]:
    lines = [to_line(found) for found in _observations()]
    aged = [line.replace(b'"at":"2026-11-22T12:30:00Z"', b'"at":"0001-01-01T00:00:00+14:00"') for line in lines[:2]]
    return [*lines, b"".join(lines), b"".join(aged), b"".join(lines)[:-20]]


def label_ledgers() -> list[bytes]:
    record = {"key": "k", "time": "2026-01-01T00:00:00+00:00", "text": "STORE", "finish_reason": "stop", "refusal": "",
              "prompt_tokens": 3, "completion_tokens": 1, "cost_usd": 0.25}  # fmt: skip
    line = as_json(record) + b"\n"
    return [line, line * 3, line + line[:30], line + as_json(record | {"key": "l", "cost_usd": 0}) + b"\n"]


def memories() -> list[bytes]:
    """A memory of ours as bytes, and as the SQL that makes it."""
    from observer.memory.store import Store

    path = scratch() / "seed.sqlite"
    with Store(path) as store:
        for number, found in enumerate(_observations()):
            store.apply(found, str(number))
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        pragmas = [f"PRAGMA {name} = {database.execute(f'PRAGMA {name}').fetchone()[0]}"
                   for name in ("application_id", "user_version")]  # fmt: skip
        script = ";\n".join([*pragmas, *(line.rstrip(";") for line in database.iterdump())])
    database.close()
    return [path.read_bytes(), script.encode(), b"CREATE TABLE x (y)"]


def manifests() -> list[bytes]:
    stage = {"inputs": "a" * 64, "outputs": {"adapter": "b" * 64, "../x": "c"}, "notes": {"loss": 0.5}}
    return [as_json({"environment": {}, "stages": {"train": stage, "merge": stage | {"outputs": {}}}}), b"{}"]


def saved_answers() -> list[bytes]:
    from eval.answers.answering import save_answers

    completion = Completion('{"entities":[],"relationships":[]}', (1, 2), False, (-0.5, -0.1))
    answers = replace(sample_answers({1}, 3), unconstrained={0: completion})
    path = scratch() / "seed.answers.jsonl"
    save_answers(answers, path)
    return [path.read_bytes()]


def ollama_answers() -> list[bytes]:
    top = [{"token": "STORE", "logprob": -0.1}, {"token": "DIS", "logprob": -2.5}]
    good = {"message": {"role": "assistant", "content": "STORE"}, "done": True, "done_reason": "stop",
            "logprobs": [{"token": "STORE", "logprob": -0.1, "top_logprobs": top}]}  # fmt: skip
    return [as_json(good), b"500\n%%\n" + as_json({"error": "x"}), b"404\n%%\n" + as_json({"error": "model not found"}),
            b'400\n%%\n{"error": "the input exceeds the context length"}', b"<html>"]  # fmt: skip


def _extractions() -> list[tuple[str, str]]:
    """User messages and the answers that are right."""
    found = []
    for path in _ROWS:
        for row in map(json.loads, _lines(path)[::10]):
            if "entities" in row:
                answer = {key: row[key] for key in ("entities", "relationships")}
                found.append((row["user_message"], json.dumps(answer, ensure_ascii=False)))
    return found


def _observations() -> Iterable[Observation]:
    for number, (said, answer) in enumerate(_extractions()[::3]):
        exchange = Exchange(user_message=said, at=_AT, id=str(number))
        yield observation(prepare(exchange), "m", completion=Completion(answer, (), False))


def _lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().split(b"\n") if line]


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def joined(*parts: str) -> bytes:
    return "\n%%\n".join(parts).encode("utf-8", "surrogatepass")
