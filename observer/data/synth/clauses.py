"""One clause of a turn: a frame, the values that fill it from the world, and what it states."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from observer.data.synth.pools import NO_NAMES, SLOT_TYPES, Draw
from observer.data.synth.surface import SLOT, Family, Section, Split
from observer.data.synth.world import ME, RELATIONS, TODAY, TRACKS, View, sample_view, time_expression
from observer.schema import USER, Entity, EntityType, Predicate, Relationship, Temporal

PRONOUNS = {
    "female": {"she": "she", "She": "She", "her": "her", "her_obj": "her", "hers": "hers"},
    "male": {"she": "he", "She": "He", "her": "his", "her_obj": "him", "hers": "his"},
}
SLICE_OF_PREFIX = {"3p": "third_party", "coref": "coreference"}
SLICE_OF_PATTERN = {"future": "plan", "change": "temporal_change", "correction": "correction"}
SLICE_OF_NOTHING = {"code": "code_block", "secret": "secrets"}
NAMED_SLICES = frozenset(
    "negation no_longer hypothetical fiction sarcasm plan question_with_incidental_fact third_party assistant_stated "
    "correction coreference multi_entity multi_clause temporal_change secrets injection code_block non_english "
    "ack_opening_with_fact".split()
)
"""The hard cases that every report breaks its figures down by."""

RARE_SLICES = frozenset("sarcasm injection code_block negation fiction ack_opening_with_fact".split())
"""Of these a section has one family among many; they are drawn more often than the others."""

VERBATIM_SLICES = frozenset({"code_block", "secrets", "injection", "non_english"})
"""Frames in which case, letters and marks count: no typo, no other case, nothing pasted to them."""


@dataclass
class Clause:
    """One frame filled from the world, and what it states."""

    section: Section
    family: Family
    variant: int
    values: dict[str, str]
    relationships: list[Relationship] = field(default_factory=list)
    entities: dict[str, Entity] = field(default_factory=dict)
    slices: set[str] = field(default_factory=set)

    @property
    def template(self) -> str:
        return self.family.variants[self.variant]

    @property
    def frame(self) -> str:
        return f"{self.family.id}.{self.family.form}{self.variant}"

    @property
    def replies(self) -> Sequence[str]:
        return self.family.replies or self.section.replies

    @property
    def names(self) -> list[str]:
        """The values shown that a split may hold out; a person's first and last name apart."""
        shown = [(slot, self.values[slot]) for slot in SLOT.findall(self.template) if _kind(slot) not in NO_NAMES]
        is_person = {slot: SLOT_TYPES.get(_kind(slot)) is EntityType.PERSON for slot, _ in shown}
        return [part for slot, value in shown for part in (value.split() if is_person[slot] else [value])]


class ClauseMaker:
    """Draws clauses for one split from one random stream."""

    def __init__(self, rng: random.Random, split: Split, draw: Draw) -> None:
        self.rng = rng
        self.split: Split = split
        self.draw = draw

    def of_facts(self, section: Section, person: dict[str, str] | None = None) -> Clause:
        parts = section.name.split(".")
        track, pattern = parts[-2:]
        view = sample_view(self.rng, self.draw, track, pattern)
        return self.of_view(section, view, track, person)

    def of_nothing(self, section: Section) -> Clause:
        """A clause that states nothing; its slots are filled with unrelated values."""
        clause = self._pick(section, self._person())
        if clause.family.form:  # a contrast set: the relation is that of its track
            self._fill_people(clause.values, clause.family.id.partition("/")[0].partition(".")[2])
        for slot in SLOT.findall(" ".join([clause.template, *clause.replies])):
            if slot not in clause.values:
                clause.values[slot] = "next week" if slot == "when" else self._other_value(slot, clause.values)
        kind = section.name.partition(".")[2]
        clause.slices |= {SLICE_OF_NOTHING.get(kind, kind)} & NAMED_SLICES
        return clause

    def of_view(self, section: Section, view: View, track: str, person: dict[str, str] | None = None) -> Clause:
        prefix = section.name.split(".")[0] if section.name.count(".") == 2 else ""
        values = dict(view.span.values)
        if view.before:
            values |= {f"old_{slot}": value for slot, value in view.before.values.items()}
        if view.day:
            values["when"] = time_expression(self.rng, view.day)
        values |= person or (self._person() if prefix == "3p" else {})
        self._fill_people(values, track)
        clause = self._pick(section, values)
        for slot in SLOT.findall(" ".join([clause.template, *clause.replies])):
            if slot not in values:
                values[slot] = self._other_value(slot, values)
        clause.slices |= {SLICE_OF_PREFIX.get(prefix, ""), SLICE_OF_PATTERN.get(view.pattern, "")} & NAMED_SLICES
        shown = {slot: values[slot] for slot in SLOT.findall(clause.template) if slot not in NO_NAMES}
        if len(set(shown.values())) < len(shown):  # two people of one name: nobody could tell them apart
            return self.of_view(section, view, track, person)
        self._state(clause, view, track, subject=values["who"] if prefix in ("3p", "coref") else USER)
        return clause

    def _pick(self, section: Section, values: dict[str, str]) -> Clause:
        families = section.of(self.split)
        family = self.rng.choice(families)
        if not RARE_SLICES & set(family.slices) and self.rng.random() < 0.25:
            family = self.rng.choice([f for f in families if RARE_SLICES & set(f.slices)] or families)
        variant = self.rng.randrange(len(family.variants))
        return Clause(section, family, variant, values, slices=set(family.slices))

    def _other_value(self, slot: str, values: dict[str, str]) -> str:
        """A value that is unlike those of the same kind."""
        return self.draw.unlike(_kind(slot), [value for name, value in values.items() if _kind(name) == _kind(slot)])

    def _person(self) -> dict[str, str]:
        """A third person: `who`, the relation word, its predicate (under a key no slot has), the pronouns."""
        predicate = self.rng.choice(list(RELATIONS))
        word, gender = self.rng.choice(RELATIONS[predicate])
        return {"who": self.draw.person(gender), "rel": word, "rel-predicate": predicate, **PRONOUNS[gender]}

    def _fill_people(self, values: dict[str, str], track: str) -> None:
        """Give people tracks a relation word whose gender fits the name."""
        predicate = TRACKS[track][0][1]
        if predicate in RELATIONS:
            values["rel"], gender = self.rng.choice(RELATIONS[predicate])
            values["person"], values["wrong_person"] = (self.draw.person(gender) for _ in range(2))

    def _state(self, clause: Clause, view: View, track: str, subject: str) -> None:
        """Write into the clause what its frame states: the facts whose slots it shows, as the log has them."""
        shown = set(SLOT.findall(clause.template))
        values = clause.values
        if subject != USER:
            clause.entities[subject] = Entity(name=subject, type=EntityType.PERSON)
        if "rel" in shown and "who" in shown:
            self._relate(clause, USER, values["rel-predicate"], "who", "ongoing")
        spans = [("old_", view.before)] if view.before else []
        for prefix, span in [*spans, ("", view.span)]:
            assert span is not None
            for owner, predicate, slot in TRACKS[track]:
                if prefix + slot in shown:
                    when = values.get("when") if not prefix and "when" in shown else None
                    holder = subject if owner == ME else values[prefix + owner]
                    self._relate(clause, holder, predicate, prefix + slot, span.temporal(TODAY), when)

    def _relate(
        self, clause: Clause, subject: str, predicate: str, slot: str, temporal: str, when: str | None = None
    ) -> None:
        name = clause.values[slot]
        if subject == USER:
            clause.entities.setdefault(USER, Entity(name=USER, type=EntityType.PERSON))
        attributes: dict[str, str] = {}
        if slot in ("who", "person") and "{rel}" in clause.template:
            attributes = {"relation": clause.values["rel"]}
        if slot == "pet" and "{species}" in clause.template:
            attributes = {"detail": clause.values["species"]}
        kind = SLOT_TYPES.get(_kind(slot), EntityType.CONCEPT)
        clause.entities[name] = Entity(name=name, type=kind, attributes=attributes)
        relation = Relationship(
            subject=subject, predicate=Predicate(predicate), object=name, temporal=Temporal(temporal), when=when
        )
        clause.relationships.append(relation)

    def text(self, clause: Clause, style: str = "as_is") -> str:
        """The clause in words. Style and typos touch the frame only, never a value."""
        template = clause.template
        if VERBATIM_SLICES & clause.slices:
            return fill(template, clause.values, "non_english" not in clause.slices)
        if style == "lower":
            template = "".join(p if k % 2 else p.lower() for k, p in enumerate(re.split(r"(\{\w+\})", template)))
        if style != "proper" and self.rng.random() < 0.08:
            template = _with_typo(self.rng, template)
        return fill(template, clause.values)


def _kind(slot: str) -> str:
    """The slot that an old or wrong value stands for."""
    return slot.removeprefix("old_").removeprefix("wrong_")


def fill(template: str, values: dict[str, str], english: bool = True) -> str:
    """Put values into slots; in English `a {slot}` becomes `an` before a vowel's sound."""

    def replace(match: re.Match[str]) -> str:
        article, value = match.group(1) or "", values[match.group(2)]
        if article and english and _sounds_like_a_vowel(value):
            article = article[0] + "n" + article[1:]
        return article + value

    return re.sub(r"(\b[Aa] )?\{(\w+)\}", replace, template)


def _sounds_like_a_vowel(value: str) -> bool:
    if re.match(r"[A-Z]{2,3}\b", value):  # spelled letter by letter: an HR manager, a UX designer
        return value[0] in "AEFHILMNORSX"
    if value.startswith("Xbox"):
        return True
    return value[0].lower() in "aeiou" and not value.lower().startswith(("uni", "eu", "one"))


def _with_typo(rng: random.Random, template: str) -> str:
    """Swap two inner letters of one long word outside the slots."""
    words = list(re.finditer(r"(?<![{\w])[a-z]{5,}(?![}\w])", template))
    if not words:
        return template
    start = rng.choice(words).start() + 1
    swapped = template[start + 1] + template[start]
    return template[:start] + swapped + template[start + 2 :]
