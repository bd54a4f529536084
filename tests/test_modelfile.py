"""Our Modelfiles mean to Ollama what we mean: its grammar, its parameter types, and exactly our prompt."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer.config import ExportConfig
from observer.export.modelfile import VARIANTS, Variant, render_modelfile, write_committed, write_modelfiles
from observer.paths import MODELFILES, PROJECT_ROOT, RunPaths
from observer.prompts import (
    OLLAMA_TEMPLATE,
    SYSTEM_PROMPTS,
    Task,
    prompt_messages,
    render_chatml,
    render_exchange,
    render_prompt,
)
from tests.conftest import hostile_texts

COMMANDS = set("FROM ADAPTER TEMPLATE SYSTEM PARAMETER LICENSE MESSAGE RENDERER PARSER REQUIRES DRAFT".split())
INTS = set("num_keep seed num_predict top_k repeat_last_n num_ctx num_batch num_gpu main_gpu num_thread".split())
FLOATS = set("top_p min_p typical_p temperature repeat_penalty presence_penalty frequency_penalty".split())


@dataclass
class Modelfile:
    """What Ollama's parser takes from the text."""

    commands: dict[str, list[str]] = field(default_factory=dict)
    parameters: dict[str, list[object]] = field(default_factory=dict)

    def only(self, command: str) -> str:
        (value,) = self.commands[command]
        return value


def parse(text: str) -> Modelfile:
    """Read a Modelfile as Ollama does: a value ends at a line's end once its quotes are closed; no escapes.

    Non-printing characters vanish outside the lines inside quotes; commands and parameters are closed sets.
    """
    modelfile, lines = Modelfile(), iter(text.split("\n"))
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        assert line.isprintable(), f"Ollama would drop characters of {line!r}"
        command, _, value = line.lstrip().partition(" ")
        assert command in COMMANDS
        name = ""
        if command == "PARAMETER":
            name, _, value = value.partition(" ")
        while (plain := unquote(value.strip(" \t"))) is None:
            value += "\n" + next(lines)
        assert plain, f"{command} {name} is empty"
        if command == "PARAMETER":
            modelfile.parameters.setdefault(name, []).append(typed(name, plain))
        else:
            modelfile.commands.setdefault(command, []).append(plain)
    assert len(modelfile.commands["FROM"]) == 1
    assert all(len(values) == 1 for name, values in modelfile.parameters.items() if name != "stop")
    return modelfile


def unquote(value: str) -> str | None:
    """The value without its quotes; None while they are still open."""
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            is_closed = value.endswith(quotes) and len(value) >= 2 * len(quotes)
            return value[len(quotes) : -len(quotes)] if is_closed else None
    return value


def typed(name: str, value: str) -> object:
    if name in INTS:
        return int(value)
    if name in FLOATS:
        return float(value)
    assert name == "stop", f"unknown parameter {name}"
    return value


def render_go_template(template: str, messages: list[dict[str, str]]) -> str:
    """The part of Go's text/template that ours uses: `range`, fields, `end`, and `{{-` / `-}}` trimming.

    `{{- ` takes away white space before the action and ` -}}` behind it; nothing else is touched.
    """
    parts = re.split(r"(\{\{(?:- )?.*?(?: -)?\}\})", template, flags=re.DOTALL)
    for place, part in enumerate(parts):
        if part.startswith("{{- "):
            parts[place - 1] = parts[place - 1].rstrip(" \t\r\n")
        if part.startswith("{{") and part.endswith(" -}}"):
            parts[place + 1] = parts[place + 1].lstrip(" \t\r\n")
    actions = [part.strip("{}").strip("-").strip() if part.startswith("{{") else None for part in parts]
    begin, end = actions.index("range .Messages"), actions.index("end")
    fields = {".Role": "role", ".Content": "content"}

    def body(message: dict[str, str]) -> str:
        inside = zip(actions[begin + 1 : end], parts[begin + 1 : end], strict=True)
        return "".join(part if action is None else message[fields[action]] for action, part in inside)

    assert not any(actions[:begin] + actions[end + 1 :])
    return "".join(parts[:begin]) + "".join(map(body, messages)) + "".join(parts[end + 1 :])


def render(variant: Variant) -> str:
    return render_modelfile("./model.gguf", ExportConfig(), variant, "q4_k_m")


@pytest.mark.parametrize("variant", VARIANTS)
def test_ollama_reads_what_we_mean(variant: Variant) -> None:
    modelfile = parse(render(variant))
    assert modelfile.only("FROM") == "./model.gguf"
    assert modelfile.only("REQUIRES") == "0.6.6"
    assert modelfile.only("LICENSE") == "Apache-2.0"
    assert modelfile.only("TEMPLATE") == OLLAMA_TEMPLATE
    assert modelfile.only("SYSTEM") == SYSTEM_PROMPTS[Task(variant or "grade")]
    assert modelfile.parameters == {
        "temperature": [0.0],
        "repeat_penalty": [1.0],
        "num_ctx": [2048],
        "num_predict": [512],
        "stop": ["<|im_end|>", "<|im_start|>"],
    }


def test_context_and_answer_length_come_from_the_config() -> None:
    text = render_modelfile("./model.gguf", ExportConfig(num_ctx=777, num_predict=33), "grade", "q8_0")
    parameters = parse(text).parameters
    assert (parameters["num_ctx"], parameters["num_predict"]) == ([777], [33])


def test_the_one_for_both_tasks_tells_the_system_message_of_the_other() -> None:
    comments = [line.lstrip("# ") for line in render("").splitlines() if line.startswith("#")]
    assert SYSTEM_PROMPTS[Task.EXTRACT] in comments


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("task", Task)
def test_the_template_renders_the_training_prompt(variant: Variant, task: Task) -> None:
    """Without a system message Ollama puts the Modelfile's first; with one it takes the message's."""
    modelfile = parse(render(variant))
    for text in hostile_texts():
        exchange = render_exchange(text, text)
        messages = prompt_messages(task, exchange)
        assert render_go_template(modelfile.only("TEMPLATE"), messages) == render_prompt(task, exchange)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_the_template_renders_what_the_chat_template_does(contents: list[str]) -> None:
    roles = ["system", *itertools.islice(itertools.cycle(["user", "assistant"]), len(contents) - 1)]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    assert render_go_template(OLLAMA_TEMPLATE, messages) == render_chatml(messages)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a \n{{- range .Messages }} {{ .Content }} {{ end }}\n", "a x  y \n"),
        ("{{ range .Messages -}}\n {{ .Role }}{{- end -}} \n.", "uu."),
        ("{{ range .Messages }}\n{{ .Role }}\n{{- end }}", "\nu\nu"),
    ],
)
def test_the_renderer_trims_as_go_does(template: str, text: str) -> None:
    messages = [{"role": "u", "content": "x"}, {"role": "u", "content": "y"}]
    assert render_go_template(template, messages) == text


@pytest.mark.parametrize("name", ["qwen3-observer", "my run"])
def test_a_run_s_modelfiles_point_at_its_weights(tmp_path: Path, name: str) -> None:
    paths = RunPaths(tmp_path / "outputs" / name, name)
    written = write_modelfiles(paths, ExportConfig(), "q8_0")
    assert [path.name for path in written] == ["Modelfile", "Modelfile-grade", "Modelfile-extract"]
    for path in written:
        source = parse(path.read_text()).only("FROM")
        assert source.startswith("./")
        assert (path.parent / source).resolve() == paths.gguf("q8_0").resolve()


def test_the_committed_renderings_are_up_to_date(tmp_path: Path) -> None:
    """If not: `python -m observer.export.modelfile`."""
    for path in write_committed(tmp_path):
        assert (PROJECT_ROOT / MODELFILES / path.name).read_text() == path.read_text()


def test_the_readme_beside_them_names_every_one() -> None:
    readme = (PROJECT_ROOT / MODELFILES / "README.md").read_text()
    for variant in VARIANTS:
        file = RunPaths(Path(), "").modelfile(variant).name
        model = f"qwen3-observer-{variant}".rstrip("-")
        assert re.search(rf"ollama create {model} -f {file}\s", readme)


def test_making_modelfiles_loads_no_heavy_package() -> None:
    code = "import sys, observer.export.modelfile; assert not {'torch', 'llama_cpp', 'gguf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT_ROOT)
