"""Does the GGUF say what the trained model says? Token ids and greedy answers, transformers against llama.cpp.

    python -m eval.benchmarks.agreement outputs/RUN

Token ids are compared on every row of train and val and on a page of hostile text; greedy answers, without the
grammar, of the merged model in float32 against the f16 GGUF on one split. Exits 1 when token ids differ or fewer
than 99 % of the answers are identical. Writes reports/agreement.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.answers.rows import SPLITS, answer_of, of_task, rows_of_split, take
from observer.console.progress import show_progress
from observer.console.run import run_cli
from observer.data.dataset import read_rows
from observer.errors import ObserverError
from observer.files import read_text, write_json
from observer.paths import PROJECT_ROOT, RunPaths
from observer.prompts import END_OF_TEXT, IM_END, Task, exchange_of, render_exchange, render_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from observer.engine.engine import Engine

REQUIRED_SHARE = 0.99
HOSTILE_TEXT = PROJECT_ROOT / "tests" / "hostile.txt"
BATCH = 16

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Difference:
    """Where two answers part. `margin`: how far transformers prefers its own token there, in logits."""

    id: str | None
    task: str
    position: int
    margin: float
    transformers: str
    gguf: str


@dataclass(frozen=True)
class Agreement:
    """Answers and token ids that agree; `n_texts_differing` counts texts whose token ids differ."""

    split: str
    n_rows: int
    share_identical: float
    differences: list[Difference]
    n_texts: int
    n_texts_differing: int
    first_text_differing: str | None

    @property
    def holds(self) -> bool:
        return self.n_texts_differing == 0 and self.share_identical >= REQUIRED_SHARE


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    args = _parser().parse_args(arguments)
    rows = take(rows_of_split(args.split), args.limit)
    paths = RunPaths(args.run_dir, args.run_dir.resolve().name)
    result = compare(paths, rows, split=args.split, n_threads=args.threads, max_new_tokens=args.max_new_tokens)
    write_json(paths.report("agreement", "json"), asdict(result))
    print(summary(result))
    return 0 if result.holds else 1


def compare(
    paths: RunPaths,
    rows: Sequence[dict[str, Any]],
    *,
    split: str = "val",
    n_threads: int | None = None,
    max_new_tokens: int = 512,
) -> Agreement:
    """Compare the merged model and the f16 GGUF of a run on `rows`, and both tokenizers on every text we have."""
    from observer.engine.engine import Engine

    model, tokenizer = _load_merged(paths.merged, n_threads)
    differences: list[Difference] = []
    with Engine(paths.gguf("f16"), n_threads=n_threads, max_new_tokens=max_new_tokens) as engine:
        texts = [*_split_texts(), *(_row_text(row) for row in rows), *_hostile_texts()]
        differing = [text for text in dict.fromkeys(texts) if _ids(tokenizer, text) != engine.model.tokenize(text)]
        for task in Task:
            part = of_task(rows, task)
            ours, theirs = _answers(engine, model, tokenizer, task, part, max_new_tokens)
            for row, gguf, reference in zip(part, ours, theirs, strict=True):
                if gguf != reference:
                    differences.append(_difference(model, tokenizer, row, reference, gguf))
    return Agreement(
        split=split,
        n_rows=len(rows),
        share_identical=1 - len(differences) / len(rows),
        differences=differences,
        n_texts=len(dict.fromkeys(texts)),
        n_texts_differing=len(differing),
        first_text_differing=differing[0] if differing else None,
    )


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """The first position where the sequences differ; one may end there."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def summary(result: Agreement) -> str:
    """The finding and every differing row, a line each."""
    lines = [
        f"token ids: {result.n_texts - result.n_texts_differing:,} of {result.n_texts:,} texts agree",
        f"greedy answers: {result.share_identical:.2%} of {result.n_rows:,} rows of {result.split} identical "
        f"({REQUIRED_SHARE:.0%} required)",
    ]
    if result.first_text_differing is not None:
        lines.append(f"first text with other token ids: {result.first_text_differing!r}")
    lines += [
        f"{d.id or '-'} {d.task}: token {d.position}, margin {d.margin:.4f}\n"
        f"  transformers {d.transformers}\n  gguf         {d.gguf}"
        for d in result.differences
    ]
    return "\n".join(lines)


def _load_merged(folder: Path, n_threads: int | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").exists():
        raise ObserverError(f"{folder}: no merged model; name a finished run, such as outputs/qwen3-observer-nano")
    if n_threads:
        torch.set_num_threads(n_threads)
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, padding_side="left"
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    return model.eval(), tokenizer


def _answers(
    engine: Engine,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Sequence[dict[str, Any]],
    max_new_tokens: int,
) -> tuple[list[Tokens], list[Tokens]]:
    exchanges = [exchange_of(row) for row in rows]
    with show_progress(f"{task} in llama.cpp", len(rows)) as progress:
        ours = [completion.tokens for completion in engine.generate(task, exchanges, progress=progress)]
    prompts = [_ids(tokenizer, render_prompt(task, exchange)) for exchange in exchanges]
    return ours, _generate(model, tokenizer, prompts, max_new_tokens, f"{task} in transformers")


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    label: str,
) -> list[Tokens]:
    """Greedy answers without their end token, batched by length."""
    import torch
    from transformers import GenerationConfig

    ends = tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT])
    assert isinstance(ends, list)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, Tokens] = {}
    with torch.inference_mode(), show_progress(label, len(prompts)) as progress:
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            batch = tokenizer.pad({"input_ids": [prompts[index] for index in chosen]}, return_tensors="pt")
            output = model.generate(**batch, generation_config=config)  # type: ignore[operator]
            for index, tokens in zip(chosen, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                n_tokens = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
                answers[index] = tuple(tokens[:n_tokens])
            progress(len(answers), len(prompts))
    return [answers[index] for index in range(len(prompts))]


def _difference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], reference: Tokens, gguf: Tokens
) -> Difference:
    import torch

    position = first_difference(reference, gguf)
    prompt = _ids(tokenizer, render_prompt(Task(row["task"]), exchange_of(row)))
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + list(reference[:position])])).logits[0, -1]
    end = tokenizer.convert_tokens_to_ids(IM_END)
    assert isinstance(end, int)
    preferred, other = ((*tokens, end)[position] for tokens in (reference, gguf))
    texts = [str(tokenizer.decode(list(tokens))) for tokens in (reference, gguf)]
    return Difference(row.get("id"), row["task"], position, float(logits[preferred] - logits[other]), *texts)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


def _row_text(row: dict[str, Any]) -> str:
    return render_prompt(Task(row["task"]), exchange_of(row)) + answer_of(row) + IM_END


def _split_texts() -> list[str]:
    """Prompt and answer of every row of every named split, where these are."""
    present = [path for paths in SPLITS.values() for path in paths if path.exists()]
    return [_row_text(row) for path in present for row in read_rows(path)]


def _hostile_texts() -> list[str]:
    """The hostile page line by line and as one message."""
    if not HOSTILE_TEXT.exists():
        print(f"{HOSTILE_TEXT.name}: not there; token ids are compared on the rows alone", file=sys.stderr)
        return []
    page = read_text(HOSTILE_TEXT)
    messages = [line for line in page.splitlines() if line.strip()] + [page]
    return [render_prompt(task, render_exchange(message, "")) for task in Task for message in messages]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a finished run, such as outputs/NAME")
    parser.add_argument("--split", default="val", metavar="val|train|FILE.jsonl", help="rows to answer (val)")
    parser.add_argument("--limit", type=int, metavar="N", help="rows of each task, evenly spread (all)")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (512)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of both (all cores)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(run_cli(main))
