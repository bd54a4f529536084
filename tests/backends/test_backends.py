"""Backends are interchangeable: the same greedy answers from a GGUF, an Ollama server and transformers weights."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from observer.backends.base import Backend, ConcurrentBackend
from observer.backends.hf import HfBackend
from observer.backends.ollama import OllamaBackend, label_shares
from observer.backends.opening import best_gguf, open_backend
from observer.engine.engine import Engine
from observer.errors import ObserverError, RowsError
from observer.observation import Grade
from observer.ollama.chat import TokenChoice
from observer.ollama.client import NoServer, Patience
from observer.paths import NANO_BASE, PROJECT_ROOT
from observer.prompts import Example, Task, render_exchange, render_prompt
from observer.schema import Label
from tests.support.ollama_server import Fault, OllamaServer

BASE = PROJECT_ROOT / NANO_BASE
EXCHANGES = [
    render_exchange(*turn)
    for turn in [
        ("I work at Quillmere now", "Congratulations!"),
        ("thanks a lot", "You're welcome."),
        ("my sister Ana lives in Zandrovia", ""),
        ("I love oolong tea", "Noted."),
        ("what is 2 + 2?", "4"),
        ("I left Hobbenfax in 2019, I'm at Mirelund these days", "Congratulations!"),
    ]
]
TOO_LONG = render_exchange("word " * 9000, "")
QUICK = Patience(timeout_s=20, max_retries=2, backoff_s=0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, nano_gguf: Path) -> Iterator[OllamaServer]:
    with OllamaServer(tmp_path_factory.mktemp("blobs")).running() as running:
        running.serve("nano", nano_gguf)
        yield running


@pytest.fixture(scope="module")
def ollama(server: OllamaServer) -> Iterator[OllamaBackend]:
    with OllamaBackend("nano", server.url, patience=QUICK) as backend:
        yield backend


@pytest.fixture
def loose_server(tmp_path: Path, nano_gguf: Path) -> Iterator[OllamaServer]:
    """One to spoil."""
    with OllamaServer(tmp_path).running() as running:
        running.serve("nano", nano_gguf)
        yield running


def ask(server: OllamaServer, name: str = "nano", patience: Patience = QUICK) -> list[Grade]:
    with OllamaBackend(name, server.url, patience=patience) as backend:
        return backend.grade(EXCHANGES[:1])


def test_extractions_of_all_backends_are_equal(engine: Engine, ollama: OllamaBackend, hf: HfBackend) -> None:
    """The engine's own, without what it keeps names to: Ollama and transformers cannot."""
    expected = [completion.text for completion in engine.extract(EXCHANGES, constrained=False)]
    assert any("Quillmere" in text for text in expected)
    assert [completion.text for completion in ollama.extract(EXCHANGES)] == expected
    assert [completion.text for completion in ollama.extract(EXCHANGES, constrained=False)] == expected
    assert [completion.text for completion in hf.extract(EXCHANGES)] == expected


def test_labels_of_all_backends_are_equal(engine: Engine, ollama: OllamaBackend, hf: HfBackend) -> None:
    expected = engine.grade(EXCHANGES)
    assert [grade.label for grade in ollama.grade(EXCHANGES)] == [grade.label for grade in expected]
    for ours, theirs in zip(expected, hf.grade(EXCHANGES), strict=True):
        assert theirs.label == ours.label
        assert list(theirs.probabilities.values()) == pytest.approx(list(ours.probabilities.values()), abs=1e-3)


def test_an_ollama_models_probabilities_are_near_those_of_the_whole_labels(
    engine: Engine, ollama: OllamaBackend
) -> None:
    """Only the first token is told of each label."""
    for ours, theirs in zip(engine.grade(EXCHANGES), ollama.grade(EXCHANGES), strict=True):
        assert sum(theirs.probabilities.values()) == pytest.approx(1)
        assert list(theirs.probabilities.values()) == pytest.approx(list(ours.probabilities.values()), abs=0.05)


def test_log_probabilities_of_an_answer_are_the_same_everywhere(
    engine: Engine, ollama: OllamaBackend, hf: HfBackend
) -> None:
    backends: list[Backend] = [engine, ollama, hf]
    told = [backend.extract(EXCHANGES[:3], constrained=False, logprobs=True) for backend in backends]
    for ours, *others in zip(*told, strict=True):
        assert ours.logprobs is not None
        for other in others:
            assert other.logprobs == pytest.approx(ours.logprobs, abs=1e-2)
    assert all(completion.logprobs is None for completion in ollama.extract(EXCHANGES[:1]))


def test_a_server_that_tells_no_probabilities_gives_labels_without(loose_server: OllamaServer, engine: Engine) -> None:
    loose_server.has_logprobs = False
    with OllamaBackend("nano", loose_server.url, patience=QUICK) as backend:
        grades = backend.grade(EXCHANGES)
        (completion,) = backend.extract(EXCHANGES[:1], logprobs=True)
    assert [grade.probabilities for grade in grades] == [{}] * len(EXCHANGES)
    assert [grade.label for grade in grades] == [grade.label for grade in engine.grade(EXCHANGES)]
    assert completion.logprobs is None


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ([], {}),
        ([("Hello", -0.1, {})], {}),
        ([("ST", math.log(0.5), {"ST": math.log(0.5), "DIS": math.log(0.25), "the": math.log(0.2)})], (1, 2, 0)),
        ([("S", math.log(0.2), {"S": math.log(0.2), "ST": math.log(0.2), "I": math.log(0.1)})], (0, 4, 1)),
        ([('"', -0.1, {'"': -0.1}), ("IMP", math.log(0.3), {"DIS": math.log(0.6)})], (2, 0, 1)),
        ([("STORE", math.log(0.3), {})], (0, 1, 0)),
    ],
    ids=["nothing told", "no label", "a word cut in two", "two cuts of one label", "in quotes", "no alternatives"],
)
def test_shares_of_the_labels_in_the_likeliest_tokens(choices, expected) -> None:
    shares = label_shares([TokenChoice(*choice) for choice in choices])
    if expected:
        total = sum(expected)
        expected = dict(zip(Label, (part / total for part in expected), strict=True))
    assert shares == pytest.approx(expected)


def test_a_model_that_chats_instead_of_grading_is_kept_to_the_labels(tmp_path: Path, tiny_gguf: Path) -> None:
    """Random weights answer anything; under `format` a label comes out."""
    with OllamaServer(tmp_path).running() as server:
        server.serve("random", tiny_gguf)
        with OllamaBackend("random", server.url, patience=QUICK) as backend:
            grades = backend.grade(EXCHANGES)
        assert all(
            grade.label in set(Label) and sum(grade.probabilities.values()) == pytest.approx(1) for grade in grades
        )
        assert server.requests.count("POST /api/chat") == 2 * len(EXCHANGES)


def test_an_answer_that_never_ends_is_cut_and_told(tmp_path: Path, tiny_gguf: Path, tiny_model: Path) -> None:
    with OllamaServer(tmp_path).running() as server:
        server.serve("random", tiny_gguf)
        backends: list[Backend] = [
            OllamaBackend("random", server.url, patience=QUICK, max_new_tokens=9),
            HfBackend(tiny_model, max_new_tokens=9),
            Engine(tiny_gguf, max_new_tokens=9),
        ]
        for backend in backends:
            with backend:
                assert [completion.truncated for completion in backend.extract(EXCHANGES[:2])] == [True, True]


def test_a_long_row_cuts_no_answer_but_its_own(tiny_model: Path) -> None:
    with HfBackend(tiny_model, max_new_tokens=9) as backend:
        backend.n_ctx = len(backend.tokens(render_prompt(Task.EXTRACT, EXCHANGES[0] * 3))) + 2
        answers = backend.extract([EXCHANGES[0], EXCHANGES[0] * 3], logprobs=True)
    assert [len(answer.logprobs or ()) for answer in answers] == [answer.n_tokens for answer in answers] == [9, 2]


def test_answers_are_greedy_whatever_the_folder_recommends(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    advice = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1}
    (folder / "generation_config.json").write_text(json.dumps(advice))
    with HfBackend(tiny_model, max_new_tokens=9) as plain, HfBackend(folder, max_new_tokens=9) as advised:
        assert advised.extract(EXCHANGES[:2]) == plain.extract(EXCHANGES[:2])


def test_rows_too_long_are_named_by_every_backend(engine: Engine, ollama: OllamaBackend, hf: HfBackend) -> None:
    backends: list[Backend] = [engine, ollama, hf]
    for backend in backends:
        for method in (backend.grade, backend.extract):
            with pytest.raises(RowsError) as raised:
                method([EXCHANGES[0], TOO_LONG, EXCHANGES[1]])
            assert list(raised.value.faults) == [1]


def test_examples_are_shown_before_the_exchange(nano_gguf: Path, server: OllamaServer) -> None:
    """They change the answers' probabilities, and equally so in all backends."""
    examples = {Task.GRADE: [Example(EXCHANGES[1], "IMPORTANT"), Example(EXCHANGES[3], "DISCARD")]}
    with (
        Engine(nano_gguf, n_threads=1, examples=examples) as engine,
        HfBackend(BASE, n_threads=1, examples=examples) as hf,
        OllamaBackend("nano", server.url, patience=QUICK, examples=examples) as ollama,
    ):
        ours, theirs, servers = (backend.grade(EXCHANGES) for backend in (engine, hf, ollama))
    for one, other, third in zip(ours, theirs, servers, strict=True):
        assert list(other.probabilities.values()) == pytest.approx(list(one.probabilities.values()), abs=5e-3)
        assert third.label == one.label
    with Engine(nano_gguf, n_threads=1) as plain:
        assert [g.probabilities for g in plain.grade(EXCHANGES)] != [g.probabilities for g in ours]


def test_progress_reaches_the_end_once(ollama: OllamaBackend, hf: HfBackend) -> None:
    for backend in (ollama, hf):
        shown: list[tuple[int, int]] = []
        backend.extract(EXCHANGES, progress=lambda done, total, shown=shown: shown.append((done, total)))
        assert shown == sorted(set(shown)) and shown[-1] == (len(EXCHANGES), len(EXCHANGES))


def test_the_digest_is_that_of_the_very_model(ollama: OllamaBackend, server: OllamaServer) -> None:
    assert ollama.digest == server.digest_of(server.models["nano"])
    for name in ("NANO", "library/nano:latest"):
        with OllamaBackend(name, server.url) as backend:
            assert backend.digest == ollama.digest


@pytest.mark.parametrize(
    "fault",
    [
        Fault("/api/chat", is_cut=True),
        Fault("/api/chat", status=500, message="a hiccup"),
        Fault("/api/chat", status=429),
    ],
    ids=["cut", "500", "429"],
)
def test_a_passing_fault_is_asked_again(loose_server: OllamaServer, fault: Fault) -> None:
    loose_server.faults.append(fault)
    assert ask(loose_server)[0].label in set(Label)
    assert loose_server.requests == ["POST /api/chat"] * 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("/api/chat", is_cut=True), "failed 3 times, last: "),
        (Fault("/api/chat", status=503, message="out of memory"), "failed 3 times, last: 503, out of memory; see"),
        (Fault("/api/chat", status=400, message="bad option"), "400, bad option"),
    ],
    ids=["cut", "503", "400"],
)
def test_a_lasting_fault_is_one_line(loose_server: OllamaServer, fault: Fault, message: str) -> None:
    loose_server.faults.extend([fault] * 9)
    with pytest.raises(ObserverError, match=message) as raised:
        ask(loose_server)
    assert "\n" not in str(raised.value) and str(raised.value).startswith(loose_server.url)


def test_a_missing_model_is_one_line_with_the_command_that_makes_it(loose_server: OllamaServer) -> None:
    with pytest.raises(ObserverError, match=r"no model 'other'; make it with `ollama create other -f outputs/RUN/Mod"):
        ask(loose_server, "other")
    with (
        OllamaBackend("other", loose_server.url, patience=QUICK) as backend,
        pytest.raises(ObserverError, match="no model"),
    ):
        _ = backend.digest


def test_an_answer_that_is_no_label_is_one_rows_fault(loose_server: OllamaServer) -> None:
    loose_server.reply = '"STO'
    with (
        OllamaBackend("nano", loose_server.url, patience=QUICK) as backend,
        pytest.raises(RowsError) as raised,
    ):
        backend.grade(EXCHANGES[:2])
    assert sorted(raised.value.faults) == [0, 1] and "a label is expected" in raised.value.faults[0]
    kept = [body for body in loose_server.bodies if "format" in body]
    assert len(kept) == 2 and all(body["options"]["num_predict"] >= 32 for body in kept), "spelled letter by letter"


def test_an_answer_that_is_not_done_is_cut_off(loose_server: OllamaServer) -> None:
    loose_server.reply, loose_server.is_done = '{"entities":[', False
    with OllamaBackend("nano", loose_server.url, patience=QUICK) as backend:
        assert [completion.truncated for completion in backend.extract(EXCHANGES[:1])] == [True]


def test_a_silent_server_is_given_up_in_time(loose_server: OllamaServer) -> None:
    loose_server.faults.append(Fault("/api/chat", delay_s=3.0))
    with pytest.raises(ObserverError, match=r"no answer within 0\.3 s; see the server's log, or raise timeout_s"):
        ask(loose_server, patience=Patience(0.3, 2, 0.01))
    assert not loose_server.bodies, "given up before the server came to it"
    assert loose_server.requests == ["POST /api/chat"]


def test_no_server_is_one_line_that_says_how_to_start_one() -> None:
    with (
        OllamaBackend("nano", "127.0.0.1:9", patience=Patience(5, 1, 0.01)) as backend,
        pytest.raises(
            NoServer, match=r"http://127\.0\.0\.1:9: no Ollama server answers \(.*\); start it with `ollama serve`"
        ),
    ):
        backend.extract(EXCHANGES)


def test_an_address_that_is_none_is_told_when_it_is_opened() -> None:
    with pytest.raises(ObserverError, match="OLLAMA_HOST is to be HOST:PORT"):
        OllamaBackend("nano", "127.0.0.1:1:2")


def test_closing_ends_the_thread_and_may_be_done_twice(server: OllamaServer) -> None:
    before = threading.active_count()
    backend = OllamaBackend("nano", server.url)
    assert threading.active_count() > before
    backend.close()
    backend.close()
    assert threading.active_count() == before


def test_closing_ends_what_is_under_way(loose_server: OllamaServer) -> None:
    loose_server.faults.append(Fault("/api/chat", delay_s=1.0))
    backend = OllamaBackend("nano", loose_server.url, patience=Patience(20, 3, 0.01))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(backend.grade, EXCHANGES)
        while not loose_server.requests:
            time.sleep(0.01)
        backend.close()
        with pytest.raises(ObserverError, match="closed before the answer came"):
            waiting.result(timeout=600)


def test_a_run_folder_means_its_q8_0_or_else_its_largest_file(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "gguf"
    folder.mkdir(parents=True)
    sizes = {"x-f16": 9, "x-q4_k_m": 3, "x-adapter": 20}
    for name, size in sizes.items():
        (folder / f"{name}.gguf").write_bytes(b"x" * size)
    assert best_gguf(tmp_path / "run").name == "x-f16.gguf"
    (folder / "x-q8_0.gguf").write_bytes(b"x" * 5)
    assert best_gguf(tmp_path / "run").name == "x-q8_0.gguf"


def test_every_spelling_opens_its_backend(
    tmp_path: Path, tiny_gguf: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model)
    run = tmp_path / "run"
    (run / "gguf").mkdir(parents=True)
    (run / "gguf" / "tiny-f16.gguf").symlink_to(tiny_gguf)
    (run / "merged").symlink_to(tiny_model)
    for spec, kind, name in [
        (tiny_gguf, Engine, tiny_gguf.stem),
        (str(run), Engine, "tiny-f16"),
        ("hf:.", HfBackend, tiny_model.name),
        (run / "merged", HfBackend, "run-merged"),
        ("ollama:qwen3:0.6b", OllamaBackend, "qwen3:0.6b"),
    ]:
        with open_backend(spec, n_threads=1) as backend:
            assert isinstance(backend, kind) and backend.name == name
            assert isinstance(backend, ConcurrentBackend) is (kind is OllamaBackend)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "nowhere: no such model; name FILE.gguf, a run's folder, hf:FOLDER or ollama:NAME"),
        ("nowhere.gguf", "nowhere.gguf: no such file"),
        ("hf:nowhere", "nowhere: no model (it has no config.json)"),
        (str(PROJECT_ROOT / "docs"), "docs: no GGUF in gguf/; make some with: observer export"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(spec: str, message: str) -> None:
    with pytest.raises(ObserverError) as raised:
        open_backend(spec)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("number", [0, -1])
def test_an_answer_has_a_token_at_least(number: int) -> None:
    with pytest.raises(ObserverError, match=f"max_new_tokens {number}: at least 1 is expected"):
        open_backend("nowhere.gguf", max_new_tokens=number)
    with pytest.raises(ObserverError, match=f"n_ctx {number}: at least 1 is expected"):
        open_backend("nowhere.gguf", n_ctx=number)


def test_a_folder_that_transformers_cannot_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ObserverError, match="transformers cannot read it"):
        HfBackend(tmp_path)
