"""Fuzz targets for what models and servers answer, and for what becomes of it: observations, memory, print."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import cache

import httpx
from pydantic import ValidationError

from eval.metrics.row_counts import is_json_object, parse_answer, triple_counts
from observer.backends.ollama import _label_in, label_shares
from observer.demo.highlight import pieces_of
from observer.labeling.answers import judge
from observer.labeling.answers_file import Answer
from observer.memory.diff import remember
from observer.memory.said import Said
from observer.observation import Completion, Exchange, Observation
from observer.observe.observations_file import to_line
from observer.observe.printing import print_observation
from observer.ollama.chat import reply_of
from observer.ollama.client import OllamaClient, TooLong, _Passing
from observer.prompts import Task, render_exchange
from observer.schema import Turn
from observer.turns.after_model import observation, read_extraction
from observer.turns.before_model import prepare
from observer.turns.grounding import fold, messages_of, stated_by
from tests.trust.fuzz.texts import AT, HIDDEN, accepted, parts_of


def observing(data: bytes) -> None:
    """An exchange and a model's answer to it, up to what is printed and remembered."""
    user, assistant, answer, context = parts_of(data, 4)
    turns = [Turn(role="assistant", content=context)] if context else []
    exchange = Exchange(user_message=user, assistant_message=assistant, context=turns, at=AT, id="1")
    prepared = prepare(exchange)
    found = observation(prepared, "model", completion=Completion(answer, (), len(answer) % 2 == 1))
    line = to_line(found)
    assert Observation.model_validate_json(line) == found
    texts = {message.place: message for message in messages_of(exchange)}
    for entity in found.entities:
        for span in entity.spans:
            text = texts[span.message].text
            assert span.end <= len(text) and fold(text[span.start : span.end]) == fold(entity.name)
    told = fold("\n".join(_told(found)))
    assert not [secret for secret in prepared.secrets if secret in told], "a secret is told"
    for message in texts.values():
        assert not any(HIDDEN.search(piece.text) for piece in pieces_of(message, found))
    stated_by([answer[:40], user[:40]], list(texts.values()))
    _check_printed(user, found)
    _check_memory(found)


def answers(data: bytes) -> None:
    """A model's answer alone, read by the client, the evaluation and labelling."""
    answer, said = parts_of(data, 2)
    for truncated in (False, True):
        extraction, _ = read_extraction(answer, truncated)
        again, fault = read_extraction(extraction.to_compact_json())
        assert (again, fault) == (extraction, None)
    parsed = parse_answer(answer)
    assert parsed is None or is_json_object(answer)
    if parsed:
        parsed.faults()
        for level in ("when", "entity_partial"):
            triple_counts([parsed], [answer], level)
    exchange = render_exchange(said or "x", "")
    for task in Task:
        verdict = judge(task, Answer(text=answer), exchange)
        assert (verdict.value is None) == bool(verdict.fault) and len(verdict.fault) <= 600


def observations(data: bytes) -> None:
    """Observations that somebody hands over, a line each, taken into a memory."""
    told: list[Said] = []
    for line in data.split(b"\n"):
        try:
            found = Observation.model_validate_json(line)
        except ValidationError:
            continue
        told = _check_memory(found, told)
        assert Observation.model_validate_json(to_line(found)) == found
        _check_printed(found.id or "", found)


def ollama_answers(data: bytes) -> None:
    """What a server answers to a question: status and body."""
    head, _, body = data.partition(b"\n%%\n")
    status = int(head) if re.fullmatch(rb"[1-5]\d\d", head) else 200
    response = httpx.Response(status, content=body or data)
    try:
        reply = accepted(lambda: reply_of(_client().read(response, "m"), "the server"))
    except (TooLong, _Passing):
        return
    if reply:
        shares = label_shares(reply.choices)
        assert not shares or abs(sum(shares.values()) - 1) < 1e-6
        _label_in(reply.content)


def _check_printed(text: str, found: Observation) -> None:
    from rich.console import Console

    page = io.StringIO()
    print_observation(Console(file=page, width=100, highlight=False, markup=False, emoji=False), text, found)
    assert not HIDDEN.search(page.getvalue()), "control characters on the terminal"


def _check_memory(found: Observation, told: Sequence[Said] = ()) -> list[Said]:
    """Told again, an observation changes nothing."""
    told = [*told, Said.of(found, found.at or AT)]
    assert remember([*told, told[-1]]) == remember(told)
    return told


def _told(found: Observation) -> list[str]:
    """What a model's words came to."""
    said = [entity.name for entity in found.entities]
    said += [text for entity in found.entities for pair in entity.attributes.items() for text in pair]
    said += [text for held in found.relationships for text in (held.subject, held.object, held.when or "")]
    return [*said, found.fault or ""]


@cache
def _client() -> OllamaClient:
    return OllamaClient("127.0.0.1:9")
