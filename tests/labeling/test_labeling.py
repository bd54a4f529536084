"""`observer label` against a real HTTP server: rows end in output, quarantine or the next run, paid once."""

from __future__ import annotations

import hashlib
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer.cli import main
from observer.data.check import check_files
from observer.errors import ObserverError
from observer.labeling.answers import judge
from observer.labeling.answers_file import Answer, open_ledger
from observer.labeling.compare import cohens_kappa, confusion, triple_agreement
from observer.labeling.jobs import Sampling, schema_text
from observer.labeling.pricing import PRICES, Price, parse_price
from observer.labeling.prompts import INSTRUCTIONS, PROMPT_VERSION, GradingAnswer, answer_schema
from observer.labeling.server import OPENAI_URL, Endpoint
from observer.labeling.votes import agree_on_extraction, agree_on_label
from observer.paths import PROJECT_ROOT
from observer.prompts import Task, render_exchange
from observer.schema import Extraction, Label
from observer.turns.inputs import Reading, read_inputs
from tests.support.label_server import LabelServer, Received, Reply, sound_answer

KEY = "sk-canary-0123456789abcdef"
COUNTS = re.compile(r"(?:grade|extract): ([\d,]+) = ([\d,]+) labelled \+ ([\d,]+) quarantined \+ ([\d,]+) left")


def sound(_: Received) -> Reply:
    return Reply()


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def counts(self) -> tuple[int, ...]:
        """(labelled, quarantined, left) of all tasks; the parts of each sum must add up."""
        sums = [tuple(int(part) for part in match) for match in COUNTS.findall(self.out)]
        assert sums and all(total == sum(parts) for total, *parts in sums)
        return tuple(sum(parts) for parts in list(zip(*sums, strict=True))[1:])


class Desk:
    """A folder with an input of one row, servers, and `observer label` run there."""

    def __init__(self, folder: Path, servers: ExitStack, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._servers, self._capsys = folder, servers, capsys
        self.write("I work at Siemens")

    def write(self, *messages: str) -> Path:
        rows = [{"user_message": message, "assistant_message": "ok"} for message in messages]
        return write_lines(self.folder / "in.jsonl", *rows)

    def serve(self, plan: Callable[[Received], Reply] = sound) -> LabelServer:
        return self._servers.enter_context(LabelServer(plan).running())

    def label(
        self, server: LabelServer | None, *arguments: str, source: str = "in.jsonl", out: str = "out.jsonl"
    ) -> Done:
        given = ["label", str(self.folder / source) if source != "-" else "-", "--out", str(self.folder / out)]
        given += ["--base-url", server.url] if server else []
        defaults = {"--task": "grade", "--model": "gpt-4o", "--timeout": "5", "--max-retries": "1"}
        given += [part for name, value in defaults.items() if name not in arguments for part in (name, value)]
        code = main([*given, *arguments])
        printed = self._capsys.readouterr()
        assert KEY not in printed.out + printed.err
        return Done(code, printed.out, printed.err)

    def rows(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Afterwards no file of it holds the key."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ExitStack() as servers:
        yield Desk(tmp_path, servers, capsys)
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


# ---- the whole way


def test_both_tasks_give_raw_rows_that_pass_the_check(desk: Desk) -> None:
    desk.write("I work at Siemens", "hello there", "I work at Bosch")
    server = desk.serve()
    done = desk.label(server, "--task", "both")
    assert (done.code, done.counts) == (0, (6, 0, 0))
    graded, extracted = desk.folder / "out-grade.jsonl", desk.folder / "out-extract.jsonl"
    assert check_files([graded, extracted]) == [
        f"{graded}: 3 rows (1 DISCARD, 2 IMPORTANT)",
        f"{extracted}: 3 rows (1 empty extraction, 2 extraction)",
    ]
    first = desk.rows("out-grade.jsonl")[0]
    assert first["source"] == "label/gpt-4o" and first["confidence"] == 0.9 and first["id"] == "in.jsonl:1"
    said = [row["user_message"] for row in desk.rows("out-extract.jsonl")]
    assert said == ["I work at Siemens", "hello there", "I work at Bosch"]
    assert {request.key for request in server.received} == {KEY}
    assert {request.format for request in server.received} == {"json_schema"}


def test_the_same_exchange_twice_is_asked_once_and_a_second_run_asks_nothing(desk: Desk) -> None:
    desk.write("I work at Siemens", "I work at Siemens")
    server = desk.serve()
    assert desk.label(server).counts == (2, 0, 0)
    before = (desk.folder / "out.jsonl").read_bytes()
    assert desk.label(server).counts == (2, 0, 0)
    assert len(server.received) == 1 and (desk.folder / "out.jsonl").read_bytes() == before


def test_every_input_form_and_every_bad_row_in_one_file(desk: Desk) -> None:
    source = write_lines(
        desk.folder / "in.jsonl",
        {"user_message": "I work at Siemens", "id": 7, "family": "f", "note": "x"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "I work at Bosch"}]},
        "USER: hi\nASSISTANT: hello\nUSER: I work at Nokia\n  and like it\nASSISTANT: nice\n---",
        "USER: one more\n",
        '{"user_message": "cut',
        '{"user_message": 5}',
        '{"user_message": "  "}',
        '{"text": "what"}',
        '{"messages": [{"role": "assistant", "content": "hi"}]}',
        '{"messages": "no"}',
        "[1]",
        '{"user_message": "' + "long " * 20_000 + '"}',
        '{"user_message": "lone \\ud800 surrogate"}',
    )
    with source.open("ab") as stream:
        stream.write(b'{"user_message": "caf\xe9"}\n' + b"[" * 5_000 + b"\n" + b'{"a":' * 5_000 + b"\n")
    done = desk.label(desk.serve())
    assert (done.code, done.counts) == (0, (5, 0, 0))
    assert "input: 16 rows = 5 readable + 11 unreadable" in done.out and "note (1)" in done.out
    rows = desk.rows()
    assert [row["id"] for row in rows] == ["7", "in.jsonl:2", "in.jsonl:3", "in.jsonl:9", "in.jsonl:19"]
    assert rows[0]["family"] == "f" and rows[2]["user_message"] == "I work at Nokia\nand like it"
    assert rows[2]["context"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    quarantined = desk.rows("out.quarantine.jsonl")
    assert len(quarantined) == 11 and all(row["place"].startswith(f"{source}:") for row in quarantined)
    reasons = " ".join(row["reason"] for row in quarantined)
    for reason in ("not JSON", "empty user turn", "no user turn", "not UTF-8", "at most 20,000 are sent", "found '5'"):
        assert reason in reasons


def test_a_run_that_reads_or_labels_nothing_fails_and_says_why(desk: Desk) -> None:
    write_lines(desk.folder / "in.jsonl", {"instruction": "a"}, {"instruction": "b"}, {"user_message": " "})
    server = desk.serve()
    reasons = (
        "  2 × neither `user_message` nor `messages`, found the fields instruction; rename `instruction` to user_me"
    )
    for arguments in (["--dry-run"], []):
        done = desk.label(server, *arguments)
        assert done.code == 1 and reasons in done.out and "  1 × empty user turn" in done.out
        assert "in.jsonl: no row " in done.err and "for the reasons above" in done.err
    assert not server.received

    desk.write("I work at Siemens", "I work at Bosch")
    done = desk.label(desk.serve(lambda request: Reply("prose")))
    assert done.code == 1 and done.counts == (0, 2, 0)
    assert "  2 × not JSON" in done.out and "no row was labelled" in done.err


def test_standard_input_and_a_limit(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"USER: hello\n\nUSER: I work at Siemens\nASSISTANT: nice\n\nUSER: bye"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    done = desk.label(desk.serve(), "--limit", "2", source="-")
    assert (
        done.counts == (2, 0, 0) and "3 rows = 2 readable + 0 unreadable (quarantined) + 1 beyond --limit" in done.out
    )
    assert [row["id"] for row in desk.rows()] == ["stdin:1", "stdin:3"]
    assert (desk.folder / "stdin.ledger.jsonl").exists()


def test_every_turn_labels_each_exchange_with_what_came_before_as_context() -> None:
    messages = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    inputs = read_inputs(json.dumps({"messages": messages, "id": "chat"}).encode(), "x.jsonl", Reading(every_turn=True))
    assert [item.fields["id"] for item in inputs.items] == ["chat#1", "chat#2"]
    assert [item.exchange for item in inputs.items] == [
        "USER: a\nASSISTANT: b",
        "USER: a\nASSISTANT: b\nUSER: c\nASSISTANT: d",
    ]


@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b"USER: a", b"ASSISTANT: b", b"---", b"", b"{}"]))))
def test_any_bytes_are_read_or_named_in_one_line(lines: list[bytes]) -> None:
    fault = ""  # of compressed bytes, or of another format: the first ones say so
    try:
        unreadable = read_inputs(b"\n".join(lines), "x").unreadable
    except ObserverError as error:
        unreadable, fault = [], str(error)
    assert not fault or (fault.startswith("x:") and "\n" not in fault)
    for row in unreadable:
        assert row.reason and row.place.startswith("x:")


# ---- what a server can do wrong


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_permanent_error_stops_at_once_with_one_line(status: int, desk: Desk) -> None:
    desk.write(*(f"turn {n}" for n in range(50)))
    server = desk.serve(lambda request: Reply(status=status, message=f"no such thing for {request.key}"))
    done = desk.label(server, "--concurrency", "2")
    assert (done.code, done.counts) == (1, (0, 0, 50))
    assert done.err.startswith(f"error: 127.0.0.1: {status}, ") and done.err.count("\n") == 1 and "[key]" in done.err
    assert len(server.received) <= 4 and not (desk.folder / "out.jsonl").exists()


ERRORS = {
    "OpenAI's": ({"error": {"message": "too odd", "type": "x", "param": None, "code": None}}, "too odd"),
    "an error in text": ({"error": "too odd"}, "too odd"),
    "a message": ({"object": "error", "message": "too odd"}, "too odd"),
    "FastAPI's": ({"detail": [{"loc": ["body", "n"], "msg": "too odd"}]}, "too odd"),
    "Mistral's": ({"message": {"detail": [{"loc": ["body", "n"], "msg": "too odd"}]}}, "too odd"),
    "unknown keys": ({"title": "too odd"}, "too odd"),
    "a page": ("<html><body>too odd</body></html>", "Bad Request"),
    "plain text": ("too odd", "too odd"),
    "nothing": ("", "Bad Request"),
    "a deep object": ('{"error": ' * 900 + '"too odd"' + "}" * 900, "too odd"),
    "an object deeper than Python reads": ('{"error": ' * 90_000 + '"too odd"' + "}" * 90_000, '{"error": {"error": '),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_told_in_the_servers_words(case: str, desk: Desk) -> None:
    body, words = ERRORS[case]
    text = body if isinstance(body, str) else json.dumps(body)
    done = desk.label(desk.serve(lambda _: Reply(status=400, body=text)))
    assert done.code == 1 and "refused the request: 400, " in done.err and words in done.err
    assert done.err.splitlines()[-1].startswith("error: ") and "<" not in done.err


@pytest.mark.parametrize(("status", "words"), [(402, "no credit"), (403, "the same command resumes")])
def test_no_credit_and_a_limit_of_calls_are_not_a_matter_of_rights(status: int, words: str, desk: Desk) -> None:
    done = desk.label(desk.serve(lambda _: Reply(status=status, message="Rate limit exceeded")), "--max-retries", "0")
    assert done.code == 1 and words in done.err and "rights" not in done.err


def test_retry_after_is_honoured(desk: Desk) -> None:
    limited = Reply(status=429, headers={"Retry-After": "1"})
    server = desk.serve(lambda request: limited if request.count == 1 else Reply())
    assert desk.label(server).counts == (1, 0, 0)
    first, second = server.received
    assert second.time_s - first.time_s >= 1.0


@pytest.mark.parametrize(
    "fault", [Reply(status=500), Reply(is_cut=True), Reply(delay_s=0.6)], ids=["500", "cut", "slow"]
)
def test_a_passing_fault_is_retried(fault: Reply, desk: Desk) -> None:
    server = desk.serve(lambda request: fault if request.count == 1 else Reply())
    assert desk.label(server, "--timeout", "0.4").counts == (1, 0, 0)
    assert len(server.received) == 2


@pytest.mark.parametrize(
    "fault",
    [Reply(status=500), Reply(is_cut=True), Reply(delay_s=0.6), Reply(body="<html>"), Reply(body="{}")],
    ids=["500", "cut", "slow", "html", "no completion"],
)
def test_a_lasting_fault_leaves_the_row_for_the_next_run(fault: Reply, desk: Desk) -> None:
    desk.write("I work at Siemens", "bad row", "hello")
    is_down = True
    server = desk.serve(lambda request: fault if is_down and "bad" in request.exchange else Reply())
    done = desk.label(server, "--timeout", "0.4", "--max-retries", "0")
    assert (done.code, done.counts) == (1, (2, 0, 1)) and "the same command resumes" in done.err
    is_down, sent = False, len(server.received)
    done = desk.label(server, "--timeout", "0.4", "--max-retries", "0")
    assert (done.code, done.counts) == (0, (3, 0, 0)) and len(server.received) == sent + 1


def completion(content: Any, finish_reason: str | None = "stop", usage: Any = None, **more: Any) -> Reply:
    """A reply of a server that fills the fields in its own way."""
    message = {"role": "assistant", "content": content} | more.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": finish_reason} | more.pop("choice", {})
    return Reply(body=json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage} | more))


SOUND = sound_answer(Task.GRADE, "I work at Siemens")
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "hm {"}]}
WAYS_TO_ANSWER = {
    "thinking and text parts": completion([THINKING, {"type": "text", "text": SOUND}]),
    "text parts": completion([{"type": "text", "text": SOUND[:20]}, {"type": "text", "text": SOUND[20:]}]),
    "output_text parts": completion([{"type": "output_text", "text": SOUND}]),
    "parts that are texts": completion([SOUND]),
    "one part": completion({"type": "text", "text": SOUND}),
    "thinking": Reply(f"<think>\nhm {{so}}\n</think>\n\n{SOUND}"),
    "thinking opened in the prompt": Reply(f"hm, the user says {{so}}\n</think>\n\n{SOUND}"),
    "empty thinking and a fence": Reply(f"<think>\n\n</think>\n\n```json\n{SOUND}\n```"),
    **{
        f"thinking in {begin}": Reply(f"{begin}hm {{so}}{end}\n{SOUND}")
        for begin, end in (
            ("<thinking>", "</thinking>"),
            ("<THINK>", "</THINK>"),
            ("<thought>", "</thought>"),
            ("<seed:think>", "</seed:think>"),
            ("[THINK]", "[/THINK]"),
            ("◁think▷", "◁/think▷"),
            ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        )
    },
    "a fence": Reply(f"```\n{SOUND}\n```"),
    "a fence in capitals": Reply(f"```JSON\n{SOUND}\n```"),
    "words around a fence": Reply(f"Here is the JSON:\n\n```json\n{SOUND}\n```\nLet me know!"),
    "words before": Reply(f"Here it is: {SOUND}"),
    "words after": Reply(f"{SOUND}\n\nNote: the user seems happy."),
    "thinking that is spoken of": Reply(SOUND.replace("About", "Says </think> about")),
    "no usage": completion(SOUND),
    "empty usage": completion(SOUND, usage={}),
    "usage as text": completion(SOUND, usage={"prompt_tokens": "10", "completion_tokens": "5"}),
    "usage as words": completion(SOUND, usage={"prompt_tokens": "many", "completion_tokens": None}),
    "usage in fractions": completion(SOUND, usage={"prompt_tokens": 10.5, "completion_tokens": None}),
    "no finish reason": completion(SOUND, None),
    "another finish reason": completion(SOUND, "eos"),
}


@pytest.mark.parametrize("way", WAYS_TO_ANSWER)
def test_an_answer_is_read_in_every_way_that_servers_write_it(way: str, desk: Desk) -> None:
    server = desk.serve(lambda _: WAYS_TO_ANSWER[way])
    done = desk.label(server)
    assert (done.code, done.counts, len(server.received)) == (0, (1, 0, 0), 1), done.err
    assert desk.rows()[0]["label"] == "IMPORTANT"


TWICE = f"{SOUND}\n{SOUND}"


@pytest.mark.parametrize("text", [TWICE, f"```\n{SOUND}\n```\nor\n```\n{SOUND}\n```", f"[{SOUND}]", json.dumps(SOUND)])
def test_what_could_be_read_in_two_ways_is_asked_again_and_set_aside(text: str, desk: Desk) -> None:
    desk.write("I work at Siemens", "hello")
    server = desk.serve(lambda request: Reply(text) if "Siemens" in request.exchange else Reply())
    assert desk.label(server).counts == (1, 1, 0) and len(server.received) == 3


UPSTREAM = {"code": 502, "message": "Upstream idle timeout"}
NO_ANSWERS = {
    "error as finish reason": (completion("", "error"), "the answer is empty"),
    "an answer cut by an error": (completion(SOUND, "error"), "ends in 'error'"),
    "a part of an answer and an error": (
        completion(SOUND[:20], None, choice={"error": UPSTREAM}),
        "502, Upstream idle timeout",
    ),
    "a server without resources": (completion(SOUND[:20], "insufficient_system_resource"), "insufficient_system"),
    "an aborted answer": (completion(SOUND[:20], "abort"), "ends in 'abort'"),
    "an error object": (Reply(body=json.dumps({"object": "error", "message": "model is loading"})), "model is loading"),
    "a detail": (Reply(body=json.dumps({"detail": "queue is full"})), "queue is full"),
    "an error in the choice": (completion("", "error", choice={"error": UPSTREAM}), "502, Upstream idle timeout"),
    "an error for the choices": (Reply(body=json.dumps({"error": UPSTREAM, "choices": None})), "502, Upstream idle"),
    "an error alone": (Reply(body=json.dumps({"error": UPSTREAM})), "502, Upstream idle timeout"),
    "an error as text": (Reply(body=json.dumps({"error": "overloaded"})), "overloaded"),
    "a deep error": (Reply(body='{"error": ' * 900 + '"overloaded"' + "}" * 900), "overloaded"),
    "a deep message": (Reply(body='{"message": ' * 900 + '"overloaded"' + "}" * 900), "overloaded"),
    "too deep to be read": (Reply(body="[" * 90_000 + "]" * 90_000), "nested too deeply"),
    "a deep answer": (Reply(body='{"choices": ' + "[" * 900 + "]" * 900 + "}"), "no chat completion"),
    "no choices": (Reply(body=json.dumps({"choices": []})), "no chat completion"),
    "a message that is text": (Reply(body=json.dumps({"choices": [{"message": SOUND}]})), "no chat completion"),
    "null": (completion(None), "the answer is empty"),
    "blank": (completion(" \n"), "the answer is empty"),
    "no parts": (completion([]), "the answer is empty"),
    "thinking alone": (completion([THINKING]), "no text"),
    "a picture": (completion([{"type": "image_url", "image_url": {}}]), "no text"),
    "a number": (completion(7), "no text"),
    "reasoning_content": (completion("", message={"reasoning_content": SOUND}), "reasoning_content is not"),
    "reasoning": (completion(None, message={"reasoning": SOUND}), "its reasoning is not"),
    "a tool call": (
        completion(None, "tool_calls", message={"tool_calls": [{"id": "c", "type": "function", "function": {}}]}),
        "its tool_calls is not",
    ),
}


UNPAID = {"an error object", "a detail", "an error for the choices", "an error alone", "an error as text", "no choices"}
UNPAID |= {"a deep error", "a deep message", "a deep answer", "too deep to be read", "a message that is text"}


@pytest.mark.parametrize("case", NO_ANSWERS)
def test_what_is_no_answer_leaves_the_row_is_paid_for_and_asked_again(case: str, desk: Desk) -> None:
    reply, reason = NO_ANSWERS[case]
    desk.write("I work at Siemens", "hello")
    is_ill = True
    server = desk.serve(lambda request: reply if is_ill and "Siemens" in request.exchange else Reply())
    for _ in range(2):
        done = desk.label(server, "--concurrency", "1")
        assert (done.code, done.counts) == (1, (1, 0, 1)) and reason in done.err.splitlines()[-1]
    assert len(desk.rows("in.ledger.jsonl")) == (1 if case in UNPAID else 3)
    is_ill = False
    done = desk.label(server)
    assert (done.code, done.counts) == (0, (2, 0, 0))
    paid = [line["cost_usd"] for line in desk.rows("in.ledger.jsonl")]
    assert f"${sum(paid):.4f} in the ledger" in done.out


def refuses(field: str) -> Callable[[dict[str, Any]], str]:
    return lambda body: f"Unsupported parameter: '{field}'" if field in body else ""


def allows(most: int) -> Callable[[dict[str, Any]], str]:
    def refusal(body: dict[str, Any]) -> str:
        asked = body.get("max_tokens") or body["max_completion_tokens"]
        return f"max_tokens is too large: {asked}. This model supports at most {most}" if asked > most else ""

    return refusal


LIMITED = {
    "max_completion_tokens is unknown": refuses("max_completion_tokens"),
    "max_tokens is unknown": refuses("max_tokens"),
    "max_tokens is needed": lambda body: "" if "max_tokens" in body else "'max_tokens' is required",
    "at most 2048": allows(2048),
    "at most 1024 as max_tokens": lambda body: refuses("max_completion_tokens")(body) or allows(1024)(body),
    "no schema either": lambda body: refuses("max_completion_tokens")(body) or refuses("response_format")(body),
    "a schema alone": lambda body: (
        "response_format is unknown; allowed: model, messages, temperature, max_tokens, max_completion_tokens"
        if "response_format" in body
        else ""
    ),
    "no temperature": refuses("temperature"),
    "no temperature and no schema": lambda body: refuses("temperature")(body) or refuses("response_format")(body),
}
WITHOUT_SCHEMA = {"no schema either", "a schema alone", "no temperature and no schema"}


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("case", LIMITED)
def test_a_request_is_put_as_the_server_takes_it(case: str, status: int, desk: Desk) -> None:
    desk.write("I work at Siemens", "hello")
    server = desk.serve(
        lambda request: Reply(status=status, message=words) if (words := LIMITED[case](request.body)) else Reply()
    )
    done = desk.label(server, "--concurrency", "1")
    assert (done.code, done.counts) == (0, (2, 0, 0)), done.err
    last = server.received[-1].body
    assert {"max_tokens", "max_completion_tokens"} & last.keys()
    assert ("response_format" in last) == (case not in WITHOUT_SCHEMA)
    is_warned = "does not take this temperature" in done.err
    assert ("temperature" in last) == (not is_warned) == (not case.startswith("no temperature"))


def test_a_server_that_takes_no_limit_at_all_is_told_with_the_fields_name(desk: Desk) -> None:
    done = desk.label(desk.serve(lambda _: Reply(status=422, message="max_tokens: extra_forbidden")))
    assert done.code == 1 and "not one of 1 requests was taken" in done.err and "max_tokens" in done.err


def test_another_servers_answers_are_not_this_ones(desk: Desk) -> None:
    servers = [desk.serve(), desk.serve()]
    for _ in range(2):
        for number, server in enumerate(servers):
            assert desk.label(server, "--model", "local", out=f"{number}.jsonl").counts == (1, 0, 0)
    assert [len(server.received) for server in servers] == [1, 1]
    same = Sampling("m", 0.0, Endpoint("http://HOST:80/v1/").identity)
    assert same == Sampling("m", 0.0, Endpoint("http://host:80/v1").identity)
    assert not Endpoint(f"{OPENAI_URL}/").identity, "the keys of ledgers that are there stay"


def test_a_server_that_is_down_ends_the_run_early(desk: Desk) -> None:
    desk.write(*(f"turn {n}" for n in range(100)))
    server = desk.serve(lambda _: Reply(status=503))
    done = desk.label(server, "--max-retries", "0", "--concurrency", "4")
    assert (done.code, done.counts) == (1, (0, 0, 100)) and "in a row without an answer" in done.err
    assert len(server.received) < 20


INVENTED = sound_answer(Task.EXTRACT, "I work at Globex")
BAD_ANSWERS = {
    "prose": (Reply("Sure! Here is what I found."), "not JSON", 2),
    "invented": (Reply(INVENTED), "'Globex' is not in the conversation", 2),
    "schema": (Reply('{"entities":[],"relationships":[],"mood":"good"}'), "mood: unknown field", 2),
    "half": (Reply("{}"), "relationships: missing", 2),
    "refusal": (Reply("", refusal="I can't help with that"), "refused: I can't help", 1),
    "cut off": (Reply('{"entities":[', finish_reason="length"), "cut off", 1),
    "cut off in Mistral's words": (Reply('{"entities":[', finish_reason="model_length"), "cut off", 1),
    "cut off in Gemini's words": (Reply('{"entities":[', finish_reason="MAX_TOKENS"), "cut off", 1),
    "filtered in Gemini's words": (Reply("", finish_reason="SAFETY"), "content filter", 1),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_unfit_to_be_gold_is_quarantined_raw_after_one_told_retry(name: str, desk: Desk) -> None:
    reply, reason, calls = BAD_ANSWERS[name]
    source = desk.write("I work at Siemens", "bad row")
    server = desk.serve(lambda request: reply if "bad" in request.exchange else Reply())
    done = desk.label(server, "--task", "extract")
    assert (done.code, done.counts) == (0, (1, 1, 0))
    (row,) = desk.rows("out.quarantine.jsonl")
    assert row["place"] == f"{source}:2" and reason in row["reason"] and row["answer"] == reply.text
    asked = [request for request in server.received if "bad" in request.exchange]
    assert len(asked) == calls
    if calls == 2:
        assert reason in asked[1].body["messages"][-1]["content"]


def test_a_retry_that_mends_the_answer_counts(desk: Desk) -> None:
    server = desk.serve(lambda request: Reply(INVENTED) if len(request.body["messages"]) == 2 else Reply())
    assert desk.label(server, "--task", "extract").counts == (1, 0, 0)
    assert desk.label(server, "--task", "extract").counts == (1, 0, 0) and len(server.received) == 2


NO_SCHEMAS = {
    400: "response_format is not supported",
    404: "No endpoints found that can handle the requested parameters.",
    500: "json_schema: not implemented",
    501: "structured output is not implemented",
}


@pytest.mark.parametrize("status", NO_SCHEMAS)
@pytest.mark.parametrize(("accepted", "calls"), [("json_object", 4), ("text", 5)])
def test_a_server_without_schemas_is_asked_for_less_and_it_is_said_once(
    status: int, accepted: str, calls: int, desk: Desk
) -> None:
    desk.write("I work at Siemens", "hello", "bye")
    refused = Reply(status=status, message=NO_SCHEMAS[status])
    fenced = Reply("<think>hm</think>\n```json\n" + sound_answer(Task.GRADE, "") + "\n```")
    server = desk.serve(lambda request: fenced if request.format == accepted else refused)
    done = desk.label(server, "--concurrency", "1", "--max-retries", "0")
    assert (done.code, done.counts) == (0, (3, 0, 0)) and len(server.received) == calls
    assert done.err.count("does not take a JSON schema") == 1


def test_a_request_that_the_server_refuses_is_quarantined_but_not_a_whole_run(desk: Desk) -> None:
    desk.write("I work at Siemens", "bad row")
    refused = Reply(status=400, message="context length exceeded")
    assert desk.label(desk.serve(lambda request: refused)).counts == (0, 0, 2)
    server = desk.serve(lambda request: refused if "bad" in request.exchange else Reply())
    done = desk.label(server, "--concurrency", "1")
    assert (done.code, done.counts) == (0, (1, 1, 0))
    assert "context length exceeded" in (desk.folder / "out.quarantine.jsonl").read_text()


def test_a_key_that_the_server_echoes_is_written_nowhere(desk: Desk) -> None:
    assert desk.label(desk.serve(lambda request: Reply(f"your key is {request.key}"))).counts == (0, 1, 0)
    assert "[key]" in (desk.folder / "out.quarantine.jsonl").read_text()


def test_a_missing_key_is_told_before_anything_is_sent(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    done = desk.label(None)
    assert done.code == 1 and "OPENAI_API_KEY: not set" in done.err


def test_a_server_on_this_machine_needs_no_key(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    server = desk.serve()
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert desk.label(server, "--model", "qwen").counts == (1, 0, 0) and server.received[0].key == "none"


# ---- a run that is cut


@pytest.mark.parametrize("sent_signal", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "Ctrl-C"])
def test_a_cut_run_resumes_to_the_same_bytes_and_pays_at_most_the_calls_in_flight_twice(
    sent_signal: signal.Signals, desk: Desk
) -> None:
    source = desk.write(*(f"I work at Company{n}" for n in range(20)))
    answers = threading.Semaphore(16)

    def while_there_are_answers(request: Received) -> Reply:
        answers.acquire()
        return sound(request)

    uncut, server = desk.serve(), desk.serve(while_there_are_answers)
    assert desk.label(uncut, "--task", "both", out="uncut/out.jsonl").counts == (40, 0, 0) and len(uncut.received) == 40

    cut = desk.folder / "cut"
    command = [sys.executable, "-m", "observer.cli", "label", str(source), "--out", str(cut / "out.jsonl")]
    command += ["--task", "both", "--model", "gpt-4o", "--base-url", server.url, "--concurrency", "4"]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        while len(server.received) < 16 + 4 and run.poll() is None:
            time.sleep(0.002)
        run.send_signal(sent_signal)
        run.communicate(timeout=600)
    answers.release(1_000)
    assert run.returncode == (-signal.SIGKILL if sent_signal == signal.SIGKILL else 130)
    with (cut / "in.ledger.jsonl").open("ab") as stream:
        stream.write(b'{"key": "abc", "ti')  # a last line torn by a power cut

    assert desk.label(server, "--task", "both", out="cut/out.jsonl").counts == (40, 0, 0)
    for name in ("out-grade.jsonl", "out-extract.jsonl"):
        assert (cut / name).read_bytes() == (desk.folder / "uncut" / name).read_bytes()
    times = Counter((request.task, request.exchange) for request in server.received)
    assert len(times) == 40 and max(times.values()) <= 2 and times.total() <= 40 + 4


def test_a_second_run_on_the_same_ledger_is_refused(desk: Desk) -> None:
    server = desk.serve()
    with open_ledger(desk.folder / "in.ledger.jsonl"):
        done = desk.label(server)
    assert done.code == 1 and "another run writes to it" in done.err and not server.received


def test_a_file_that_is_no_ledger_is_left_as_it_is(tmp_path: Path) -> None:
    notes = write_lines(tmp_path / "notes.txt", "a line", '{"key": 1}')
    notes.write_text(notes.read_text() + "no line end")
    before = notes.read_bytes()
    with pytest.raises(ObserverError, match=r"notes.txt:1: no line of a ledger(.|\n)*notes.txt:3"), open_ledger(notes):
        pass
    assert notes.read_bytes() == before


def test_no_file_of_a_run_may_overwrite_another(desk: Desk) -> None:
    source, other = desk.folder / "in.jsonl", str(desk.folder / "x")
    before = source.read_bytes()
    done = desk.label(desk.serve(), "--quarantine", other, "--ledger", other, out="in.jsonl")
    assert done.code == 1 and done.err.count("the same file as") == 2 and source.read_bytes() == before


# ---- money


def test_a_dry_run_sends_and_writes_nothing(desk: Desk) -> None:
    desk.write("I work at Siemens", "hello", "{")
    server = desk.serve()
    done = desk.label(server, "--task", "both", "--dry-run")
    assert done.code == 0 and not server.received and [path.name for path in desk.folder.iterdir()] == ["in.jsonl"]
    assert "grade: 3 calls to send (0 in the ledger)" in done.out
    prompt_tokens = int(re.findall(r"about ([\d,]+) prompt", done.out)[0].replace(",", ""))
    assert 3 * len(INSTRUCTIONS[Task.GRADE]) / 4 < prompt_tokens < 3 * (len(INSTRUCTIONS[Task.GRADE]) / 4 + 400)


def test_the_budget_stops_before_the_call_that_would_pass_it(desk: Desk) -> None:
    desk.write(*(f"turn {n}" for n in range(20)))
    server = desk.serve()  # every call costs 1000 * 2.50 + 50 * 10.00 USD per million: $0.003
    done = desk.label(server, "--budget-usd", "0.02")
    assert done.code == 1 and "could pass the budget of $0.02" in done.err
    labelled, quarantined, left = done.counts
    assert labelled == len(server.received) and 5 <= labelled <= 6 and quarantined == 0 and left == 20 - labelled
    assert len(desk.rows()) == labelled
    assert desk.label(server, "--budget-usd", "1").counts == (20, 0, 0) and len(server.received) == 20


def test_a_model_without_a_known_price_asks_for_one(desk: Desk) -> None:
    assert "give --price" in desk.label(None, "--model", "new-model", "--dry-run").err
    assert "about $" in desk.label(None, "--model", "new-model", "--dry-run", "--price", "1,2").out


def test_prices() -> None:
    assert PRICES["gpt-4o"].cost_usd(1_000_000, 100_000) == pytest.approx(3.5)
    assert parse_price("0.5, 2") == Price(0.5, 2)
    for text in ("1", "a,b", "-1,2", "nan,1", "1,2,3"):
        with pytest.raises(ObserverError, match="--price"):
            parse_price(text)


# ---- votes


def test_votes_are_asked_warmer_and_their_agreement_is_the_confidence(desk: Desk) -> None:
    other = Reply('{"reasoning":"?","label":"STORE","confidence":1}')
    server = desk.serve(lambda request: other if request.count == 2 else Reply())
    assert desk.label(server, "--votes", "3", "--concurrency", "1").counts == (1, 0, 0)
    assert [request.body["temperature"] for request in server.received] == [0.7] * 3
    (row,) = desk.rows()
    assert (row["label"], row["confidence"], row["reasoning"]) == ("IMPORTANT", 0.6667, "About Siemens.")


def test_a_row_is_quarantined_unless_most_votes_are_sound(desk: Desk) -> None:
    desk.write("one", "two")
    bad = {"one": 1, "two": 2}

    def plan(request: Received) -> Reply:  # a refusal is not retried: one call for each vote
        is_bad = request.count <= bad[request.exchange.split()[1]]
        return Reply("", refusal="no") if is_bad else Reply()

    assert desk.label(desk.serve(plan), "--votes", "3").counts == (1, 1, 0)
    assert desk.rows()[0]["confidence"] == 0.6667
    assert desk.rows("out.quarantine.jsonl")[0]["reason"].startswith("2 of 3 votes: ")


def grading(label: str) -> GradingAnswer:
    return GradingAnswer(reasoning=f"why {label}", label=Label(label), confidence=1)


def extraction(*triples: str) -> Extraction:
    relations = [dict(zip(("subject", "predicate", "object", "temporal"), t.split(), strict=True)) for t in triples]
    names = dict.fromkeys(name for r in relations for name in (r["subject"], r["object"]))
    entities = [{"name": name, "type": "Person"} for name in names]
    return Extraction.model_validate({"entities": entities, "relationships": relations})


def test_among_equal_votes_the_higher_label_wins() -> None:
    consensus = agree_on_label([grading("STORE"), grading("DISCARD")], 2)
    assert (consensus.value, consensus.confidence, consensus.reasoning) == (Label.STORE, 0.5, "why STORE")


def test_relationships_of_at_least_half_of_the_votes_stay_in_canonical_form() -> None:
    votes = [
        extraction("User SIBLING_OF Ana ongoing", "Ana LIVES_IN Rome ongoing"),
        extraction("ana SIBLING_OF User ongoing"),
        extraction("User SIBLING_OF Ana completed"),
    ]
    consensus = agree_on_extraction(votes, 3)
    assert isinstance(consensus.value, Extraction)
    assert [(r.subject, r.object, r.temporal) for r in consensus.value.relationships] == [("User", "Ana", "ongoing")]
    assert [entity.name for entity in consensus.value.entities] == ["User", "Ana"] and not consensus.value.faults()
    assert consensus.confidence == 0.6667


def test_votes_that_agree_on_nothing_give_no_gold_unless_most_are_empty() -> None:
    three = [extraction(f"User LIKES {name} ongoing") for name in ("tea", "rum", "ale")]
    assert agree_on_extraction(three, 3).value is None
    consensus = agree_on_extraction([extraction(), extraction(), three[0]], 3)
    assert (consensus.value, consensus.confidence) == (Extraction(), 0.6667)


# ---- audit


def test_an_audit_reports_agreement_and_leaves_the_gold_alone(desk: Desk) -> None:
    gold = json.loads(sound_answer(Task.EXTRACT, "I work at Bosch"))
    gold["entities"][0].pop("attributes")
    source = write_lines(
        desk.folder / "in.jsonl",
        {"user_message": "I work at Siemens", "label": "IMPORTANT"},
        {"user_message": "hello", "label": "STORE"},
        {"user_message": "bye", "label": "MAYBE"},
        {"user_message": "I work at Bosch", **gold},
        {"user_message": "no gold"},
    )
    before, server = source.read_bytes(), desk.serve()
    done = desk.label(server, "--task", "both", "--audit", out="report.json")
    assert (done.code, done.counts) == (0, (3, 1, 0)) and len(server.received) == 3
    assert f"{source}:2: gold STORE, answer DISCARD" in done.out
    report = json.loads((desk.folder / "report.json").read_text())["tasks"]
    assert report["grade"]["agreement"] == 0.5 and report["grade"]["confusion"]["STORE"]["DISCARD"] == 1
    assert report["extract"]["triples"] == {"gold": 1, "answered": 1, "both": 1}
    assert source.read_bytes() == before and not list(desk.folder.glob("*-grade*"))


def test_kappa_by_hand() -> None:
    pairs = [("A", "A")] * 20 + [("A", "B")] * 5 + [("B", "A")] * 10 + [("B", "B")] * 15
    assert cohens_kappa(pairs) == 0.4  # observed 0.7; chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    assert cohens_kappa([("A", "B"), ("B", "A")]) == -1.0
    assert cohens_kappa([("A", "A")]) is None and cohens_kappa([]) is None


def test_confusion_and_triple_agreement_by_hand() -> None:
    assert confusion([("STORE", "DISCARD")])["STORE"] == {"DISCARD": 1, "STORE": 0, "IMPORTANT": 0}
    gold = extraction("User LIKES tea ongoing", "Ana PARENT_OF User ongoing")
    answer = extraction("User CHILD_OF Ana ongoing", "User LIKES tea completed", "User LIKES rum ongoing")
    report = triple_agreement([(gold, answer), (extraction(), extraction())])
    assert report["triples"] == {"gold": 2, "answered": 3, "both": 1}
    assert (report["precision"], report["recall"], report["rows_equal"]) == (0.3333, 0.5, 0.5)


# ---- answers and prompts


def test_names_are_grounded_in_what_was_said_not_in_the_markers() -> None:
    exchange = render_exchange("my boss ZOÉ,\nfrom  Rome", "")

    def verdict(name: str, when: str | None = None) -> str:
        relation = {"subject": "User", "predicate": "LIKES", "object": name, "temporal": "ongoing", "when": when}
        entities = [{"name": "User", "type": "Person"}, {"name": name, "type": "Person", "attributes": {"role": None}}]
        text = json.dumps({"entities": entities, "relationships": [relation]})
        return judge(Task.EXTRACT, Answer(text), exchange).fault

    assert verdict("Zoe\u0301") == verdict("from Rome") == ""
    assert "copy names letter by letter" in verdict("Assistant") and "copy names" in verdict(" ")
    assert "when 'in May' is not in the conversation" in verdict("Rome", "in May")
    exchange = render_exchange("He lives in Rome, my wife likes him", "")
    assert "entity name 'my' is the speaker; write User" in verdict("my")
    for pronoun in ("He", "him", "my wife"):
        assert f"entity name {pronoun!r} is a pronoun; write who is meant" in verdict(pronoun)


@given(st.text(max_size=80))
def test_any_answer_is_judged_without_an_error(text: str) -> None:
    for task in Task:
        verdict = judge(task, Answer(text), "USER: hello")
        assert (verdict.value is None) == bool(verdict.fault)


def test_the_answer_schemas_are_strict_throughout() -> None:
    def check(node: dict[str, Any]) -> None:
        if node.get("type") == "object":
            assert set(node["required"]) == set(node["properties"]) and node["additionalProperties"] is False
            for child in node["properties"].values():
                check(child)
        for child in [*node.get("anyOf", []), *([node["items"]] if "items" in node else [])]:
            check(child)

    for task in Task:
        check(answer_schema(task))
    assert list(answer_schema(Task.GRADE)["properties"]) == ["reasoning", "label", "confidence"]


def test_the_examples_of_the_instructions_are_sound_answers() -> None:
    grade, extract = (INSTRUCTIONS[task].strip().splitlines() for task in (Task.GRADE, Task.EXTRACT))
    assert judge(Task.GRADE, Answer(grade[-1]), "").fault == ""
    assert judge(Task.EXTRACT, Answer(extract[-1]), "USER: " + extract[-2]).fault == ""


def test_the_prompt_version_changes_with_the_words() -> None:
    words = "".join(INSTRUCTIONS[task] + schema_text(task) for task in Task)
    digest = hashlib.sha256(words.encode()).hexdigest()[:12]
    assert (PROMPT_VERSION, digest) == ("1", "8e2d2a0c4b7d"), (
        "raise PROMPT_VERSION: ledgers would keep answers to other words"
    )
