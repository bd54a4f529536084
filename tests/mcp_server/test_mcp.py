"""`observer mcp` as an assistant meets it: the package's own client starts the server and calls its tools."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from observer.cli import build_parser
from observer.memory.store import Store
from observer.paths import PROJECT_ROOT
from tests.support.docs_blocks import blocks_of
from tests.support.observing_server import ObservingServer

pytest.importorskip("mcp")
from mcp import Client, StdioServerParameters

from observer.client import Observer
from observer.mcp_server.server import build_server

JANUARY, MARCH = "2026-01-10T12:00:00Z", "2026-03-10T12:00:00Z"


@pytest.fixture
def model() -> Iterator[ObservingServer]:
    with ObservingServer().running() as server:
        yield server


def command(memory: Path, spec: str = "ollama:watcher") -> list[str]:
    return [sys.executable, "-m", "observer.cli", "mcp", "--model", spec, "--memory", str(memory)]


def in_a_process(memory: Path, model: ObservingServer, calls: Callable[[Client], Awaitable[None]], **mode: Any) -> None:
    program, *arguments = command(memory)
    environment = {"OLLAMA_HOST": model.host, "PYTHONPATH": str(PROJECT_ROOT), "PATH": os.environ["PATH"]}
    parameters = StdioServerParameters(command=program, args=arguments, env=environment)

    async def talk() -> None:
        async with Client(parameters, read_timeout_seconds=60, **mode) as client:
            await calls(client)

    asyncio.run(talk())


async def ask(client: Client, tool: str, **arguments: Any) -> Any:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    return answer.structured_content


def told(recalled: Any) -> set[tuple[str, str | None]]:
    return {(found["text"], found["known"]) for found in recalled["facts"]}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_an_assistant_observes_recalls_and_forgets(tmp_path: Path, model: ObservingServer, mode: str) -> None:
    """With the protocol of today and with the handshake that older assistants begin by."""
    memory = tmp_path / "me.sqlite"

    async def calls(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"observe", "recall", "history", "forget"}
        hints = {name: tool.annotations and tool.annotations.read_only_hint for name, tool in tools.items()}
        assert hints == {"observe": False, "recall": True, "history": True, "forget": False}

        first = await ask(client, "observe", user_message="I live in Porto", assistant_message="Nice.", at=JANUARY)
        assert first["grade"]["label"] == "IMPORTANT"
        assert [(c["operation"]["kind"], c["text"]) for c in first["changes"]] == [("ADD", "User lives in Porto")]
        assert (await ask(client, "observe", user_message="thanks"))["changes"] == []
        moved = await ask(client, "observe", user_message="I live in Lisbon", at=MARCH, id="a move")
        assert [c["operation"]["kind"] for c in moved["changes"]] == ["INVALIDATE", "ADD"]
        again = await ask(client, "observe", user_message="I live in Lisbon", at=MARCH, id="a move")
        assert again["changes"] == []
        for changes in (1, 0):  # without a time it was said now, twice
            told_now = await ask(client, "observe", user_message="I live in Lisbon", id="now")
            assert len(told_now["changes"]) == changes

        assert told(await ask(client, "recall")) == {("User lives in Lisbon", None)}
        assert told(await ask(client, "recall", about="porto")) == set()
        assert told(await ask(client, "recall", about="living lives", with_past=True)) == set()
        both = await ask(client, "recall", about="live", with_past=True, limit=1)
        assert told(both) == {("User lives in Lisbon", None)} and both["n_left_out"] == 1
        assert told(await ask(client, "recall", as_of="2026-02-01")) == {
            ("User lives in Porto", "then"),
            ("User lives in Porto (superseded)", "now"),
        }

        (fact,) = (await ask(client, "recall", about="Lisbon"))["facts"]
        gone = await ask(client, "forget", fact_id=fact["fact"]["id"])
        assert gone["fact"]["ended_by"] == "forgotten" and told(await ask(client, "recall")) == set()
        events = (await ask(client, "history", about="Lisbon"))["result"]
        assert [(e["operation"]["reason"], e["source"] == "a move") for e in events] == [
            ("new", True),
            ("forgotten", False),
        ]
        await ask(client, "forget", fact_id=fact["fact"]["id"], delete=True)
        assert (await ask(client, "history", about="Lisbon"))["result"] == []

    in_a_process(memory, model, calls, mode=mode)
    with Store(memory) as store:
        assert [fact.object for fact in store.known(is_current=False)] == ["Porto"]


def test_what_goes_wrong_is_the_tools_error_and_the_server_lives_on(tmp_path: Path, model: ObservingServer) -> None:
    async def calls(client: Client) -> None:
        for tool, arguments, what in [
            ("observe", {"user_message": "  "}, "the user message is empty"),
            ("observe", {"user_message": "hello", "at": "yesterday"}, "at"),
            ("recall", {"as_of": "9999-12-31"}, "name an earlier one"),
            ("recall", {"limit": 0}, "limit"),
            ("forget", {"fact_id": "none"}, "no fact has the id 'none'"),
        ]:
            answer = await client.call_tool(tool, arguments)
            assert answer.is_error and what in answer.content[0].text, (tool, answer)  # type: ignore[union-attr]
        model.fails_after = sum(model.n_asked.values())
        answer = await client.call_tool("observe", {"user_message": "I live in Porto"})
        assert answer.is_error and "the server is at its end" in answer.content[0].text  # type: ignore[union-attr]
        assert told(await ask(client, "recall")) == set()

    in_a_process(tmp_path / "me.sqlite", model, calls)


def test_another_program_may_write_and_its_lock_is_waited_for(
    tmp_path: Path, model: ObservingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", model.host)
    memory = tmp_path / "me.sqlite"
    with monkeypatch.context() as patience:
        patience.setattr("observer.memory.store.BUSY_TIMEOUT_S", 0.1)
        hasty = Store(memory)

    async def talk() -> None:
        with hasty, Store(memory) as patient, Store(memory) as other, Observer("ollama:watcher") as observer:
            other._database.execute("BEGIN IMMEDIATE")
            async with Client(build_server(observer, hasty)) as client:
                refused = await client.call_tool("observe", {"user_message": "I live in Porto"})
                assert refused.is_error
                assert "another program has been writing to it" in refused.content[0].text  # type: ignore[union-attr]
                assert told(await ask(client, "recall")) == set()  # reading waits for nobody
            async with Client(build_server(observer, patient)) as client:
                waiting = asyncio.create_task(ask(client, "observe", user_message="I live in Porto"))
                done, _ = await asyncio.wait([waiting], timeout=0.5)
                assert not done
                other._database.execute("COMMIT")
                assert len((await waiting)["changes"]) == 1
                other.apply(observer.observe("I live in Lima"), "another program's")
                assert told(await ask(client, "recall")) == {("User lives in Lima", None)}

    asyncio.run(talk())


def test_the_configurations_of_the_page_are_commands_of_ours() -> None:
    """For each assistant: what it would start parses, and names its files by whole paths."""
    page = PROJECT_ROOT / "docs" / "mcp.md"
    blocks = [json.loads(block.text) for block in blocks_of(page) if block.language == "json"]
    servers = [server for block in blocks for server in (block.get("mcpServers") or block["servers"]).values()]
    assert len(servers) == 2
    for server in servers:
        parsed = build_parser().parse_args(server["args"])
        assert parsed.memory.is_absolute() and Path(server["command"]).is_absolute()


def test_a_model_that_is_not_there_is_told_before_the_first_call(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path / "me.sqlite", "no-such.gguf"), capture_output=True, text=True, cwd=PROJECT_ROOT, stdin=-3
    )
    assert (done.returncode, done.stdout) == (1, "") and "no-such.gguf" in done.stderr
