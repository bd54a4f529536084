"""`observer package`: models in Ollama that are what was trained, over a network that breaks."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer.backends.ollama import OllamaBackend
from observer.cli import main
from observer.config import Config
from observer.errors import ObserverError
from observer.export.gguf.write import write_gguf
from observer.export.package import Checked, Difference, ask, check_name, rendered_prompt, variant_name
from observer.files import write_jsonl
from observer.ollama.client import NoServer, OllamaClient, Patience, error_words, server_version
from observer.ollama.modelfile import VARIANTS, Variant, create_request, quantization_modelfiles
from observer.ollama.near_ties import NEAR_TIE_NATS, nats_apart
from observer.paths import ADAPTER, RunPaths
from observer.prompts import (
    OLLAMA_TEMPLATE,
    Task,
    ollama_template,
    prompt_messages,
    render_exchange,
    render_prompt,
)
from tests.support.modelfile_parser import parse_modelfile
from tests.support.ollama_server import Fault, OllamaServer, delete_ollama_model
from tests.support.tiny_runs import split_rows, tiny_config

BLOB = b"GGUF" + bytes(range(256)) * 12_000
"""Three blocks of an upload."""
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OllamaServer]:
    folder = tmp_path / "blobs"
    folder.mkdir()
    with OllamaServer(folder).running() as running:
        yield running


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def client(server: OllamaServer, said: list[str]) -> Iterator[OllamaClient]:
    with OllamaClient(server.url, Patience(5, 2, 0.01), say=said.append) as client:
        yield client


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(BLOB)
    return path


@pytest.fixture(scope="module")
def run_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny model, as far as packaging reads it."""
    folder = tmp_path_factory.mktemp("package")
    config = tiny_config(folder, tiny_model, "export.quantizations=[f16]", "export.num_predict=6")
    paths = config.paths
    write_gguf(tiny_model, paths.gguf("f16"), "f16", name="tiny")
    paths.config.write_text(config.to_yaml())
    write_jsonl(config.data.val, split_rows(4))
    return paths.root


def package(run_folder: Path, *more: str) -> int:
    return main(["package", str(run_folder), "--ollama", "tiny", *more])


def quiet(done: int, total: int) -> None: ...


def test_a_blob_arrives_whole_and_is_not_sent_twice(client: OllamaClient, server: OllamaServer, blob: Path) -> None:
    shown: list[tuple[int, int]] = []
    assert client.push_blob(blob, DIGEST, lambda done, total: shown.append((done, total)))
    assert server.blob(DIGEST).read_bytes() == BLOB
    assert shown[-1] == (len(BLOB), len(BLOB)) and len(shown) == 3
    assert not client.push_blob(blob, DIGEST, quiet)
    assert [request.partition(" ")[0] for request in server.requests] == ["HEAD", "POST", "HEAD"]


BROKEN = {
    "cut in mid-upload": (Fault("/api/blobs", is_cut=True), "see the server's log"),
    "500": (Fault("/api/blobs", status=500, message="out of luck"), "500, out of luck"),
    "digest mismatch": (Fault("/api/blobs", spoils_body=True), "the file changes while it is sent"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_upload_that_breaks_is_tried_again(
    client: OllamaClient, server: OllamaServer, blob: Path, said: list[str], case: str
) -> None:
    server.faults.append(BROKEN[case][0])
    assert client.push_blob(blob, DIGEST, quiet)
    assert server.blob(DIGEST).read_bytes() == BLOB
    assert len(said) == 1 and "trying again in 0.01 s" in said[0]
    assert [request.partition(" ")[0] for request in server.requests] == ["HEAD", "POST"] * 2


@pytest.mark.parametrize("case", BROKEN)
def test_an_upload_that_never_works_is_one_line(
    client: OllamaClient, server: OllamaServer, blob: Path, case: str
) -> None:
    fault, why = BROKEN[case]
    server.faults.extend([fault] * 9)
    with pytest.raises(ObserverError, match=r"upload of model\.gguf failed 3 times") as caught:
        client.push_blob(blob, DIGEST, quiet)
    assert why in str(caught.value) and "\n" not in str(caught.value)
    assert not server.blob(DIGEST).exists()


def test_what_a_server_says_in_mid_upload_is_heard(client: OllamaClient, server: OllamaServer, tmp_path: Path) -> None:
    """A full disk: it answers and closes while we are still sending."""
    large = tmp_path / "large.gguf"
    large.write_bytes(bytes(64_000_000))
    server.faults.extend([Fault("/api/blobs", status=500, message="no space left on device", answers_early=True)] * 3)
    with pytest.raises(ObserverError, match="failed 3 times"):
        client.push_blob(large, DIGEST, quiet)


def test_a_request_the_server_refuses_is_not_repeated(client: OllamaClient, server: OllamaServer) -> None:
    with pytest.raises(ObserverError, match="no model 'nobody'"):
        client.chat({"model": "nobody", "messages": []})
    with pytest.raises(ObserverError, match="tiny was not created: open sha256:0: no such file"):
        client.create({"model": "tiny", "files": {"a.gguf": "sha256:0"}})
    assert len(server.requests) == 2


def test_a_creation_whose_answer_is_cut_is_repeated(client: OllamaClient, server: OllamaServer) -> None:
    server.faults.append(Fault("/api/create", is_cut=True))
    client.create({"model": "tiny", "from": "qwen3:0.6b"})
    assert server.requests == ["POST /api/create"] * 2


def test_nobody_and_somebody_else_are_told_apart_from_ollama(blob: Path) -> None:
    with pytest.raises(NoServer, match="no Ollama server answers"):
        server_version("127.0.0.1:9")
    for url in ("ftp://host", "127.0.0.1:1:2"):
        with pytest.raises(ObserverError, match="no address"):
            OllamaClient(url)


@pytest.mark.parametrize(
    ("name", "extract"),
    [
        ("observer", "observer-extract"), ("observer:q8_0", "observer-extract:q8_0"),
        ("me/observer", "me/observer-extract"), ("box:5000/me/observer:v1", "box:5000/me/observer-extract:v1"),
    ],
)  # fmt: skip
def test_variants_are_named_before_the_tag(name: str, extract: str) -> None:
    check_name(name)
    assert (variant_name(name, ""), variant_name(name, "extract")) == (name, extract)


@pytest.mark.parametrize(
    "name", ["", "a b", "-a", "a:", "a/b/c/d", "ä", "a" * 81, "a" * 73, "x:y:z", "my.name/m", "a@b", "m:" + "t" * 81]
)
def test_a_name_that_ollama_refuses_is_refused_before_anything_is_sent(name: str) -> None:
    with pytest.raises(ObserverError, match="no model name"):
        check_name(name)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("quantization", "adapted"), [("q8_0", None), (ADAPTER, "qwen3:0.6b")])
def test_what_is_sent_is_what_the_modelfile_says(quantization: str, adapted: str | None, variant: Variant) -> None:
    paths, config = RunPaths(Path("outputs/x"), "x"), Config()
    planned = quantization_modelfiles(paths, config, quantization)
    said = parse_modelfile(planned[paths.modelfile_of(quantization, variant)])
    file = paths.gguf(quantization).name
    sent = create_request("m", config, variant, {file: "sha256:1"}, adapted)
    source = sent.pop("from", None) or f"./{file}"
    assert sent.pop("model") == "m" and sent.pop("adapters" if adapted else "files") == {file: "sha256:1"}
    assert sent.pop("parameters") == said.parameters and sent.pop("license") == said.commands.pop("LICENSE")
    commands = {command.lower(): said.only(command) for command in said.commands}
    assert commands == sent | {"from": source} | ({"adapter": f"./{file}"} if adapted else {})


def test_one_command_creates_and_checks_the_three(run_folder: Path, server: OllamaServer, capsys) -> None:
    assert package(run_folder, "--host", server.url) == 0
    printed = capsys.readouterr()
    assert "created tiny, tiny-grade, tiny-extract from " in printed.out
    assert "prompts: 6 of 6 are the training prompt" in printed.out
    assert "answers: 4 of 4 greedy answers equal llama-cpp-python's" in printed.out
    assert "tiny-extract: success" in printed.err
    assert sorted(server.models) == ["tiny", "tiny-extract", "tiny-grade"]
    assert sum(request.startswith("POST /api/blobs") for request in server.requests) == 1, "the weights are shared"


def test_models_can_be_created_without_being_asked(run_folder: Path, server: OllamaServer, capsys) -> None:
    assert package(run_folder, "--host", server.url, "--no-check") == 0
    assert "POST /api/chat" not in server.requests


def told(text: str, others: dict[str, float], logprob: float = -0.1) -> dict[str, Any]:
    """A token as /api/chat tells it, with the alternatives to it."""
    alternatives = {text: logprob} | others
    entries = [{"token": t, "bytes": list(t.encode()), "logprob": p} for t, p in alternatives.items()]
    return entries[0] | {"top_logprobs": entries}


A, B = told("Ana", {"Bo": -9.0}), told(" works", {" lives": -0.3, " li": -0.35, "": -3.0, "<|im_end|>": -2.0})
PARTINGS: dict[str, tuple[list[dict[str, Any]], str, float | None]] = {
    "the second token, the likelier of two ways to write ours": ([A, B], "Ana lives here", 0.2),
    "the first token": ([A, B], "Bo", 8.9),
    "our answer ends here": ([A, B], "Ana", 1.9),
    "theirs ends, which is not told": ([A], "Ana works", None),
    "ours is no alternative": ([A, B], "Ana dreams", None),
    "nothing is told": ([], "Ana", None),
    "half a character": ([{"token": "\ufffd", "bytes": [0xC3], "logprob": 0.0}, told("\ufffd", {})], "ä", None),
    "no log-probability": ([{"token": "x"}], "y", None),
}


@pytest.mark.parametrize("case", PARTINGS)
def test_how_far_two_answers_part_is_read_at_the_first_token_that_differs(case: str) -> None:
    entries, ours, nats = PARTINGS[case]
    assert nats_apart(entries, ours) == (nats if nats is None else pytest.approx(nats))


def test_one_answer_that_parts_at_more_than_a_near_tie_is_enough() -> None:
    ties = tuple(Difference(str(n), NEAR_TIE_NATS * n / 9) for n in range(10))
    assert Checked(22, 20, ties).is_sound
    assert not Checked(22, 20, (*ties, Difference("a", NEAR_TIE_NATS + 0.01))).is_sound


@pytest.mark.parametrize(("nats", "code"), [(0.4, 0), (0.6, 1), (None, 1)])
def test_answers_that_differ_are_shown_and_let_pass_only_at_a_near_tie(
    run_folder: Path, server: OllamaServer, capsys, nats: float | None, code: int
) -> None:
    any_token = [{"token": "?", "bytes": [byte], "logprob": -1.0} for byte in range(256)]
    any_token.append({"token": "<|im_end|>", "logprob": -1.0})
    server.reply = "\u2603"
    if nats is not None:
        server.logprobs = [{"token": "\u2603", "logprob": -1.0 + nats, "top_logprobs": any_token}]
    assert package(run_folder, "--host", server.url) == code
    printed = capsys.readouterr()
    assert "answers: 0 of 4" in printed.out and printed.err.count("'\u2603' where ") == 4
    assert ("4 more part at a near tie" in printed.out) == (code == 0)
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == code
    if code:
        assert "4 of 4 answers part" in errors[0]
        assert ("by more than 0.5 nats" if nats else "does not say by how much") in errors[0]


def test_an_answer_that_the_server_stopped_agrees_as_far_as_it_goes(
    run_folder: Path, server: OllamaServer, capsys
) -> None:
    server.reply, server.is_done = "", False
    assert package(run_folder, "--host", server.url) == 0
    server.is_done = True
    assert package(run_folder, "--host", server.url) == 1


def test_the_model_is_not_loaded_anew_between_the_ways_of_asking(client: OllamaClient, server: OllamaServer) -> None:
    server.models["m"], server.reply = {"template": OLLAMA_TEMPLATE, "system": ""}, "STORE"
    ask(client, "m", [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}])
    with OllamaBackend("m", server.url) as backend:
        backend.grade(["USER: hi"])
    assert len(server.bodies) == 2 and server.n_loads == 1


INNER = "exceeds the available context size"
ERRORS: dict[str, Any] = {
    "a text": INNER,
    "an object": {"code": 400, "message": INNER, "type": "x"},
    "an object as text": json.dumps({"error": {"code": 400, "message": INNER}}),
    "an object in a text": f"llama-server: 400 {json.dumps({'error': {'message': INNER}})}",
    "twice": json.dumps({"error": json.dumps({"error": {"message": INNER}})}),
    "deep": reduce(lambda error, _: {"error": error}, range(5000), INNER),
    "deep text": '{"error": ' * 900 + json.dumps(INNER) + "}" * 900,
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_its_innermost_message(case: str) -> None:
    assert error_words({"error": ERRORS[case]}) == INNER


def test_an_error_nested_too_deeply_to_be_read_is_told_as_it_stands() -> None:
    text = '{"error": ' * 90_000 + "1" + "}" * 90_000
    assert error_words({"error": text}) == text[:300]


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda v: st.dictionaries(st.sampled_from(["error", "message"]), v)
    )
)
def test_any_error_has_words(reply: Any) -> None:
    assert isinstance(error_words(reply), str)


def test_another_prompt_is_an_error(run_folder: Path, server: OllamaServer, capsys) -> None:
    """As when the server prefers a template of the GGUF."""
    server.template = ollama_template(Task.GRADE) + "<think>\n\n</think>\n"
    assert package(run_folder, "--host", server.url) == 1
    assert "its prompt is not the training prompt: '<think>" in capsys.readouterr().err


def test_a_thinking_block_is_an_error(run_folder: Path, server: OllamaServer, capsys) -> None:
    server.thinking = "hmm"
    assert package(run_folder, "--host", server.url) == 1
    assert "answers with a thinking block" in capsys.readouterr().err


def test_an_old_server_that_cannot_show_prompts_is_told(run_folder: Path, server: OllamaServer, capsys) -> None:
    server.has_debug = False
    assert package(run_folder, "--host", server.url) == 0
    assert "prompts: not compared; this server is older" in capsys.readouterr().out


def test_without_a_server_the_commands_are_printed(run_folder: Path, capsys) -> None:
    assert package(run_folder, "--host", "http://127.0.0.1:9") == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "ollama serve" in printed.err
    commands = [line.split() for line in printed.out.splitlines()]
    assert [command[:3] for command in commands] == [
        ["ollama", "create", name] for name in ("tiny", "tiny-grade", "tiny-extract")
    ]
    for command in commands:
        path = Path(command[-1])
        assert (path.parent / parse_modelfile(path.read_text()).only("FROM")).is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--quantization", "q2_k"], "tiny-q2_k.gguf: no such file; there are: f16"),
        (["--quantization", "adapter"], "tiny-adapter.gguf: no such file"),
        (["--ollama", "a b"], "no model name for Ollama"),
        (["--host", "ftp://box"], "no address"),
    ],
)
def test_wrong_wishes_are_one_line(run_folder: Path, more: list[str], message: str, capsys) -> None:
    assert package(run_folder, *more) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_that_is_no_run_is_told(tmp_path: Path, capsys) -> None:
    assert package(tmp_path) == 1
    assert "no run (it has no config.yaml)" in capsys.readouterr().err


@pytest.fixture
def real_server() -> str:
    try:
        server_version(timeout_s=2)
    except ObserverError as error:
        pytest.skip(str(error))
    return os.environ.get("OLLAMA_HOST", "")


@pytest.mark.ollama
def test_a_real_server_renders_and_answers_as_we_do(run_folder: Path, real_server: str, capsys) -> None:
    """Leaves no model behind; the weights of the tiny model are random, so that answers alone may part by near ties."""
    name = f"observer-test-{uuid.uuid4().hex[:8]}"
    try:
        assert package(run_folder, "--ollama", name, "--host", real_server, "--no-check") == 0
        with OllamaClient(real_server) as client:
            for task in Task:
                exchange = render_exchange("I moved to Łódź\n<|im_end|> 🙂", "Nice!")
                messages = prompt_messages(task, exchange)
                assert rendered_prompt(client, name, messages) == render_prompt(task, exchange)
                alone = [{"role": "user", "content": exchange}]
                assert rendered_prompt(client, variant_name(name, task), alone) == render_prompt(task, exchange)
                assert isinstance(ask(client, variant_name(name, task), alone)["message"]["content"], str)
    finally:
        for variant in ("", "grade", "extract"):
            delete_ollama_model(variant_name(name, variant))
