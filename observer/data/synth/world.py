"""The world: a persona's log of jobs, homes, people and habits as dated spans, seen from one day.

Gold is read off the log: a span that has not begun is `future`, one that has ended `completed`, else `ongoing`.
"""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass

from observer.data.synth.pools import MONTHS, Draw
from observer.schema import Temporal

ME = "me"
"""Subject of a fact: the person the track is about (the user, or a third person)."""

Fact = tuple[str, str, str]
"""(subject slot or ME, predicate, object slot)"""

TRACKS: dict[str, tuple[Fact, ...]] = {
    "name": ((ME, "HAS_NAME", "name"),),
    "age": ((ME, "HAS_AGE", "age"),),
    "birthday": ((ME, "BORN_ON", "date"),),
    "birthplace": ((ME, "BORN_IN", "city"),),
    "origin": ((ME, "FROM", "country"),),
    "language": ((ME, "SPEAKS", "language"),),
    "job": ((ME, "WORKS_AT", "org"), (ME, "HAS_ROLE", "role"), ("org", "LOCATED_IN", "city")),
    "role": ((ME, "HAS_ROLE", "role"),),
    "project": ((ME, "WORKS_ON", "project"),),
    "boss": ((ME, "REPORTS_TO", "boss"),),
    "colleague": ((ME, "COLLEAGUE_OF", "person"),),
    "school": ((ME, "STUDIES_AT", "school"), (ME, "STUDIES", "subject")),
    "subject": ((ME, "STUDIES", "subject"),),
    "club": ((ME, "MEMBER_OF", "club"),),
    "marriage": ((ME, "MARRIED_TO", "person"),),
    "engagement": ((ME, "ENGAGED_TO", "person"),),
    "dating": ((ME, "DATING", "person"),),
    "child": ((ME, "PARENT_OF", "person"),),
    "parent": ((ME, "CHILD_OF", "person"),),
    "sibling": ((ME, "SIBLING_OF", "person"),),
    "relative": ((ME, "RELATIVE_OF", "person"),),
    "friend": ((ME, "FRIEND_OF", "person"),),
    "roommate": ((ME, "ROOMMATE_OF", "person"),),
    "neighbor": ((ME, "NEIGHBOR_OF", "person"),),
    "home": ((ME, "LIVES_IN", "city"),),
    "trip": ((ME, "VISITS", "place"),),
    "pet": ((ME, "HAS_PET", "pet"),),
    "own": ((ME, "OWNS", "product"),),
    "use": ((ME, "USES", "tech"),),
    "condition": ((ME, "HAS_CONDITION", "condition"),),
    "allergy": ((ME, "ALLERGIC_TO", "allergen"),),
    "med": ((ME, "TAKES", "medication"),),
    "diet": ((ME, "FOLLOWS_DIET", "diet"),),
    "event": ((ME, "ATTENDS", "event"),),
    "activity": ((ME, "DOES", "activity"),),
    "like": ((ME, "LIKES", "like"),),
    "dislike": ((ME, "DISLIKES", "dislike"),),
    "prefer": ((ME, "PREFERS", "pref"),),
    "interest": ((ME, "INTERESTED_IN", "topic"),),
}

RELATIONS: dict[str, tuple[tuple[str, str], ...]] = {
    # predicate between the user and a third person -> (word, gender)
    "MARRIED_TO": (("wife", "female"), ("husband", "male")),
    "ENGAGED_TO": (("fiancée", "female"), ("fiancé", "male")),
    "DATING": (("girlfriend", "female"), ("boyfriend", "male")),
    "PARENT_OF": (("daughter", "female"), ("son", "male")),
    "CHILD_OF": (("mum", "female"), ("mother", "female"), ("mom", "female"), ("dad", "male"), ("father", "male")),
    "SIBLING_OF": (("sister", "female"), ("brother", "male")),
    "RELATIVE_OF": (
        *(("aunt", "female"), ("uncle", "male"), ("cousin", "female"), ("cousin", "male")),
        *(("grandma", "female"), ("grandpa", "male"), ("niece", "female"), ("nephew", "male")),
    ),
    "FRIEND_OF": (("friend", "female"), ("friend", "male"), ("best friend", "female"), ("best friend", "male")),
    "COLLEAGUE_OF": (("colleague", "female"), ("coworker", "male")),
    "ROOMMATE_OF": (("roommate", "female"), ("flatmate", "male")),
    "NEIGHBOR_OF": (("neighbor", "female"), ("neighbor", "male")),
    "REPORTS_TO": (("boss", "female"), ("boss", "male")),
}


LASTING = frozenset(
    "asthma|type 1 diabetes|type 2 diabetes|celiac disease|irritable bowel syndrome|Crohn's disease|ulcerative colitis|"
    "hypothyroidism|Hashimoto's|rheumatoid arthritis|osteoarthritis|psoriasis|narcolepsy|epilepsy|multiple sclerosis|"
    "Parkinson's|fibromyalgia|endometriosis|PCOS|hemophilia|scoliosis|glaucoma|colour blindness|dyslexia|ADHD|autism|"
    "bipolar disorder|COPD|lupus|Raynaud's".split("|")
)
"""Conditions that nobody tells of as overcome."""

REPLACEABLE = {"product", "tech", "pref"}
"""Slots whose successive values are of one kind: a phone follows a phone."""


@dataclass(frozen=True)
class Span:
    """One stretch of a track: its slot values from `start` until `end` (None: no end known)."""

    values: dict[str, str]
    start: dt.date
    end: dt.date | None

    def temporal(self, today: dt.date) -> Temporal:
        if self.start > today:
            return Temporal.FUTURE
        return Temporal.COMPLETED if self.end is not None and self.end <= today else Temporal.ONGOING


@dataclass(frozen=True)
class View:
    """What a turn may tell of a track: the span in focus, the one it replaced, the day of the event."""

    pattern: str
    span: Span
    before: Span | None = None
    day: dt.date | None = None


def sample_log(rng: random.Random, draw: Draw, track: str) -> list[Span]:
    """A persona's spans on one track, oldest first; neighbours hold values of one kind."""
    main, count = TRACKS[track][0][2], rng.randint(1, 3)
    mains: list[str] = []
    if main in REPLACEABLE:
        count = min(count, 2)
        mains = draw.of_same_kind(main, 2)
    spans: list[Span] = []
    cursor = TODAY - dt.timedelta(days=rng.randint(30, 3000))
    for k in range(count):
        values = {slot: draw.value(slot) for _, _, slot in TRACKS[track]}
        if mains:
            values |= {main: mains[k], "other": mains[1 - k]}
        elif spans:
            values[main] = draw.unlike(main, [span.values[main] for span in spans])
        length = dt.timedelta(days=rng.randint(20, 1500))
        last = k == count - 1
        ends = not last or rng.random() < 0.4
        spans.append(Span(values, cursor, cursor + length if ends else None))
        cursor += length + dt.timedelta(days=0 if rng.random() < 0.7 else rng.randint(10, 300))
    return spans


def views(log: list[Span], today: dt.date) -> list[View]:
    """Everything the log lets a person say today."""
    found: list[View] = []
    for k, span in enumerate(log):
        state = span.temporal(today)
        before = log[k - 1] if k else None
        if state is Temporal.ONGOING:
            found.append(View("current", span))
            found.append(View("correction", span))
            if before and before.end == span.start:
                found.append(View("change", span, before, span.start))
        elif state is Temporal.COMPLETED:
            found.append(View("past", span, day=span.end))
        elif (span.start - today).days < 330:
            found.append(View("future", span, day=span.start))
    return found


def sample_view(rng: random.Random, draw: Draw, track: str, pattern: str) -> View:
    """Sample logs until one shows the pattern today (a few tries on average)."""
    for _ in range(1000):
        fitting = [view for view in views(sample_log(rng, draw, track), TODAY) if view.pattern == pattern]
        fitting = [view for view in fitting if pattern != "past" or not LASTING & set(view.span.values.values())]
        if fitting:
            return rng.choice(fitting)
    raise AssertionError(f"no log of track {track} shows the pattern {pattern}")


TODAY = dt.date(2026, 6, 17)
"""The vantage point of every conversation; logs are sampled around it."""


def time_expression(rng: random.Random, day: dt.date) -> str:
    """A phrase for the day as people say it, such as `last week`, `in 2019`, `in two weeks`."""
    days = (TODAY - day).days
    month, numbers = MONTHS[day.month - 1], "one two three four five six seven eight nine ten eleven".split()
    if days < 0:
        weeks, months = -days // 7, -days // 30
        if weeks < 2:
            return rng.choice(["next week", "in a few days", f"on {day:%A}", "soon"])
        if months < 2:
            return rng.choice([f"in {numbers[weeks - 1]} weeks", "next month", f"in {month}"])
        return rng.choice([f"in {month}", f"in {numbers[min(months, 11) - 1]} months", f"next {_season(day)}"])
    if days < 14:
        return rng.choice(["last week", "a few days ago", f"on {day:%A}", "the other day"])
    if days < 60:
        return rng.choice([f"{numbers[days // 7 - 1]} weeks ago", "last month", "recently"])
    if days < 330:
        return rng.choice([f"in {month}", f"back in {month}", f"{numbers[days // 30 - 1]} months ago"])
    if days < 700:
        return rng.choice(["last year", f"in {month} {day.year}", f"in {day.year}", "about a year ago"])
    years = min(max(2, round(days / 365)), 11)
    return rng.choice([f"in {day.year}", f"back in {day.year}", f"{numbers[years - 1]} years ago"])


def _season(day: dt.date) -> str:
    return ("winter", "spring", "summer", "autumn")[day.month % 12 // 3]
