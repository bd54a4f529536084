"""The one configuration: frozen, typed, unknown keys rejected at file:line.

Precedence: the defaults here < the YAML file < `--set section.key=value`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from observer.errors import ObserverError, raise_all
from observer.files import read_text
from observer.paths import TRAIN_JSONL, VAL_JSONL, RunPaths
from observer.schema import describe_fault

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SplitKind = Literal["random", "family", "name", "both"]
Reporter = Literal["tensorboard", "trackio", "wandb"]
UnknownPredicates = Literal["strict", "quarantine", "related"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunConfig(_Section):
    name: str = Field(
        default="qwen3-observer",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Folder below output_dir, and stem of the GGUF files.",
    )
    output_dir: Path = Field(default=Path("outputs"), description="Where runs are kept; git-ignored.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="`cuda` refuses to start without a GPU.")
    seed: int = Field(default=42, ge=0, lt=2**32, description="The one seed: data order, LoRA initialisation, dropout.")


class ModelConfig(_Section):
    base: str = Field(
        default="Qwen/Qwen3-0.6B",
        description="Hub id, folder in Hugging Face format, GGUF file, `package:NAME/FILE.gguf`, or `ollama:NAME:TAG`.",
    )
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the GGUF that base names; another is refused."
    )
    revision: str | None = Field(default=None, description="Hub commit or tag to pin; ignored for a folder.")
    adapter: Path | None = Field(
        default=None, description="LoRA folder to train further, such as models/smollm2-observer; empty: a new one."
    )
    backend: Literal["auto", "unsloth", "transformers"] = Field(
        default="auto",
        description="auto: unsloth on CUDA where it is installed, plain transformers elsewhere and for float32.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Weights' precision; auto: bfloat16 where the device computes in it, else float32."
    )
    load_in_4bit: bool = Field(default=False, description="QLoRA: NF4 base weights through bitsandbytes.")


class DataConfig(_Section):
    train: Path = Field(default=TRAIN_JSONL, description="TRL prompt-completion rows.")
    val: Path = Field(default=VAL_JSONL, description="The same for validation; shares no family with train.")
    more: tuple[Path, ...] = Field(
        default=(), description="Files of raw rows to train on as well; those held out (`source` ends in /val) are not."
    )
    utility: Path | None = Field(
        default=None, description="Raw rows with labels, of this or the first version; train and val are made of them."
    )
    extraction: Path | None = Field(default=None, description="The same with entities and relationships.")
    split: SplitKind = Field(
        default="family", description="What val holds that train does not: wording, names, both, or only other rows."
    )
    val_fraction: float = Field(default=0.2, gt=0, lt=1, description="Share of val in the rows that are kept.")
    unknown_predicates: UnknownPredicates = Field(
        default="strict", description="strict stops, quarantine sets the row aside, related makes RELATED_TO of it."
    )
    max_length: int = Field(
        default=2048, gt=0, description="Tokens of prompt and completion; a longer row is an error."
    )


class LoraConfig(_Section):
    r: int = Field(default=16, gt=0, description="Rank.")
    lora_alpha: int = Field(default=32, gt=0, description="Scale: alpha / r.")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="0 keeps Unsloth's fastest path.")
    target_modules: tuple[Projection, ...] = Field(
        default=get_args(Projection), min_length=1, description="Projections that get an adapter."
    )
    use_rslora: bool = Field(default=False, description="Scale by alpha / sqrt(r) instead.")


class TrainingConfig(_Section):
    num_train_epochs: float = Field(default=2.0, gt=0, description="Passes over the train rows.")
    max_steps: int = Field(default=-1, description="Optimizer steps instead of epochs when positive.")
    per_device_train_batch_size: Literal["auto"] | Annotated[int, Field(gt=0)] = Field(
        default=8, description="Rows a batch and device; auto: train_batch_size, in parts where memory is short."
    )
    train_batch_size: int = Field(
        default=16, gt=0, description="Rows an optimizer step of all devices; read where the batch is auto."
    )
    per_device_eval_batch_size: int = Field(default=16, gt=0, description="Rows a batch of the eval loss.")
    gradient_accumulation_steps: int = Field(default=1, gt=0, description="Batches an optimizer step.")
    learning_rate: float = Field(default=2e-4, gt=0, description="Peak; LoRA wants about ten times full fine-tuning's.")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        default="cosine", description="How the rate falls after its peak."
    )
    warmup_steps: int = Field(default=20, ge=0, description="Steps from 0 to the peak rate.")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled, as in AdamW.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients of a larger norm are scaled down to it.")
    grade_weight: float = Field(
        default=1.0, gt=0, description="What a label's tokens count in the training loss; an extraction's count 1."
    )
    optim: str = Field(
        default="adamw_torch", description="TRL's name of the optimizer; adamw_8bit saves memory on CUDA."
    )
    gradient_checkpointing: Literal["auto"] | bool = Field(
        default="auto", description="Less memory for more time; auto: only where the activations do not fit."
    )
    torch_compile: bool = Field(
        default=False, description="Compile the model's blocks at the first batch: seconds lost, then less time a step."
    )
    logging_steps: int = Field(
        default=10, gt=0, description="Steps between two lines of the log, on a GPU between two losses."
    )
    eval_steps: int = Field(default=100, gt=0, description="Steps between two eval losses and checkpoints.")
    save_total_limit: int = Field(default=2, gt=0, description="Checkpoints kept.")
    load_best: bool = Field(
        default=True, description="Save the adapter of the step with the lowest eval loss; else that of the last step."
    )
    early_stopping_patience: int | None = Field(
        default=None, gt=0, description="Stop after this many evaluations in turn without a lower loss; empty: never."
    )
    report_to: tuple[Reporter, ...] = Field(
        default=(), description="Also log there, as TRL does; each needs its package. W&B reads its key itself."
    )

    @property
    def batch_size(self) -> int:
        """`per_device_train_batch_size` once `settle_memory` has decided what was `auto`."""
        rows = self.per_device_train_batch_size
        assert rows != "auto", "settle_memory comes first"
        return rows


class ExportConfig(_Section):
    quantizations: tuple[str, ...] = Field(
        default=("f16", "q8_0", "q4_k_m"), description="GGUF types to ship; f16 is always made first."
    )
    imatrix_rows: int = Field(
        default=256,
        ge=0,
        description="Training rows the importance matrix of types below 5 bits is measured on; 0: none is made.",
    )
    tensor_types: dict[str, str] = Field(
        default={}, description="Types of single tensors by pattern, such as {ffn_down: q6_k}, over the type's own mix."
    )
    num_ctx: int = Field(default=2048, gt=0, description="Context of the Modelfiles, in tokens.")
    num_predict: int = Field(default=512, gt=0, description="Longest answer of the Modelfiles, in tokens.")


class EvaluationConfig(_Section):
    limit: int | None = Field(default=None, gt=0, description="Rows a task at the end of training; empty: all of val.")


class Config(_Section):
    """A whole run. Paths are relative to the folder you run from."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()
    export: ExportConfig = ExportConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.run.output_dir / self.run.name, self.run.name)

    def with_split_files(self, train: Path, val: Path) -> Config:
        """The same run over these split files, made of its raw rows."""
        files = {"train": train, "val": val, "utility": None, "extraction": None}
        data = self.data.model_copy(update=files)
        return self.model_copy(update={"data": data})

    def to_yaml(self) -> str:
        """The resolved values, readable by `load_config`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Without aliases: a few lines of them can stand for more than a machine holds."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not read, write the value", problem_mark=self.get_mark())
        return super().compose_node(parent, index)


def _read_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """The tree, for its lines, and the values. Raises YAMLError for all that is wrong."""
    loader = _Loader(text)
    try:
        tree = loader.get_single_node()
        return tree, loader.construct_document(tree) if tree else None
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="nested too deeply") from None
    except (ValueError, AttributeError, TypeError, KeyError) as error:  # a date that is none, a number too long
        raise yaml.MarkedYAMLError(problem=f"a value that cannot be read ({error})") from None


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and apply `section.key=value` overrides.

    Raises ObserverError listing every fault with its line (or its `--set`) and the nearest valid name.
    """
    text = read_text(path)
    try:
        tree, values = _read_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ObserverError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    values = values or {}
    if not isinstance(values, dict):
        raise ObserverError(f"{path}:1: sections such as `model:` are expected, found a {type(values).__name__}")
    raise_all([f"{path}:{line}: key {key!r} is given twice; keep one" for key, line in _repeated_keys(tree)])
    values = {name: {} if section is None else section for name, section in values.items()}
    places = {key: f"{path}:{line}" for key, line in _lines_of_keys(tree).items()}
    for override in overrides:
        keys = _apply_override(values, override)
        places |= {keys: f"--set {override}", keys[:1]: places.get(keys[:1], f"--set {override}")}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise_all([_explain(fault, places, str(path)) for fault in error.errors()])
        raise


def _apply_override(values: dict[str, Any], override: str) -> tuple[str, ...]:
    name, equals, text = override.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or len(keys) != 2 or not all(keys):
        raise ObserverError(f"--set {override}: `section.key=value` is expected, such as training.learning_rate=1e-4")
    section = values.setdefault(keys[0], {})
    if not isinstance(section, dict):
        raise ObserverError(f"--set {override}: {keys[0]} is no section")
    try:
        _, value = _read_yaml(text)
    except yaml.YAMLError as error:
        raise ObserverError(f"--set {override}: the value is not valid YAML") from error
    section[keys[1]] = value
    return keys


def _lines_of_keys(node: yaml.Node | None, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    lines: dict[tuple[str, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, str(key.value))
            lines[path] = key.start_mark.line + 1
            lines |= _lines_of_keys(value, path)
    return lines


def _repeated_keys(node: yaml.Node | None, prefix: str = "") -> list[tuple[str, int]]:
    """Keys that YAML would overwrite in silence, with the line of the later one."""
    found: list[tuple[str, int]] = []
    seen: set[str] = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = f"{prefix}{key.value}"
        if name in seen:
            found.append((name, key.start_mark.line + 1))
        seen.add(name)
        found += _repeated_keys(value, f"{name}.")
    return found


def _explain(fault: Any, places: dict[tuple[str, ...], str], default_place: str) -> str:
    loc = tuple(str(part) for part in fault["loc"])
    place = next((places[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in places), default_place)
    if fault["type"] != "extra_forbidden":
        return f"{place}: {describe_fault(fault)}"
    key, fields = loc[-1], _keys_of(loc[0]) if len(loc) > 1 else list(Config.model_fields)
    near = difflib.get_close_matches(key, fields, n=1)
    if not near and len(loc) == 1:
        near = [f"{name}.{key}" for name in fields if key in _keys_of(name)][:1]
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(fields)}"
    return f"{place}: unknown key {'.'.join(loc)!r}; {hint}"


@cache
def _keys_of(section: str) -> list[str]:
    return list(type(getattr(Config(), section)).model_fields)
