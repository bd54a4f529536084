"""A folder of transformers weights as a backend: a merged model before it is quantized, or a base to compare with.

Only local safetensors, no code of the folder's. Answers are not kept to the schema: there is no grammar here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from observer.errors import ObserverError, RowsError
from observer.observation import EXPECTED_ANSWER, MAX_NEW_TOKENS, Completion, Grade, Progress, grade_of, no_progress
from observer.paths import RunPaths
from observer.prompts import END_OF_TEXT, IM_END, IM_START, NO_EXAMPLES, Examples, Task, render_prompt
from observer.schema import Label
from observer.weights.checkpoint import faults_of_transformers
from observer.weights.tokenizer import read_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_ROWS = 8


class HfBackend:
    """The model on a GPU where there is one, in the weights' own precision; else on the CPU in float32."""

    def __init__(
        self,
        folder: Path,
        *,
        n_threads: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        n_ctx: int | None = None,
        examples: Examples = NO_EXAMPLES,
        device: Literal["cuda", "cpu"] | None = None,
        keep_above: float | None = None,
    ) -> None:
        import torch

        self.name, self.examples, self.max_new_tokens = _name_of(folder), examples, max_new_tokens
        self.keep_above = keep_above
        if n_threads:
            torch.set_num_threads(n_threads)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.tokenizer = _load(folder, self.device)
        vocabulary = self.tokenizer.get_vocab()
        self._end = vocabulary[IM_END]
        ends = (IM_END, END_OF_TEXT, self.tokenizer.eos_token)
        self._ends = [vocabulary[token] for token in ends if token in vocabulary]
        n_own: int = self.model.config.max_position_embeddings
        self.n_ctx = min(n_ctx or n_own, n_own)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights; the backend cannot be used afterwards."""
        del self.model

    @cached_property
    def room(self) -> int:
        """Tokens of the longest exchange after which a usual answer has room."""
        n_around = max(len(self.tokens(render_prompt(task, "", self.examples.get(task, ())))) for task in Task)
        return self.n_ctx - n_around - min(self.max_new_tokens, EXPECTED_ANSWER)

    def n_tokens(self, exchange: str) -> int:
        """How long a rendered exchange is."""
        return len(self.tokens(exchange))

    def grade(self, exchanges: Sequence[str], progress: Progress = no_progress) -> list[Grade]:
        """Score every label as the whole answer, its end token included, as the engine does."""
        answers = [self.tokens(label + IM_END) for label in Label]
        prompts = self._prompts(Task.GRADE, exchanges, max(map(len, answers)))
        grades: dict[int, Grade] = {}
        for batch in _batches(prompts):
            for index, scores in zip(batch, self._score([prompts[i] for i in batch], answers), strict=True):
                shares = scores.softmax(-1).tolist()
                grades[index] = grade_of(dict(zip(Label, shares, strict=True)), self.keep_above)
            progress(len(grades), len(prompts))
        return [grades[index] for index in range(len(prompts))]

    def extract(
        self,
        exchanges: Sequence[str],
        constrained: bool = True,
        progress: Progress = no_progress,
        *,
        logprobs: bool = False,
    ) -> list[Completion]:
        """Greedy answers as the model gives them: `constrained` is not available and changes nothing."""
        prompts = self._prompts(Task.EXTRACT, exchanges, 1)
        completions: dict[int, Completion] = {}
        for batch in _batches(prompts):
            completions |= zip(batch, self._generate([prompts[i] for i in batch], logprobs), strict=True)
            progress(len(completions), len(prompts))
        return [completions[index] for index in range(len(prompts))]

    def _score(self, prompts: list[list[int]], answers: list[list[int]]) -> torch.Tensor:
        """(rows, labels): the log-probability of each label as the whole answer."""
        import torch

        rows = [prompt + answer for prompt in prompts for answer in answers]
        n_kept = max(map(len, answers)) + 1
        ids, mask = self._padded(rows)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            output = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=n_kept)
        chosen = ids[:, -n_kept + 1 :]
        scores = output.logits[:, :-1].float().log_softmax(-1).gather(-1, chosen[..., None])[..., 0].cpu()
        lengths = torch.tensor([len(answer) for answer in answers] * len(prompts))
        is_answer = torch.arange(n_kept - 1, 0, -1) <= lengths[:, None]
        return scores.where(is_answer, 0).sum(-1).view(len(prompts), len(answers))

    def _generate(self, prompts: list[list[int]], logprobs: bool) -> list[Completion]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        ids, mask = self._padded(prompts)
        rooms = [min(self.max_new_tokens, self.n_ctx - len(prompt)) for prompt in prompts]
        config = GenerationConfig(
            do_sample=False, max_new_tokens=max(rooms), eos_token_id=self._ends, pad_token_id=self._end
        )
        highest: list[torch.Tensor] = []

        def note(_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            """Greedy takes the likeliest token, so its log-probability is the highest."""
            if logprobs:
                highest.append(logits.float().log_softmax(-1).amax(-1))
            return logits

        generate: Any = self.model.generate
        with torch.inference_mode():
            output = generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([note]),
            )
        told = torch.stack(highest, -1).tolist() if highest else [None] * len(prompts)
        rows = output[:, ids.shape[1] :].tolist()
        return [self._completion(row[:room], scores) for row, room, scores in zip(rows, rooms, told, strict=True)]

    def _completion(self, row: list[int], scores: list[float] | None) -> Completion:
        n_tokens = next((n for n, token in enumerate(row) if token in self._ends), len(row))
        text = self.tokenizer.decode(row[:n_tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        logprobs = tuple(scores[:n_tokens]) if scores else None
        assert isinstance(text, str)
        return Completion(text, tuple(row[:n_tokens]), n_tokens == len(row), logprobs)

    def _prompts(self, task: Task, exchanges: Sequence[str], n_new: int) -> list[list[int]]:
        examples = self.examples.get(task, ())
        prompts = [self.tokens(render_prompt(task, exchange, examples)) for exchange in exchanges]
        room = self.n_ctx - n_new
        faults = {
            index: f"its prompt has {len(prompt):,} tokens, room for {room:,}; shorten the exchange"
            for index, prompt in enumerate(prompts)
            if len(prompt) > room
        }
        if faults:
            raise RowsError(faults)
        return prompts

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]

    def _padded(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, padded on the left so that all rows end together."""
        import torch

        width = max(map(len, rows))
        ids = torch.tensor([[self._end] * (width - len(row)) + row for row in rows], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device)
        return ids, mask


def _name_of(folder: Path) -> str:
    """The folder's own name, with its run's where every run has one of that name."""
    folder = Path(os.path.abspath(folder))
    return f"{folder.parent.name}-{folder.name}" if folder == RunPaths(folder.parent, "").merged else folder.name


def _load(folder: Path, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Raises ObserverError for a folder that is none, is incomplete, or has another vocabulary."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # two seconds of loading need none
    if not (folder / "config.json").is_file():
        raise ObserverError(f"{folder}: no model (it has no config.json); name a folder such as outputs/RUN/merged")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    dtype: Any = "auto" if device == "cuda" else torch.float32
    tokenizer = read_tokenizer(folder)
    with faults_of_transformers(folder):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map=device, use_safetensors=True, **options
        )
    if missing := [token for token in (IM_START, IM_END) if token not in tokenizer.get_vocab()]:
        raise ObserverError(f"{folder}: its vocabulary lacks {', '.join(missing)}; a ChatML model is expected")
    model.generation_config = GenerationConfig()  # not the folder's, whose penalties would apply to greedy answers too
    return model.eval(), tokenizer


def _batches(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices, longest prompts first: rows of like length pad little."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    return [order[start : start + _BATCH_ROWS] for start in range(0, len(order), _BATCH_ROWS)]
