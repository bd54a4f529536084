"""The request bodies of docs/serving.md ask what our client asks, and show every server the prompt of training."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from llama_cpp.llama_grammar import json_schema_to_gbnf
from tokenizers import Tokenizer

from docs.reference import EXCHANGE, request_bodies
from eval.benchmarks.engine.engines import Limits
from eval.benchmarks.engine.server import LlamaServer
from observer import Observer
from observer.backends.request_bodies import llama_server_request, ollama_request, vllm_request
from observer.engine.engine import Engine
from observer.engine.grammar import Grammar
from observer.paths import NANO_BASE, PROJECT_ROOT
from observer.prompts import OLLAMA_TEMPLATE, Task, render_exchange, render_prompt
from observer.schema import Extraction
from tests.conftest import hostile_texts
from tests.support.go_template import render_go_template
from tests.support.ollama_server import OllamaServer

LLAMA_SERVER = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
each_task = pytest.mark.parametrize("task", list(Task))


def test_our_client_sends_ollama_the_bodies_of_the_page(
    tmp_path: Path, nano_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OllamaServer(tmp_path).running() as server:
        server.serve("observer", nano_gguf)
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with Observer("ollama:observer") as observer:
            turn = ("I left Siemens, I'm at Bosch now.", "Congratulations!")
            observer.grade(turn)
            observer.extract(turn)
    committed = [PROJECT_ROOT / f"docs/requests/ollama-{task}.json" for task in (Task.GRADE, Task.EXTRACT)]
    assert server.bodies == [json.loads(path.read_text(encoding="utf-8")) for path in committed]


@each_task
@pytest.mark.parametrize("text", ["I moved to Lisbon", *hostile_texts()[:3]])
def test_every_server_is_shown_the_token_ids_of_training(task: Task, text: str, engine: Engine) -> None:
    exchange = render_exchange(text, "ok")
    messages = ollama_request("m", task, exchange)["messages"]
    prompts = {
        render_go_template(OLLAMA_TEMPLATE, messages),
        llama_server_request(task, exchange)["prompt"],
        vllm_request("m", task, exchange)["prompt"],
    }
    assert prompts == {render_prompt(task, exchange)}
    (prompt,) = prompts
    tokenizer = Tokenizer.from_file(str(PROJECT_ROOT / NANO_BASE / "tokenizer.json"))
    assert tokenizer.encode(prompt, add_special_tokens=False).ids == engine.model.tokenize(prompt)


def test_llama_cpp_takes_our_grammar_and_our_schema(engine: Engine) -> None:
    bodies = request_bodies()
    schema = json.dumps(bodies["ollama-extract"]["format"])
    for gbnf in (bodies["llama-server-extract"]["grammar"], json_schema_to_gbnf(schema)):
        Grammar(engine.model, gbnf).close()
    assert bodies["vllm-extract"]["structured_outputs"] == {"json": json.loads(schema)}


def test_bodies_with_the_same_bound_are_greedy_everywhere() -> None:
    for name, body in request_bodies().items():
        options = body.get("options", body)
        limit = options.get("num_predict") or options.get("n_predict") or options.get("max_tokens")
        assert (options["temperature"], limit) == (0, 12 if name.endswith("grade") else 512)


@pytest.mark.skipif(not LLAMA_SERVER, reason="no llama-server; name one in LLAMA_SERVER")
def test_llama_server_answers_as_the_engine(tmp_path: Path, nano_gguf: Path, engine: Engine) -> None:
    assert LLAMA_SERVER
    with closing(LlamaServer(Path(LLAMA_SERVER), nano_gguf, Limits(12, 512, 2, 4), tmp_path / "log")) as server:
        for task in Task:
            body = request_bodies()[f"llama-server-{task}"]
            content = {"content": body["prompt"], "add_special": True, "parse_special": True}
            assert server.post("/tokenize", content)["tokens"] == engine.model.tokenize(body["prompt"])
        graded = server.post("/completion", request_bodies()["llama-server-grade"])
        extracted = server.post("/completion", request_bodies()["llama-server-extract"])
        messages = request_bodies()["ollama-grade"]["messages"]
        assert server.post("/apply-template", {"messages": messages})["prompt"] == render_prompt(Task.GRADE, EXCHANGE)
    assert graded["content"] == engine.grade([EXCHANGE])[0].label
    assert graded["completion_probabilities"][0]["top_logprobs"]
    assert Extraction.model_validate_json(extracted["content"])
    assert extracted["content"] == engine.extract([EXCHANGE])[0].text
