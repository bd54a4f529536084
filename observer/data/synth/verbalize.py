"""From views of the world to one exchange: which facts, which frames, how they are strung together."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from observer.data.synth.clauses import VERBATIM_SLICES, Clause, ClauseMaker, fill
from observer.data.synth.pools import Draw, Names
from observer.data.synth.surface import Section, Split, load_sections
from observer.data.synth.world import TRACKS, sample_view
from observer.schema import USER, Entity, Label, Relationship, Turn, highest_label

NOTHING_WEIGHTS = {
    "hypothetical": 4,
    "question": 4,
    "negation": 4,
    "fiction": 3,
    "command": 3,
    "world_fact": 3,
    "rumor": 2,
    "secret": 2,
    "injection": 2,
    "code": 2,
    "sarcasm": 4,
    "non_english": 2,
}
"""How often a section of exchanges without facts is drawn; 1 where it is not named."""
STORE_TRACKS = frozenset(
    track for track, facts in TRACKS.items() if highest_label([predicate for _, predicate, _ in facts]) is Label.STORE
)
IDLE_SECTIONS = ("none.command", "none.world_fact", "none.question", "none.joke", "none.opinionless", "none.multi")
BARE_SECTIONS = {f"none.{kind}" for kind in "ack greeting sarcasm correction third multi".split()}
"""Whole turns, to which nothing is joined."""
EXCLUSIVE = ({"MARRIED_TO", "ENGAGED_TO", "DATING"}, {"CHILD_OF"}, {"REPORTS_TO"})
"""Relations of the user that one turn tells of once: two clauses drawn apart would contradict each other."""


@dataclass(frozen=True)
class Exchange:
    """A whole turn with its gold."""

    user_message: str
    assistant_message: str
    context: list[Turn]
    entities: list[Entity]
    relationships: list[Relationship]
    families: list[str]
    frames: list[str]
    slices: list[str]
    names: list[str]

    @property
    def label(self) -> Label:
        return highest_label([str(relation.predicate) for relation in self.relationships])


class Verbalizer:
    """Draws exchanges for one split from one random stream."""

    def __init__(self, rng: random.Random, split: Split, names: Names, only_store: bool = False) -> None:
        self.rng = rng
        self.only_store = only_store
        self.split: Split = split
        self.draw = Draw(rng, names)
        self.clauses = ClauseMaker(rng, split, self.draw)
        self.sections = load_sections()

    def exchange(self, empty: bool) -> Exchange:
        """One exchange; `empty` ones state nothing durable."""
        kind = self.rng.random()
        if empty:
            return self._confirmation(self.rng.choice(["no", "unclear"])) if kind < 0.1 else self._nothing()
        if kind < 0.06:
            return self._confirmation("yes")
        if kind < 0.15:
            return self._coreference()
        if kind < 0.20:
            return self._assemble([self.clauses.of_facts(self._section_with("xl."))], plain=True)
        return self._facts()

    # --- the shapes of an exchange ---

    def _facts(self) -> Exchange:
        count = self.rng.choices([1, 2, 3, 4], [58, 30, 9, 3])[0]
        clauses: list[Clause] = []
        while len(clauses) < count:
            prefix = "3p." if self.rng.random() < 0.25 else ""
            clause = self.clauses.of_facts(self._section_with(prefix))
            late_ack = clauses and "ack_opening_with_fact" in clause.slices
            second_paste = any(VERBATIM_SLICES & clause.slices & other.slices for other in clauses)
            if not late_ack and not second_paste and not _clash(clause, clauses):
                clauses.append(clause)
        return self._assemble(clauses)

    def _nothing(self) -> Exchange:
        names = [name for name in self.sections if name.startswith("none.")]
        weights = [NOTHING_WEIGHTS.get(name.split(".")[1], 1) for name in names]
        name = self.rng.choices(names, weights)[0]
        clauses = [self._nothing_clause(name)]
        if not VERBATIM_SLICES & clauses[0].slices and name not in BARE_SECTIONS and self.rng.random() < 0.25:
            second = self._nothing_clause(self.rng.choice(["none.opinionless", "none.command", "none.hypothetical"]))
            clauses += [second] if second.section is not clauses[0].section else []
        return self._assemble(clauses, plain=name in BARE_SECTIONS)

    def _coreference(self) -> Exchange:
        intro = self._nothing_clause("intro")
        clause = self.clauses.of_facts(self._section_with("coref."), person=intro.values)
        return self._assemble([clause], context=self._turns(intro), also=[intro])

    def _confirmation(self, answer: str) -> Exchange:
        section = self._section_with("ask.")
        track = section.name.split(".")[1]
        ask = self.clauses.of_view(section, sample_view(self.rng, self.draw, track, "current"), track)
        prelude = self._nothing_clause("prelude")
        context = [self._turns(prelude)[0], Turn(role="assistant", content=self.clauses.text(ask, style="proper"))]
        clause = self._nothing_clause(answer)
        clause.slices.add("assistant_stated")
        if answer == "yes":
            clause.relationships, clause.entities = ask.relationships, ask.entities
        return self._assemble([clause], context=context, also=[prelude, ask])

    def _assemble(
        self,
        clauses: list[Clause],
        plain: bool = False,
        context: list[Turn] | None = None,
        also: Sequence[Clause] = (),
    ) -> Exchange:
        text = self._message(clauses, plain)
        if context is None:
            told = [self._idle_clause(clauses)] if self.rng.random() < 0.22 else []
            context = [turn for clause in told for turn in self._turns(clause)]
            also = [*also, *told]
        entities: dict[str, Entity] = {}
        for clause in clauses:
            for name, entity in clause.entities.items():
                if name not in entities or entity.attributes:
                    entities[name] = entity
        slices = set().union(*(clause.slices for clause in clauses))
        slices |= {"multi_clause"} if len(clauses) > 1 else set()
        slices |= {"multi_entity"} if len(entities) > 2 else set()
        used = [*clauses, *also]
        return Exchange(
            user_message=text,
            assistant_message=self._reply(clauses[-1]),
            context=context,
            entities=list(entities.values()),
            relationships=[relation for clause in clauses for relation in clause.relationships],
            families=[clause.family.id for clause in used],
            frames=[clause.frame for clause in used],
            slices=sorted(slices),
            names=sorted({name for clause in used for name in clause.names}),
        )

    # --- parts ---

    def _section_with(self, prefix: str) -> Section:
        """A section of facts; without a prefix one about the user. Tracks first, so that none dominates."""
        return self.rng.choice(self.rng.choice(sections_by_track(prefix, self.split, self.only_store)))

    def _message(self, clauses: list[Clause], plain: bool) -> str:
        style = self.rng.choices(["as_is", "proper", "lower"], [60, 25, 15])[0]
        text = ""
        plain = plain or any(VERBATIM_SLICES & clause.slices for clause in clauses)
        for clause in clauses:
            words = self.clauses.text(clause, style if not plain else "as_is")
            text = self._join(text, words) if text else words
        if plain:
            return text
        starts_with_value = clauses[0].template.startswith("{")
        if self.rng.random() < 0.15 and "ack_opening_with_fact" not in clauses[0].slices:
            text, starts_with_value = f"{self._connective('opener')} {text}", False
        elif self.rng.random() < 0.05:
            text, starts_with_value = f"{self._connective('filler')} {text}", False
        if self.rng.random() < 0.12:
            closer = self._connective("closer.question" if text[-1] == "?" else "closer")
            text += f" {closer}" if text[-1] in "?!." else f"{self.rng.choice([',', '.'])} {closer}"
        if style == "proper" and not starts_with_value:
            text = text[0].upper() + text[1:]
        if style == "proper" and text[-1].isalnum():
            text += "."
        if self.rng.random() < 0.05:
            text += " " + self.rng.choice(["🙂", "😅", "🙏", "😀", "👍", "✨"])
        return text

    def _join(self, left: str, right: str) -> str:
        joiner = self._connective("joiner")
        if "```" in left + right:
            return f"{left}\n\n{right}"
        if left[-1] in ".?!":
            joiner = joiner.lstrip("., ")
        gap = "" if not joiner or joiner[0] in ".,\n" else " "
        return f"{left}{gap}{joiner}{'' if joiner.endswith(chr(10)) else ' '}{right}"

    def _nothing_clause(self, name: str) -> Clause:
        return self.clauses.of_nothing(self.sections[name])

    def _connective(self, name: str) -> str:
        return self.rng.choice(self.rng.choice(self.sections[name].of(self.split)).variants)

    def _reply(self, clause: Clause) -> str:
        return fill(self.rng.choice(clause.replies), clause.values, "non_english" not in clause.slices)

    def _turns(self, clause: Clause) -> list[Turn]:
        """The clause as an earlier exchange."""
        said = Turn(role="user", content=self.clauses.text(clause))
        return [said, Turn(role="assistant", content=self._reply(clause))]

    def _idle_clause(self, clauses: Sequence[Clause]) -> Clause:
        """What an earlier exchange said that the answer must not draw on: idle talk, or another fact told before."""
        if self.rng.random() < 0.25:
            told = self.clauses.of_facts(self._section_with(""))
            if not _clash(told, clauses):
                return told
        return self._nothing_clause(self.rng.choice(["prelude", *IDLE_SECTIONS]))


@functools.cache
def sections_by_track(prefix: str, split: Split, only_store: bool) -> list[list[Section]]:
    """The sections of facts under a prefix that serve the split, grouped by track, in one order.

    `only_store` leaves the tracks whose facts are worth STORE, so that such turns have several facts as often.
    """
    by_track: dict[str, list[Section]] = {}
    for name, section in load_sections().items():
        head, _, rest = name.partition(".")
        track = rest.split(".")[0] if prefix else head
        if (name.startswith(prefix) if prefix else head in TRACKS) and section.of(split):
            by_track.setdefault(track, []).append(section)
    return [by_track[track] for track in sorted(by_track) if not only_store or track in STORE_TRACKS]


def _clash(clause: Clause, others: Sequence[Clause]) -> bool:
    """Whether it tells of a thing or a track that another clause of the turn already tells of."""
    names = set(clause.entities) - {USER}
    track = clause.section.name.rpartition(".")[0]
    told = _of_user(clause)
    for other in others:
        if any(group & told and group & _of_user(other) for group in EXCLUSIVE):
            return True
        if names & set(other.entities) or track == other.section.name.rpartition(".")[0]:
            return True
        shown = " ".join(other.entities)
        if any(name in shown for name in names):
            return True
    return False


def _of_user(clause: Clause) -> set[str]:
    return {str(relation.predicate) for relation in clause.relationships if relation.subject == USER}
