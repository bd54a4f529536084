"""The configuration: bad input gets its place, what was found and the nearest valid name, all in one pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from observer.config import Config, load_config
from observer.errors import ObserverError
from observer.paths import PROJECT_ROOT

CONFIGS = sorted((PROJECT_ROOT / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def fault_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ObserverError) as raised:
        load_config(path, overrides)
    return str(raised.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_say_more_than_the_defaults(path: Path) -> None:
    assert load_config(path) != Config()


def test_the_reference_is_the_first_versions_recipe() -> None:
    config = load_config(PROJECT_ROOT / "configs/reference.yaml")
    training, lora = config.training, config.lora
    assert (config.model.base, config.model.dtype, config.data.max_length) == ("Qwen/Qwen3-0.6B", "float16", 1024)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (16, 32, 0.05)
    assert lora.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (training.num_train_epochs, training.per_device_train_batch_size) == (3, 4)
    assert (training.learning_rate, training.warmup_steps) == (2e-5, 100)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()
    assert load_config(write(tmp_path, "# nothing\n")) == Config()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("training:\n  learnign_rate: 1\n", ":2: unknown key 'training.learnign_rate'; did you mean 'learning_rate'?"),
        ("trainin:\n  seed: 1\n", ":1: unknown key 'trainin'; did you mean 'training'?"),
        ("\nlearning_rate: 1\n", ":2: unknown key 'learning_rate'; did you mean 'training.learning_rate'?"),
        ("run:\n  zzz: 1\n", ":2: unknown key 'run.zzz'; allowed: name, output_dir, device, seed"),
        ("model:\n  dtype: int3\n", ":2: model.dtype: input should be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("training:\n  learning_rate: fast\n", ":2: training.learning_rate: input should be a valid number"),
        ("training:\n  num_train_epochs: 0\n", ":2: training.num_train_epochs: input should be greater than 0"),
        (
            "lora:\n  target_modules:\n    - q_proj\n    - 7\n",
            ":2: lora.target_modules.1: input should be 'q_proj', 'k_proj', 'v_proj', 'o_proj',",
        ),
        ("run:\n  seed: -1\n", ":2: run.seed: input should be greater than or equal to 0"),
        ("run:\n  seed: 4294967296\n", ":2: run.seed: input should be less than 4294967296"),
        ("model: fast\n", ":1: model: keys and their values are expected, found 'fast'"),
        ("- a\n", ":1: sections such as `model:` are expected, found a list"),
        ("just words\n", ":1: sections such as `model:` are expected, found a str"),
        ("run:\n  name: [a\n", ":3: not valid YAML"),
        ("run:\n\tname: a\n", ":2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML"),
        ("run:\n  seed: 1\n  seed: 2\n", ":3: key 'run.seed' is given twice"),
        ("run: {name: a}\nrun: {seed: 1}\n", ":2: key 'run' is given twice"),
        ("run: &a\n  seed: 1\n  name: *b\n", ":3: not valid YAML"),
        ("run: !!python/object:os.system {}\n", ":1: not valid YAML"),
    ],
)
def test_a_fault_has_its_line_and_a_mend(tmp_path: Path, text: str, fault: str) -> None:
    path = write(tmp_path, text)
    assert fault_of(path).startswith(f"{path}{fault}")


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".", "..", "two words", "a\\n"])
def test_a_run_name_is_the_name_of_one_folder(tmp_path: Path, name: str) -> None:
    assert "run.name" in fault_of(write(tmp_path, ""), f'run.name="{name}"')


def test_a_missing_file_and_a_folder_and_another_encoding_are_told(tmp_path: Path) -> None:
    assert fault_of(tmp_path / "no.yaml") == (
        f"{tmp_path / 'no.yaml'}: no such file; check the path, relative to the folder you run from"
    )
    assert fault_of(tmp_path).startswith(f"{tmp_path}: ")
    path = tmp_path / "latin.yaml"
    path.write_bytes("run:\n  name: café\n".encode("latin-1"))
    assert fault_of(path) == f"{path}:2: not UTF-8 text; save the file as UTF-8"


def test_all_faults_come_in_one_pass(tmp_path: Path) -> None:
    path = write(tmp_path, "run:\n  sed: 1\ntraining:\n  learning_rate: -1\n  logging_steps: x\n")
    lines = fault_of(path, "lora.r=0", "lora.alpha=3").splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        f"{path}:2",
        "--set lora.r=0",
        "--set lora.alpha=3",
        f"{path}:4",
        f"{path}:5",
    ]


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("learning_rate=1", "`section.key=value` is expected"),
        ("training.learning_rate", "`section.key=value` is expected"),
        ("a.b.c=1", "`section.key=value` is expected"),
        ("training.=1", "`section.key=value` is expected"),
        ("training.learning_rate=[", "the value is not valid YAML"),
        ("training.rates=1", "unknown key 'training.rates'; allowed: num_train_epochs"),
        ("nothing.rate=1", "unknown key 'nothing'; allowed: run, model"),
        ("training.learning_rate=fast", "training.learning_rate: input should be a valid number"),
        ("lora.target_modules=[q_proj, lm_head]", "lora.target_modules.1: input should be 'q_proj', 'k_proj'"),
        ("lora.target_modules=[]", "lora.target_modules: tuple should have at least 1 item"),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, fault: str) -> None:
    message = fault_of(write(tmp_path, ""), override)
    assert message.startswith(f"--set {override}: ")
    assert fault in message


def test_precedence_is_defaults_then_file_then_set(tmp_path: Path) -> None:
    path = write(tmp_path, "training:\n  learning_rate: 1.0e-3\n  warmup_steps: 7\n")
    config = load_config(path, ["training.learning_rate=1e-4", "lora.target_modules=[q_proj]", "run.device=cpu"])
    assert config.training.learning_rate == 1e-4
    assert config.training.warmup_steps == 7
    assert config.training.weight_decay == Config().training.weight_decay
    assert (config.lora.target_modules, config.run.device) == (("q_proj",), "cpu")
    assert load_config(path, ["run.seed=1", "run.seed=2"]).run.seed == 2


def test_an_empty_section_is_its_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "training:\nrun:\n  seed: 7\n")).training == Config().training
    assert load_config(write(tmp_path, "training:\n"), ["training.max_steps=3"]).training.max_steps == 3


def test_the_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().run.seed = 3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_resolved_config_reads_back_as_itself(tmp_path: Path, path: Path) -> None:
    config = load_config(path, ["training.learning_rate=3e-5", "model.revision=null"])
    assert load_config(write(tmp_path, config.to_yaml())) == config


@given(st.floats(min_value=1e-12, max_value=1e3), st.integers(1, 10**6), st.from_regex(r"[\w.-]{1,20}", fullmatch=True))
@settings(max_examples=50)
def test_any_value_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rate: float, rank: int, base: str
) -> None:
    config = Config.model_validate({"training": {"learning_rate": rate}, "lora": {"r": rank}, "model": {"base": base}})
    path = write(tmp_path_factory.mktemp("round"), config.to_yaml())
    assert load_config(path) == config
