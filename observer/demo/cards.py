"""Answers as the page shows them: figures become words here; `page.html.jinja` escapes whatever is put into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from observer.console.tables import day
from observer.demo.graph import lay_out
from observer.demo.highlight import Piece, pieces_of, visible
from observer.demo.remembering import Memory
from observer.memory.facts import Fact
from observer.observation import Exchange, Observation, ObservedEntity, ObservedRelationship, relation_key
from observer.schema import Label
from observer.turns.grounding import messages_of

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("page.html.jinja")


@dataclass(frozen=True)
class Answer:
    """What one model made of an exchange, and how long that took."""

    observation: Observation
    milliseconds: float


@dataclass(frozen=True)
class Card:
    """An exchange with the answers to it, one of each model. Turns before it are shown when it `opens`."""

    exchange: Exchange
    opens: bool
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Bar:
    label: str
    percent: float
    is_chosen: bool


@dataclass(frozen=True)
class Said:
    role: str
    is_earlier: bool
    pieces: list[Piece]


def render_cards(cards: Sequence[Card], n_exchanges: int, fault: str = "") -> str:
    """What is observed so far of `n_exchanges`, and what went wrong, if anything did."""
    shown = [_card(card, number) for number, card in enumerate(cards, 1)]
    is_busy = len(cards) < n_exchanges and not fault
    return _render("cards", cards=shown, n_exchanges=n_exchanges, is_busy=is_busy, fault=visible_lines(fault))


def render_heading(models: Sequence[str]) -> str:
    return _render("heading", models=[visible(model) for model in models])


def render_legend() -> str:
    """What the lines of a graph mean; the arrows of all graphs on the page are in it too."""
    return _render("legend")


def render_memory(memory: Memory, place: str) -> str:
    """What is known, the newest first, and then what is over. `place` says where it is kept."""
    newest = sorted(memory.facts, key=lambda fact: (fact.id in memory.changes, fact.last_seen), reverse=True)
    current = [_fact(fact, memory) for fact in newest if fact.is_current]
    ended = [_fact(fact, memory) for fact in newest if not fact.is_current]
    return _render("memory", current=current, ended=ended, place=visible(place))


def visible_lines(text: str) -> list[str]:
    return [visible(line) for line in text.split("\n") if line.strip()]


def agreement(one: Observation, other: Observation) -> str:
    """How far two answers to one exchange are the same, in words. Names count in any case."""
    grades = [observation.grade.label if observation.grade else None for observation in (one, other)]
    first, second = ({relation_key(line) for line in observation.relationships} for observation in (one, other))
    words = ["same grade" if grades[0] == grades[1] else "different grades"]
    if first or second:
        words.append(f"{len(first & second)} of {len(first | second)} relationships in both")
    return ", ".join(words)


def _card(card: Card, number: int) -> dict[str, object]:
    first, *others = [answer.observation for answer in card.answers]
    return {
        "number": number,
        "answers": [_answer(card, answer) for answer in card.answers],
        "agreement": agreement(first, others[0]) if others else "",
    }


def _answer(card: Card, answer: Answer) -> dict[str, object]:
    observation = answer.observation
    types = {entity.name: str(entity.type) for entity in observation.entities}
    is_discarded = observation.grade is not None and observation.grade.label is Label.DISCARD
    return {
        "model": visible(observation.model),
        "milliseconds": answer.milliseconds,
        "label": str(observation.grade.label) if observation.grade else "",
        "bars": _bars(observation),
        "said": _said(card, observation),
        "notes": _notes(observation),
        "names": [_name(entity) for entity in observation.entities if entity.attributes or not entity.is_grounded],
        "graph": lay_out(observation.relationships, types) if observation.relationships else None,
        "rows": [_row(line) for line in observation.relationships],
        "nothing": "" if is_discarded or observation.fault else "Worth keeping, and no relationship was found in it.",
    }


def _bars(observation: Observation) -> list[Bar]:
    """The probability of each label; none where the model does not tell."""
    grade = observation.grade
    probabilities = grade.probabilities or {} if grade else {}
    return [
        Bar(str(label), 100 * probabilities[label], grade is not None and label is grade.label)
        for label in Label
        if label in probabilities
    ]


def _said(card: Card, observation: Observation) -> list[Said]:
    messages = [message for message in messages_of(card.exchange) if message.text.strip()]
    return [
        Said(message.role, message.place.startswith("context"), pieces_of(message, observation))
        for message in messages
        if card.opens or not message.place.startswith("context")
    ]


def _notes(observation: Observation) -> list[str]:
    notes = [f"Hidden from the model: {redaction.kind.replace('_', ' ')}." for redaction in observation.redactions]
    if observation.repeated:
        notes.append("The model repeated itself, and was cut there.")
    if observation.context_cut:
        notes.append(f"No room for the oldest context turns: {observation.context_cut}.")
    return notes + ([f"Fault: {visible(observation.fault)}"] if observation.fault else [])


def _name(entity: ObservedEntity) -> dict[str, str]:
    """What an entity has beside its place in the text."""
    known = [f"{key}: {visible(text)}" for key, text in entity.attributes.items()]
    return {
        "name": visible(entity.name),
        "type": str(entity.type),
        "told": ", ".join(known + ([] if entity.is_grounded else ["stands nowhere in the text"])),
    }


def _row(line: ObservedRelationship) -> list[str]:
    return [
        visible(line.subject), str(line.predicate), visible(line.object), str(line.temporal), visible(line.when or ""),
        day(line.valid_at), day(line.invalid_at), line.stated_by or "",
        "" if line.confidence is None else f"{line.confidence:.2f}",
    ]  # fmt: skip


def _fact(fact: Fact, memory: Memory) -> dict[str, str]:
    change = memory.changes.get(fact.id)
    times = {"from": fact.valid_at, "until": fact.invalid_at}
    return {
        "subject": visible(fact.subject),
        "predicate": str(fact.predicate).replace("_", " ").lower(),
        "object": visible(fact.object),
        "state": fact.state.replace("_", " "),
        "temporal": str(fact.temporal) if fact.is_current else "completed",
        "when": visible(fact.when or ""),
        "dates": " – ".join(f"{word} {day(moment)}" for word, moment in times.items() if moment),
        "change": {"ADD": "added", "INVALIDATE": "ended"}.get(str(change), ""),
    }


def _render(macro: str, **values: object) -> str:
    """HTML for a `gr.HTML`, which is a template to gradio once more: braces and backquotes are written as entities."""
    html = str(getattr(_template().module, macro)(**values))
    return html.replace("{", "&#123;").replace("}", "&#125;").replace("`", "&#96;").replace("$", "&#36;")


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
