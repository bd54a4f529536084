"""The demo page: what is read from its box, what it draws, and whom it lets in. `test_demo_browser.py` looks at it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer.cli import main
from observer.client import Observer
from observer.demo.app import observe_text
from observer.demo.cards import Answer, Card, agreement, render_cards, render_memory
from observer.demo.graph import Graph, lay_out
from observer.demo.highlight import Piece, pieces_of
from observer.demo.reading import CONTEXT_TURNS, MAX_EXCHANGES, read_conversation
from observer.demo.remembering import Memory, take_in
from observer.demo.server import Guard, listen, url_of
from observer.errors import ObserverError
from observer.memory.facts import OperationKind
from observer.memory.store import Store
from observer.observation import Exchange, Observation, ObservedEntity, ObservedRelationship, Redaction, Span
from observer.schema import EntityType, Predicate, Temporal
from observer.turns.before_model import prepare
from observer.turns.grounding import messages_of
from tests.conftest import hostile_texts
from tests.memory.test_diff import said
from tests.support.observing_server import ObservingServer

NOW = datetime(2026, 11, 22, 18, tzinfo=UTC)
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{constructor.constructor('alert(1)')()}} {{{x}}} {{#each y}}",
    "${alert(1)} `${alert(2)}` \\`",
    "</textarea></svg><svg onload=alert(1)>",
    "&lt;b&gt; &#123;&#123;x&#125;&#125; &amp;",
    "\u202eevil\u202c \u2066x\u2069 \u200f",
    *hostile_texts(),
]


# What is read from the box


@pytest.mark.parametrize(
    "text",
    [
        "USER: I live in Oslo\nASSISTANT: Nice!\nUSER: and I love it\nASSISTANT: Good.",
        "\n\nuser: I live in Oslo\n\nassistant: Nice!\n\nuser: and I love it\n\nassistant: Good.\n",
        "USER: I live in Oslo\r\nASSISTANT: Nice!\r\nUSER: and I love it\r\nASSISTANT: Good.\r\n",
        '[{"role": "system", "content": "be kind"}, {"role": "user", "content": "I live in Oslo"},\n'
        ' {"role": "assistant", "content": "Nice!"}, {"role": "user", "content": "and I love it"},\n'
        ' {"role": "assistant", "content": "Good."}]',
    ],
    ids=["text", "with blank lines", "from Windows", "messages"],
)
def test_every_form_of_a_conversation_is_the_same_exchanges(text: str) -> None:
    first, second = read_conversation(text, NOW)
    assert (first.exchange.user_message, first.exchange.assistant_message) == ("I live in Oslo", "Nice!")
    assert (second.exchange.user_message, second.exchange.assistant_message) == ("and I love it", "Good.")
    assert [turn.content for turn in second.exchange.context] == ["I live in Oslo", "Nice!"]
    assert (first.opens, second.opens) == (True, False)
    assert first.exchange.at == NOW and second.exchange.at is not None and second.exchange.at > NOW
    assert first.exchange.id != second.exchange.id


@pytest.mark.parametrize(
    "text",
    [
        "I live in Oslo",
        "[laughs] no",
        "first line\n\nUSER: no marker at the start",
        *(text for text in HOSTILE if not text.startswith('{"')),
    ],
)
def test_text_that_opens_with_no_marker_is_one_message_as_it_stands(text: str) -> None:
    (read,) = read_conversation(text, NOW)
    assert read.exchange.user_message == text.encode("utf-8", "replace").decode().strip()


def test_raw_rows_and_lines_of_json_keep_their_context_and_time() -> None:
    context = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    row = {"user_message": "I live in Oslo", "context": context, "at": "2025-01-01T00:00:00Z"}
    chat = {"messages": [{"role": "user", "content": "bye"}]}
    first, second = read_conversation(json.dumps(row) + "\n" + json.dumps(chat), NOW)
    assert first.opens and [turn.content for turn in first.exchange.context] == ["hi", "hello"]
    assert first.exchange.at == datetime(2025, 1, 1, tzinfo=UTC)
    assert second.opens and second.exchange.user_message == "bye"


def test_the_model_is_shown_the_last_turns_before_an_exchange() -> None:
    text = "\n".join(f"USER: message {number}\nASSISTANT: reply {number}" for number in range(9))
    last = read_conversation(text, NOW)[-1].exchange
    assert [turn.content for turn in last.context] == ["message 7", "reply 7"]
    assert len(last.context) == CONTEXT_TURNS


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (" \n ", "nothing to observe"),
        ("ASSISTANT: hello", "no user turn"),
        ("USER:\nASSISTANT: hello", "empty user turn"),
        ('{"messages": 3}', "a list of objects is expected"),
        ('[{"role": "robot", "content": "x"}]', "unknown value 'robot'"),
        ('{"user_message": "x"', "not JSON"),
        ('{"user_message": "x", "at": "soon"}', "at: "),
        ("USER: " + "x" * 20_001, "20,001 characters"),
        ("x" * 200_001, "200,001 characters"),
        ("USER: x\n" * (MAX_EXCHANGES + 1), f"{MAX_EXCHANGES + 1} exchanges"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, fault: str) -> None:
    with pytest.raises(ObserverError, match=fault):
        read_conversation(text, NOW)


# Names in the text


def entity(name: str, *spans: tuple[str, int, int], type: str = "Person") -> ObservedEntity:
    places = [Span(message=message, start=start, end=end) for message, start, end in spans]
    return ObservedEntity(name=name, type=EntityType(type), spans=places, is_grounded=bool(places))


def pieces(text: str, *entities: ObservedEntity, redactions: Sequence[Redaction] = ()) -> list[Piece]:
    (message, _) = messages_of(Exchange(user_message=text))
    return pieces_of(message, Observation(entities=list(entities), redactions=list(redactions), model="m"))


def test_names_are_marked_where_they_stand() -> None:
    assert pieces("my sister Ana, Ana!", entity("Ana", ("user", 10, 13), ("user", 15, 18), ("assistant", 0, 3))) == [
        Piece("my sister "),
        Piece("Ana", "name", "Person"),
        Piece(", "),
        Piece("Ana", "name", "Person"),
        Piece("!"),
    ]


def test_of_names_within_one_another_the_longer_is_marked() -> None:
    names = entity("Ana", ("user", 0, 3)), entity("Ana Lima", ("user", 0, 8)), entity("Lima", ("user", 4, 8))
    assert pieces("Ana Lima", *names) == [Piece("Ana Lima", "name", "Person")]


def test_a_secret_is_not_shown_and_no_name_in_it_is() -> None:
    secret = Redaction(kind="api_key", span=Span(message="user", start=7, end=13))
    assert pieces("key is Ana123 ok", entity("Ana", ("user", 7, 10)), redactions=[secret]) == [
        Piece("key is "),
        Piece("", "secret", "api key"),
        Piece(" ok"),
    ]


def test_characters_that_turn_text_round_are_written_out() -> None:
    assert pieces("a\r\nb \u202eevil\r\n") == [Piece("a\nb "), Piece("U+202E", "control"), Piece("evil\n")]


# Graphs


def lines(*triples: str) -> list[ObservedRelationship]:
    return list(said(*triples).relationships)


def boxes(graph: Graph) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of every name and of every label."""
    names = [(node.x, node.y, node.x + node.width, node.y + node.height) for node in graph.nodes]
    labels = [(edge.x, edge.y - 17, edge.x + 7.4 * len(edge.label), edge.y + 17) for edge in graph.edges]
    return names + labels


def test_a_graph_begins_at_the_user_and_goes_from_left_to_right() -> None:
    graph = lay_out(lines("Ana LIVES_IN Porto ongoing", "User SIBLING_OF Ana ongoing"), {"Ana": "Person"})
    assert [(node.lines, node.type) for node in graph.nodes] == [(["User"], ""), (["Ana"], "Person"), (["Porto"], "")]
    assert [node.x for node in graph.nodes] == sorted(node.x for node in graph.nodes)
    assert graph.sentence == "Ana lives in Porto (ongoing); User sibling of Ana (ongoing)"


def test_an_arrow_points_from_subject_to_object_on_either_side() -> None:
    graph = lay_out(lines("Ana SIBLING_OF User ongoing", "User WORKS_AT Bosch completed"), {})
    assert {(edge.label, edge.is_forward, edge.temporal) for edge in graph.edges} == {
        ("sibling of", False, "ongoing"),
        ("works at", True, "completed"),
    }


def test_two_relationships_of_one_pair_are_two_lines_to_one_name() -> None:
    graph = lay_out(lines("User WORKS_AT Bosch ongoing", "User LIKES Bosch completed"), {})
    assert [node.lines for node in graph.nodes] == [["User"], ["Bosch"]]
    assert len({edge.y for edge in graph.edges}) == 2


def test_a_name_met_again_is_drawn_again() -> None:
    ring = lines("User SIBLING_OF Ana ongoing", "Ana FRIEND_OF Ben ongoing", "Ben FRIEND_OF User ongoing")
    graph = lay_out([*ring, *lines("Ana LIKES Ana ongoing")], {})
    drawn = [(node.lines[0], node.is_again) for node in graph.nodes]
    assert sorted(drawn) == [("Ana", False), ("Ana", True), ("Ben", False), ("Ben", True), ("User", False)]


def test_long_names_are_broken_and_then_cut() -> None:
    name = f"Northern Lights Photography {'x' * 99}"
    line = lines("User LIKES x ongoing")[0].model_copy(update={"object": name})
    assert lay_out([line], {}).nodes[-1].lines == ["Northern Lights", "Photography", "x" * 17 + "…"]


NAMES = st.sampled_from("User Ana Ben Cleo Dan Eve Fay".split())
STATES = st.sampled_from(list(Temporal))
PREDICATES = st.sampled_from(list(Predicate))
RELATIONSHIPS = st.builds(
    ObservedRelationship, subject=NAMES, predicate=PREDICATES, object=NAMES, temporal=STATES, when=st.just(None)
)


@given(st.lists(RELATIONSHIPS, max_size=14))
def test_in_any_graph_every_relationship_is_drawn_once_and_nothing_covers_anything(
    relationships: list[ObservedRelationship],
) -> None:
    graph = lay_out(relationships, {})
    drawn = sorted((edge.label, edge.temporal) for edge in graph.edges)
    assert drawn == sorted((str(r.predicate).replace("_", " ").lower(), str(r.temporal)) for r in relationships)
    names = [node.lines[0] for node in graph.nodes if not node.is_again]
    assert sorted(names) == sorted({name for r in relationships for name in (r.subject, r.object)})
    for (left, top, right, bottom), (x, y, far, low) in combinations(boxes(graph), 2):
        assert right <= x or far <= left or bottom <= y or low <= top
    assert all(min(x, y) >= 0 and far <= graph.width and low <= graph.height for x, y, far, low in boxes(graph))


# What is shown


class _Seen(HTMLParser):
    """Tags, attributes and text of a piece of HTML, as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_card(text: str) -> Card:
    """The text as message, as name, as attribute, as `when` and as what went wrong."""
    name = text.strip() or "x"
    relationship = ObservedRelationship(
        subject="User", predicate=Predicate("LIKES"), object=name, temporal=Temporal.FUTURE, when=text
    )
    thing = ObservedEntity(name=name, type=EntityType.CONCEPT, attributes={"detail": text}, is_grounded=False)
    observation = Observation(entities=[thing], relationships=[relationship], fault=text, model=text)
    return Card(Exchange(user_message=text), True, [Answer(observation, 12.0)] * 2)


PLAIN_TAGS = _Seen(render_cards([hostile_card("x")], 2, "x")).tags
PLAIN_ATTRIBUTES = _Seen(render_cards([hostile_card("x")], 2, "x")).attributes


@given(st.sampled_from(HOSTILE) | st.text(max_size=40))
def test_whatever_is_typed_is_shown_as_text(text: str) -> None:
    html = render_cards([hostile_card(text)], 2, text)
    seen = _Seen(html)
    assert seen.tags <= PLAIN_TAGS and seen.attributes <= PLAIN_ATTRIBUTES
    assert not set(html) & set("{}$`"), "gradio reads HTML as a template again"
    assert not set(html) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\x00\x1b")


def test_hostile_text_stands_there_word_by_word() -> None:
    assert HOSTILE[0] in _Seen(render_cards([hostile_card(HOSTILE[0])], 1)).text


def test_a_page_in_the_middle_of_its_work_says_how_far_it_is() -> None:
    assert "Observing 2 of 3 …" in _Seen(render_cards([hostile_card("x")], 3)).text
    assert "Observing" not in _Seen(render_cards([hostile_card("x")], 1)).text


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (said(), said(), "same grade"),
        (said("User LIKES tea ongoing"), said("user LIKES Tea ongoing"), "same grade, 1 of 1 relationships in both"),
        (said("User LIKES tea ongoing"), said("User LIKES tea completed"), "same grade, 0 of 2 relationships in both"),
        (said("Ana SIBLING_OF Ben ongoing"), said("Ben SIBLING_OF Ana ongoing"),
         "same grade, 1 of 1 relationships in both"),
    ],
)  # fmt: skip
def test_agreement_counts_the_relationships_of_both(one: Observation, other: Observation, words: str) -> None:
    assert agreement(one, other) == words


# The memory


def with_id(observation: Observation, id: str) -> Observation:
    return observation.model_copy(update={"id": id})


@pytest.fixture(params=["visit", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store | None]:
    if request.param == "visit":
        yield None
        return
    with Store(tmp_path / "memory.sqlite") as store:
        yield store


def test_the_memory_grows_tells_what_changed_and_counts_each_exchange_once(store: Store | None) -> None:
    first = take_in(Memory(), with_id(said("User LIVES_IN Oslo ongoing"), "1"), store)
    assert [fact.object for fact in first.facts] == ["Oslo"]
    moved = take_in(first.without_changes(), with_id(said("User LIVES_IN Rome ongoing", day=1), "2"), store)
    changes = {fact.object: moved.changes[fact.id] for fact in moved.facts}
    assert changes == {"Oslo": OperationKind.INVALIDATE, "Rome": OperationKind.ADD}
    again = take_in(moved.without_changes(), with_id(said("User LIVES_IN Oslo ongoing"), "1"), store)
    assert list(again.facts) == list(moved.facts) and not again.changes
    text = _Seen(render_memory(again, "here")).text
    assert text.index("Now") < text.index("Rome") < text.index("Over") < text.index("Oslo")


def test_an_exchange_that_is_observed_again_later_changes_nothing(store: Store | None) -> None:
    """Unless it says when it was said: in Oslo, in Rome, and in Oslo again."""
    homes = [("I live in Oslo", "Oslo"), ("I live in Rome", "Rome"), ("I live in Oslo", "Oslo")]
    rows = [json.dumps({"user_message": text, "at": f"203{n}-01-01"}) for n, (text, _) in enumerate(homes)]
    for texts, home in ([text for text, _ in homes], "Rome"), (rows, "Oslo"):
        memory = Memory()
        for number, text in enumerate(texts):
            (read,) = read_conversation(text, NOW + timedelta(minutes=number))
            seen = said(f"User LIVES_IN {homes[number][1]} ongoing")
            ready = prepare(read.exchange)
            update = {"at": ready.exchange.at, "id": ready.exchange.id, "text_hash": ready.text_hash}
            memory = take_in(memory, seen.model_copy(update=update), store)
        assert [fact.object for fact in memory.facts if fact.is_current] == [home]


def test_a_conversation_is_shown_exchange_by_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "USER: I live in Oslo\nASSISTANT: ok\nUSER: thanks\nUSER: I left Oslo last week"
    with ObservingServer().running() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        with Observer("ollama:watcher") as observer:
            shown = list(observe_text([observer, observer], None, text, Memory()))
    assert [html.count("<article") for html, _, _ in shown] == [0, 1, 2, 3]
    cards = _Seen(shown[-1][0]).text
    assert "same grade, 1 of 1 relationships in both" in cards and "lives in" in cards
    (fact,) = shown[-1][2].facts
    assert (fact.object, fact.state) == ("Oslo", "completed")


def test_a_server_that_ends_is_told_beside_what_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with ObservingServer().running() as server:
        server.fails_after = 2
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        with Observer("ollama:watcher") as observer:
            *_, (html, _, memory) = observe_text(
                [observer], None, "USER: I live in Oslo\nUSER: I live in Rome", Memory()
            )
    assert html.count("<article") == 1 and "the server is at its end" in _Seen(html).text
    assert [fact.object for fact in memory.facts] == ["Oslo"]


def test_a_secret_is_nowhere_on_the_page() -> None:
    text = "My wifi password is Hunter2!cat99, ok?"
    ready = prepare(Exchange(user_message=text))
    observation = Observation(redactions=ready.redactions, model="m")
    html = render_cards([Card(ready.exchange, True, [Answer(observation, 1.0)])], 1)
    assert "Hunter2" not in html and "hidden: password" in html


# Who is let in


def answer_to(guard: Guard, **headers: str) -> int:
    """The status of an answer to a request with these headers."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": fields}
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"]


async def _page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the page"})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "127.0.0.2"}, 200),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, 200),
        ({"host": "127.0.0.1:7860", "origin": "https://evil.example"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:9999"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "null"}, 403),
        ({"host": "evil.example:7860"}, 403),
        ({"host": "evil.example:7860", "origin": "http://evil.example:7860"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        *(({"host": host}, 403) for host in ("0.0.0.0", "[::]", "192.168.1.4", "localhost.evil.example")),
        ({"host": "[::1"}, 403),
        ({}, 403),
    ],
)
def test_other_sites_and_other_names_are_refused(headers: dict[str, str], status: int) -> None:
    assert answer_to(Guard(_page, is_local=True), **headers) == status


def test_a_page_for_the_network_has_any_name_and_still_one_origin() -> None:
    guard = Guard(_page, is_local=False)
    assert answer_to(guard, host="demo.lan:7860", origin="http://demo.lan:7860") == 200
    assert answer_to(guard, host="demo.lan:7860", origin="http://evil.example") == 403


def test_a_port_that_is_taken_is_told_with_what_to_do() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(ObserverError, match="give another --port"):
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("no such host", 0), ("127.0.0.1", 99_999)])
def test_an_address_that_is_none_is_told(host: str, port: int) -> None:
    with pytest.raises(ObserverError, match="--host"):
        listen(host, port)


def test_urls_of_both_kinds_of_address() -> None:
    assert url_of("127.0.0.1", 7860) == "http://127.0.0.1:7860/"
    assert url_of("::1", 7860) == "http://[::1]:7860/"


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio")
def test_a_taken_port_is_told_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["demo", "--model", "no-such.gguf", "--port", str(taken.getsockname()[1])]) == 1
    assert "give another --port" in capsys.readouterr().err
