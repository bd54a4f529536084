"""The demo page as a browser shows it: `observer demo` in a process of its own, looked at with headless Chromium."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from observer.memory.store import Store
from observer.paths import PROJECT_ROOT
from tests.support.observing_server import ObservingServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
if MISSING or CHROMIUM is None:
    pytest.skip(f"needs {', '.join(MISSING) or 'Chromium'}", allow_module_level=True)

QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync".split()
)
CHAT = "USER: I live in Oslo\nASSISTANT: Nice!\nUSER: thanks\nUSER: I left Oslo, I live in Rome"
INSIDE = re.compile(r"http://127\.0\.0\.1:|data:|blob:")


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "memory.sqlite"


@pytest.fixture(scope="module")
def urls(memory: Path) -> Iterator[dict[str, str]]:
    """One page with two models and a memory for each visit, and one with a memory in a file."""
    with ObservingServer().running() as server:
        proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": server.host}
        environment = os.environ | {"OLLAMA_HOST": server.host} | proxy
        found: dict[str, str] = {}
        processes = []
        for name, options in {"two": ["--compare", "ollama:other"], "file": ["--memory", str(memory)]}.items():
            command = [sys.executable, "-m", "observer.cli", *"demo --model ollama:watcher --port 0".split(), *options]
            process = subprocess.Popen(command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.PIPE, text=True)
            processes.append(process)
            assert process.stdout
            (found[name],) = re.findall(r"http://127.0.0.1:\d+/", process.stdout.readline())
        yield found
        for process in processes:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A window of the width that the test asks for, which fails the test on any dialog, error or outside request."""
    page = browser.new_page(viewport={"width": getattr(request, "param", 1280), "height": 900})
    faults: list[str] = []
    page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda asked: None if INSIDE.match(asked.url) else faults.append(asked.url))
    yield page
    page.close()
    assert not faults


def observe(page: Page, url: str, text: str) -> None:
    """Type the text, and wait until all of it is observed."""
    if page.url != url:
        page.goto(url)
    page.fill("#conversation textarea", text)
    before = page.locator("#answers").inner_html()
    page.click("#observe")
    page.wait_for_function("before => document.querySelector('#answers').innerHTML !== before", arg=before)
    page.wait_for_selector(".obs-card, .obs-fault")
    page.wait_for_selector(".obs-busy", state="detached")
    page.wait_for_timeout(300)  # until gradio has closed its stream, a click would count as the same one


@pytest.mark.parametrize("page", [1280, 420], indirect=True)
def test_two_models_answer_side_by_side_in_any_window(page: Page, urls: dict[str, str]) -> None:
    observe(page, urls["two"], CHAT)
    cards = page.locator(".obs-card")
    assert cards.count() == 3
    assert cards.nth(0).locator(".obs-answer").count() == 2
    assert "same grade, 1 of 1 relationships in both" in cards.nth(0).inner_text()
    labels = [cards.nth(n).locator(".obs-label").first.inner_text() for n in range(3)]
    assert labels == ["IMPORTANT", "DISCARD", "IMPORTANT"]
    assert cards.nth(0).locator("mark bdi").first.inner_text() == "Oslo"
    assert cards.nth(0).locator("svg.obs-graph").first.get_attribute("aria-label") == "User lives in Oslo (ongoing)"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    left, right = (cards.nth(0).locator(".obs-answer").nth(n).bounding_box() for n in (0, 1))
    assert left and right
    is_wide = page.viewport_size is not None and page.viewport_size["width"] > 800
    assert (left["y"] == right["y"]) is is_wide


def test_lines_of_a_graph_differ_by_state(page: Page, urls: dict[str, str]) -> None:
    observe(page, urls["two"], "USER: I live in Oslo\nUSER: I left Rome")
    dashes = [
        page.locator(f".obs-card .obs-edge.obs-{state} path").first.evaluate(
            "path => getComputedStyle(path).strokeDasharray"
        )
        for state in ("ongoing", "completed")
    ]
    assert dashes[0] == "none" and dashes[1] != "none"


def test_the_memory_of_a_visit_grows_and_is_forgotten(page: Page, urls: dict[str, str]) -> None:
    observe(page, urls["two"], "I live in Oslo")
    assert "User lives in Oslo" in page.locator("#memory").inner_text()
    observe(page, urls["two"], "I live in Rome")
    text = page.locator("#memory").inner_text()
    assert text.index("Rome") < text.index("Over") < text.index("Oslo") and "superseded" in text
    page.click("#forget")
    page.wait_for_selector("#memory:has-text('Nothing is remembered yet.')")


def test_a_memory_in_a_file_is_there_at_the_next_visit(page: Page, urls: dict[str, str], memory: Path) -> None:
    observe(page, urls["file"], "I live in Oslo")
    page.reload()
    page.wait_for_selector("#memory:has-text('User lives in Oslo')")
    assert not page.locator("#forget").is_visible()
    with Store(memory, must_exist=True) as store:
        assert [fact.object for fact in store.known()] == ["Oslo"]


def test_hostile_text_stands_there_as_text(page: Page, urls: dict[str, str]) -> None:
    typed = (
        "<script>alert(1)</script> <img src=x onerror=alert(2)> {{constructor.constructor('alert(3)')()}} ${alert(4)} `"
    )
    observe(page, urls["two"], f"{typed} \u202eevil\u202c I live in Oslo")
    shown = page.locator(".obs-text").first.inner_text()
    assert shown.startswith(typed) and "U+202E" in shown and "\u202e" not in shown
    assert page.locator(".obs-card script, .obs-card img").count() == 0
    page.wait_for_timeout(200)  # an alert would come now


def test_what_cannot_be_read_is_told_in_its_place(page: Page, urls: dict[str, str]) -> None:
    observe(page, urls["two"], '[{"role": "<b>robot</b>", "content": "x"}]')
    assert "unknown value '<b>robot</b>'" in page.locator(".obs-fault").inner_text()


def test_an_example_fills_the_box(page: Page, urls: dict[str, str]) -> None:
    page.goto(urls["two"])
    page.get_by_role("button", name="A conversation").click()
    page.wait_for_function("document.querySelector('#conversation textarea').value.startsWith('USER: Hi!')")
