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
from observer.files import read_text, write_json
from observer.paths import PROJECT_ROOT, RunPaths
from observer.prompts import IM_END, Task, exchange_of, render_exchange, render_prompt

if TYPE_CHECKING:
    from observer.backends.hf import HfBackend
    from observer.observation import Completion

REQUIRED_SHARE = 0.99
HOSTILE_TEXT = PROJECT_ROOT / "tests" / "hostile.txt"


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
    from observer.backends.hf import HfBackend
    from observer.engine.engine import Engine

    differences: list[Difference] = []
    options: dict[str, Any] = {"n_threads": n_threads, "max_new_tokens": max_new_tokens}
    with HfBackend(paths.merged, device="cpu", **options) as model, Engine(paths.gguf("f16"), **options) as engine:
        texts = list(dict.fromkeys([*_split_texts(), *(_row_text(row) for row in rows), *_hostile_texts()]))
        differing = [text for text in texts if model.tokens(text) != engine.model.tokenize(text)]
        for task in Task:
            part = of_task(rows, task)
            exchanges = [exchange_of(row) for row in part]
            with show_progress(f"{task} in llama.cpp", len(part)) as progress:
                found = engine.generate(task, exchanges, progress=progress)
            with show_progress(f"{task} in transformers", len(part)) as progress:
                expected = model.generate(task, exchanges, progress)
            for row, reference, gguf in zip(part, expected, found, strict=True):
                if gguf.tokens != reference.tokens:
                    differences.append(_difference(model, row, reference, gguf))
    return Agreement(
        split=split,
        n_rows=len(rows),
        share_identical=1 - len(differences) / len(rows),
        differences=differences,
        n_texts=len(texts),
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


def _difference(model: HfBackend, row: dict[str, Any], reference: Completion, gguf: Completion) -> Difference:
    import torch

    position = first_difference(reference.tokens, gguf.tokens)
    prompt = model.tokens(render_prompt(Task(row["task"]), exchange_of(row)))
    with torch.inference_mode():
        logits = model.model(torch.tensor([[*prompt, *reference.tokens[:position]]])).logits[0, -1]
    (end,) = model.tokens(IM_END)
    preferred, other = ((*answer.tokens, end)[position] for answer in (reference, gguf))
    margin = float(logits[preferred] - logits[other])
    return Difference(row.get("id"), row["task"], position, margin, reference.text, gguf.text)


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
