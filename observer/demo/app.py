"""The page: a text box, the answers beside it, the memory below. It looks the same with one model and with two."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from observer.client import Observer
from observer.demo.cards import Answer, Card, render_cards, render_heading, render_legend, render_memory
from observer.demo.reading import MAX_TEXT_CHARACTERS, Read, read_conversation
from observer.demo.remembering import Memory, recall, take_in
from observer.errors import ObserverError
from observer.memory.store import Store
from observer.schema import Temporal
from observer.turns.time_expressions import validity

if TYPE_CHECKING:
    import gradio as gr

Shown = tuple[str, str, Memory]
"""Cards and memory as HTML, and the memory itself."""

_OWN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Of every event: it is the page's own, and the cards themselves say how far they are."""
_AT_ONCE: dict[str, Any] = _OWN | {"queue": False}
"""Of events that take no time. Gradio closes its stream when the queue is empty, and loses what joins just then."""

EXAMPLES = {
    "A change": "I left Siemens in March, I'm at Bosch now.",
    "A plan": "USER: I'm visiting my brother Tom in Lisbon next month.\nASSISTANT: Lovely! Say hello to Tom.",
    "Small talk": "thanks, that helped!",
    "A secret": "My wifi password is Hunter2!cat99, and my sister Ana lives in Porto.",
    "A conversation": """\
USER: Hi! I live in Madrid and work at Airbus.
ASSISTANT: Nice to meet you! What do you do there?
USER: I'm an engineer. My dog Rex keeps me busy after work.
ASSISTANT: Rex sounds like fun.
USER: ok, thanks
ASSISTANT: Any time!
USER: By the way, I moved to Lyon last week.
ASSISTANT: How is Lyon so far?""",
}


def observe_text(observers: Sequence[Observer], store: Store | None, text: str, memory: Memory) -> Iterator[Shown]:
    """What the page shows after each exchange; the first model's answers are remembered."""
    memory = memory.without_changes()
    cards: list[Card] = []
    n_exchanges = 0
    try:
        conversation = read_conversation(text, datetime.now().astimezone())
        n_exchanges = len(conversation)
        yield _shown(cards, n_exchanges, memory, store)
        for read in conversation:
            card = _observe(observers, read)
            cards.append(card)
            memory = take_in(memory, card.answers[0].observation, store)
            yield _shown(cards, n_exchanges, memory, store)
    except ObserverError as error:
        yield _shown(cards, n_exchanges, memory, store, str(error))


def warm_up(observers: Sequence[Observer]) -> None:
    """Ask each model once, so that the first answer on the page waits for nothing to load.

    Raises ObserverError for a model that does not answer.
    """
    validity("si ago", Temporal.COMPLETED, datetime.now().astimezone())  # of no language: the words of all are loaded
    for observer in observers:
        observer.grade("hello")
        observer.extract("hello")


def _observe(observers: Sequence[Observer], read: Read) -> Card:
    answers = []
    for observer in observers:
        start = time.perf_counter()
        (observation,) = observer.observe_many([read.exchange])
        answers.append(Answer(observation, 1000 * (time.perf_counter() - start)))
    return Card(read.exchange, read.opens, answers)


def _shown(cards: Sequence[Card], n_exchanges: int, memory: Memory, store: Store | None, fault: str = "") -> Shown:
    return render_cards(cards, n_exchanges, fault), show_memory(memory, store), memory


def show_memory(memory: Memory, store: Store | None) -> str:
    place = f"Kept in {store.path}." if store else "Kept for this visit only; reloading or closing the page forgets it."
    return render_memory(memory, place)


def build_page(observers: Sequence[Observer], store: Store | None = None) -> gr.Blocks:
    """The page for one model, or for two side by side. Nothing of it is told to anyone: no telemetry, no API page."""
    import gradio as gr

    def opened() -> tuple[str, Memory]:
        memory = recall(store)
        return show_memory(memory, store), memory

    def observed(text: str, memory: Memory) -> Iterator[Shown]:
        yield from observe_text(observers, store, text, memory)

    names = [observer.name for observer in observers]
    with gr.Blocks(title="observer", analytics_enabled=False, fill_width=True) as page:
        memory = gr.State(Memory())
        gr.HTML(render_heading(names), js_on_load=None, elem_classes="obs-heading-block")
        with gr.Row(elem_classes=["obs-page", *(["obs-two"] if len(observers) > 1 else [])]):
            with gr.Column(min_width=0, elem_classes="obs-input"):
                text, start, stop = _input(gr)
            with gr.Column(min_width=0, elem_classes="obs-answers"):
                gr.HTML(render_legend(), js_on_load=None)
                cards = gr.HTML(render_cards([], 0), js_on_load=None, elem_id="answers")
            with gr.Column(min_width=0, elem_classes="obs-remembered"):
                facts = gr.HTML("", js_on_load=None, elem_id="memory")
                forget = gr.Button("Forget", size="sm", visible=store is None, elem_id="forget")
        page.load(opened, None, [facts, memory], **_AT_ONCE)
        going = gr.on([start.click, text.submit], observed, [text, memory], [cards, facts, memory], **_OWN)
        stop.click(None, cancels=[going])
        forget.click(opened, None, [facts, memory], **_AT_ONCE)
    return page


def _input(gr: Any) -> tuple[gr.Textbox, gr.Button, gr.Button]:
    """The text box with its buttons, and examples that fill it."""
    text = gr.Textbox(
        label="Conversation",
        info="A message, lines of USER: and ASSISTANT:, or OpenAI messages as JSON. Shift+Enter observes.",
        placeholder="I left Siemens in March, I'm at Bosch now.",
        lines=7,
        max_lines=20,
        max_length=MAX_TEXT_CHARACTERS,
        elem_id="conversation",
    )
    with gr.Row():
        start = gr.Button("Observe", variant="primary", scale=3, elem_id="observe")
        stop = gr.Button("Stop", scale=1, min_width=80)
    with gr.Row(elem_classes="obs-examples"):
        for name, example in EXAMPLES.items():
            button = gr.Button(name, size="sm", min_width=90)
            button.click(lambda example=example: example, None, text, **_AT_ONCE)
    return text, start, stop
