"""The page of the benchmark: it stands alone, shows hostile text as text, and can be read without eyes or colour."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval.quantizations.page import to_html
from eval.quantizations.plots import SizePoint, pareto_front, size_figure, spread_labels, to_svg, write_overview
from eval.quantizations.report import Benchmark

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags in order, the texts of some, and every tag that was closed out of order."""

    def __init__(self, benchmark: Benchmark) -> None:
        super().__init__()
        self.html = to_html(benchmark)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.misplaced: list[str] = []
        self.words: list[str] = []
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.misplaced.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(benchmark: Benchmark) -> Page:
    return Page(benchmark)


def test_the_page_says_first_which_file_to_ship_and_how_sure_that_is(benchmark: Benchmark, page: Page) -> None:
    text = " ".join(" ".join(page.words).split())
    lead = text.index("Ship q4_k_m-imatrix")
    assert lead < text.index("How sure:") < text.index("All files")
    assert "stand-in" in text and "2.5 %" in text
    assert all(line in text for line in benchmark.recommendation.reasons + benchmark.recommendation.smaller)


def test_hostile_text_is_shown_and_never_becomes_markup(page: Page) -> None:
    assert not {"script", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in "".join(page.words) and "{{ 7*7 }}" in "".join(page.words)
    assert page.misplaced == [] and page.open == []


def test_the_page_needs_nothing_from_elsewhere(page: Page) -> None:
    links = [a.get(name) for _, a in page.tags for name in ("src", "href", "action") if a.get(name)]
    assert [link for link in links if link and not link.startswith("#")] == []
    assert "url(http" not in page.html and "@import" not in page.html
    policies = [a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_tables_have_headers_and_pictures_have_words(page: Page) -> None:
    text = [tag for tag, _ in page.tags]
    assert text.count("table") >= 5 and text.count("thead") == text.count("table")
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.named("th"))
    pictures = page.named("svg")
    assert len(pictures) == 4 and all(p["role"] == "img" and p["aria-label"] for p in pictures)
    assert text.count("title") == 5 and text.count("desc") == 4
    labelled = {a.get("aria-labelledby") for _, a in page.tags} - {None}
    counts = Counter(a["id"] for _, a in page.tags if "id" in a)
    assert labelled <= counts.keys() and all(count == 1 for name, count in counts.items() if name in labelled)


def test_the_page_serves_light_and_dark_wide_and_narrow(page: Page) -> None:
    html = page.html
    assert "prefers-color-scheme: dark" in html and any(a.get("name") == "viewport" for a in page.named("meta"))
    defined = set(re.findall(r"--([\w-]+):", html))
    assert set(re.findall(r"var\(--([\w-]+)\)", html)) <= defined


def test_a_benchmark_in_which_nothing_changed_has_a_page_too(few_rows: Benchmark) -> None:
    page = Page(few_rows)
    text = " ".join(page.words)
    assert page.misplaced == [] and page.open == []
    assert "too few" in text and "Where answers changed" not in text


def point(size_bytes: int, value: float, name: str = "q8_0") -> SizePoint:
    return SizePoint(name, size_bytes, value, value, value, "worse")


def test_the_front_holds_what_no_other_file_beats() -> None:
    points = [point(100, 0.9), point(50, 0.9), point(40, 0.7), point(45, 0.6), point(50, 0.8)]
    assert [(p.size_bytes, p.value) for p in pareto_front(points)] == [(40, 0.7), (50, 0.9)]
    assert [(p.size_bytes, p.value) for p in pareto_front(points, lower_is_better=True)] == [(40, 0.7), (45, 0.6)]


def test_labels_keep_their_distance_and_move_as_little_as_they_can() -> None:
    assert spread_labels([0.0, 0.5, 1.0], 0.2) == [0.0, 0.5, 1.0]
    assert spread_labels([0.4, 0.4], 0.2) == pytest.approx([0.3, 0.5])
    assert spread_labels([], 0.2) == []


def test_files_are_labelled_by_what_tells_them_apart() -> None:
    files = [point(10**6, 0.5, "smollm2-observer-q4_k_m"), point(2 * 10**6, 0.6, "smollm2-observer-q8_0")]
    (axes,) = size_figure(files, "accuracy").axes
    assert [text.get_text() for text in axes.texts] == ["q4_k_m", "q8_0"]


def test_a_picture_takes_the_colours_of_the_page_and_escapes_names() -> None:
    figure = size_figure([point(10**6, 0.5, "<b>$x$"), point(2 * 10**6, 0.6)], "accuracy")
    svg = to_svg(figure, "a <title>", "b & c")
    assert "var(--ink)" in svg and not re.search(r"#1b2027|#1f5fa8|DejaVu", svg)
    assert "&lt;b&gt;$x$" in svg and "a &lt;title&gt;" in svg and "b &amp; c" in svg


def test_a_picture_of_one_measure_is_drawn_too(tmp_path: Path) -> None:
    write_overview({"accuracy": [point(10**6, 0.5)]}, tmp_path / "one.png", "one")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
