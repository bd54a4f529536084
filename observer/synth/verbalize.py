"""From views of the world to one exchange: which facts, which frames, how they are strung together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from observer.schema import USER, Entity, Label, Relationship, Turn, highest_label
from observer.synth.clauses import Clause, ClauseMaker, fill
from observer.synth.pools import Draw, Names
from observer.synth.surface import Section, Split, load_sections
from observer.synth.world import TRACKS, sample_view

NOTHING_WEIGHTS = {"hypothetical": 4, "fiction": 3, "negation": 4, "command": 3, "world_fact": 3, "rumor": 2}


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

    @property
    def label(self) -> Label:
        return highest_label([str(relation.predicate) for relation in self.relationships])


class Verbalizer:
    """Draws exchanges for one split from one random stream."""

    def __init__(self, rng: random.Random, split: Split, names: Names) -> None:
        self.rng = rng
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
            if not late_ack and not _clash(clause, clauses):
                clauses.append(clause)
        return self._assemble(clauses)

    def _nothing(self) -> Exchange:
        names = [name for name in self.sections if name.startswith("none.")]
        weights = [NOTHING_WEIGHTS.get(name.split(".")[1], 1) for name in names]
        name = self.rng.choices(names, weights)[0]
        clauses = [self._nothing_clause(name)]
        if name != "none.non_english" and self.rng.random() < 0.25:
            second = self._nothing_clause(self.rng.choice(["none.opinionless", "none.command", "none.hypothetical"]))
            clauses += [second] if second.section is not clauses[0].section else []
        return self._assemble(clauses, plain=name in ("none.code", "none.injection", "none.non_english"))

    def _coreference(self) -> Exchange:
        intro = self._nothing_clause("intro")
        clause = self.clauses.of_facts(self._section_with("coref."), person=intro.values)
        context = [Turn(role="user", content=self.clauses.text(intro)), self._reply_turn(intro)]
        return self._assemble([clause], context=context)

    def _confirmation(self, answer: str) -> Exchange:
        section = self._section_with("ask.")
        track = section.name.split(".")[1]
        ask = self.clauses.of_view(section, sample_view(self.rng, self.draw, track, "current"), track)
        prelude = self._nothing_clause("prelude")
        context = [
            Turn(role="user", content=self.clauses.text(prelude)),
            Turn(role="assistant", content=self.clauses.text(ask, style="proper")),
        ]
        clause = self._nothing_clause(answer)
        clause.slices.add("assistant_stated")
        if answer == "yes":
            clause.relationships, clause.entities = ask.relationships, ask.entities
        return self._assemble([clause], context=context, also=[ask])

    def _assemble(
        self,
        clauses: list[Clause],
        plain: bool = False,
        context: list[Turn] | None = None,
        also: Sequence[Clause] = (),
    ) -> Exchange:
        text = self._message(clauses, plain)
        if context is None:
            context = self._idle_context() if self.rng.random() < 0.22 else []
        entities: dict[str, Entity] = {}
        for clause in clauses:
            for name, entity in clause.entities.items():
                if name not in entities or entity.attributes:
                    entities[name] = entity
        slices = set().union(*(clause.slices for clause in clauses))
        slices |= {"multi_clause"} if len(clauses) > 1 else set()
        slices |= {"multi_entity"} if len(entities) > 2 else set()
        slices |= {"unseen_name"} if self.draw.names == "unseen" else set()
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
        )

    # --- parts ---

    def _section_with(self, prefix: str) -> Section:
        """A section of facts; without a prefix one about the user. Tracks first, so that none dominates."""
        by_track: dict[str, list[Section]] = {}
        for name, section in self.sections.items():
            head, _, rest = name.partition(".")
            track = rest.split(".")[0] if prefix else head
            if (name.startswith(prefix) if prefix else head in TRACKS) and section.of(self.split):
                by_track.setdefault(track, []).append(section)
        return self.rng.choice(by_track[self.rng.choice(sorted(by_track))])

    def _message(self, clauses: list[Clause], plain: bool) -> str:
        style = self.rng.choices(["as_is", "proper", "lower"], [60, 25, 15])[0]
        text = ""
        for clause in clauses:
            words = self.clauses.text(clause, style if not plain else "as_is")
            text = self._join(text, words) if text else words
        if plain:
            return text
        starts_with_value = clauses[0].template.startswith("{")
        if self.rng.random() < 0.25 and "ack_opening_with_fact" not in clauses[0].slices:
            text, starts_with_value = f"{self._connective('opener')} {text}", False
        if self.rng.random() < 0.12:
            text, starts_with_value = f"{self._connective('filler')} {text}", False
        if self.rng.random() < 0.22:
            closer = self._connective("closer")
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
        if left[-1] in ".?!":
            joiner = joiner.lstrip(".,;- ")
            return f"{left} {joiner} {right}"
        return f"{left}{'' if joiner[0] in '.,;' else ' '}{joiner} {right}"

    def _nothing_clause(self, name: str) -> Clause:
        return self.clauses.of_nothing(self.sections[name])

    def _connective(self, name: str) -> str:
        return self.rng.choice(self.rng.choice(self.sections[name].of(self.split)).variants)

    def _reply(self, clause: Clause) -> str:
        replies = clause.section.replies
        if clause.section.name.startswith("xl."):  # four languages: 12 families and 8 replies, in the same order
            language = int(clause.family.id.rpartition("/")[2]) // 3
            replies = replies[2 * language : 2 * language + 2]
        return fill(self.rng.choice(replies), clause.values)

    def _reply_turn(self, clause: Clause) -> Turn:
        return Turn(role="assistant", content=self._reply(clause))

    def _idle_context(self) -> list[Turn]:
        """An earlier exchange that the answer must not draw on: idle talk, or a fact told before."""
        if self.rng.random() < 0.25:
            clause = self.clauses.of_facts(self._section_with(""))
        else:
            clause = self._nothing_clause("prelude")
        return [Turn(role="user", content=self.clauses.text(clause)), self._reply_turn(clause)]


def _clash(clause: Clause, others: Sequence[Clause]) -> bool:
    """Whether it tells of a thing or a track that another clause of the turn already tells of."""
    names = set(clause.entities) - {USER}
    track = clause.section.name.rpartition(".")[0]
    for other in others:
        if names & set(other.entities) or track == other.section.name.rpartition(".")[0]:
            return True
        shown = " ".join(other.entities)
        if any(name in shown for name in names):
            return True
    return False
