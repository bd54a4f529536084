"""Make `data/nano-base`: a Qwen3 of a few million parameters that has learned to copy names into JSON.

It stands in for Qwen3-0.6B where no weights can be reached, so that the whole pipeline is real on two cores.
It sees only the generator's `base` families and `base` names: none of them is in the shipped 3,300 rows.

Two lessons on one step budget. First copying: random tokens, then the same again, with two attention heads
shown where to look, so that induction is there after some 200 steps instead of thousands; without it no name
ever reaches the JSON. Then rows of both tasks, without end; the instruction is run once a batch and shared
through the cache. The learning rate holds, then falls to zero over the last 40 %.

    python data/make_nano_base.py --steps 3200        # resumes from outputs/nano-base-work when cut
    python data/make_nano_base.py --start-from data/nano-base --steps 800 --learning-rate 1.5e-3   # new prompts, say
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from observer.console.durations import format_duration
from observer.data.synth.generate import base_rows
from observer.data.synth.pools import POOLS, Draw, values
from observer.data.synth.surface import SLOT, load_sections
from observer.files import atomic_path
from observer.paths import NANO_BASE
from observer.prompts import CUES, SYSTEM_PROMPT, Task, render_prompt, row_completion, row_exchange

WORK = Path("outputs/nano-base-work")
VOCAB_SIZE = 2048
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
COPY_TARGET_NLL = 0.15
"""The copy lesson ends when the repetition is predicted this well (random guessing: 7.5)."""
PREVIOUS_TOKEN_LAYER, INDUCTION_LAYERS, ATTENTION_LOSS_WEIGHT = 0, (1, 2), 0.5
"""Head 0 of these layers is taught to look at the previous token, and behind the earlier occurrence."""
WIDTH_STEP = 16
TEXT_LOSS_WEIGHT = 0.15
"""Weight of the exchange's own tokens beside the answer's: some language modelling helps the words' vectors."""
ANSWER_LOSS_WEIGHT = {Task.GRADE: 5.0, Task.EXTRACT: 1.0}
"""A label is three tokens, a JSON answer sixty."""


def tokenizer_texts() -> Iterator[str]:
    """Words one by one, so that no token ever begins with a space.

    ` Siemens` in a sentence is then a space and the very tokens of `Siemens` in JSON: copying stays copying.
    """
    for section in load_sections().values():
        for family in section.of("base"):
            for text in family.variants:
                yield from SLOT.sub(" ", f"{text} {text} {text} {text[0].upper()}{text[1:]}").split()
        yield from SLOT.sub(" ", " ".join(section.replies)).split()
    for row in itertools.islice(base_rows(), 3000):
        yield re.sub(r'"(name|subject|object|when)":"[^"]*"', r'"\1":""', row_completion(row))
    yield from (" ".join(["USER:", "ASSISTANT:", *CUES.values(), SYSTEM_PROMPT]) + " ").split() * 300
    draw = Draw(random.Random(0), "base")
    for path in sorted(POOLS.glob("*.txt")):
        yield from " ".join(values(path.stem, "base")).split()
    yield from (draw.word().capitalize() for _ in range(2000))


def make_model(tokenizer):
    """A fresh Qwen3 of SHAPE."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **SHAPE,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).float()
    model.set_attn_implementation("eager")  # shows the attention weights; on CPU an eighth faster than sdpa here
    return model


def copy_batches(batch_size: int) -> Iterator[dict]:
    """Random tokens, then the same again; only the repetition is scored."""
    import torch

    generator = torch.Generator().manual_seed(1)
    while True:
        half = int(torch.randint(8, 32, (1,), generator=generator))
        tokens = torch.randint(260, VOCAB_SIZE, (batch_size, half), generator=generator)
        yield {"task": "copy", "ids": torch.cat([tokens, tokens], dim=1)}


def task_batches(tokenizer, batch_size: int, skip: int = 0) -> Iterator[dict]:
    """Single-task batches of rows of like length: the shared instruction's ids, and each row's own ids."""
    import torch

    prefix = _prefix_ids(tokenizer)
    rows = itertools.islice(base_rows(), skip * batch_size, None)
    while True:
        block = list(itertools.islice(rows, batch_size * 16))
        examples: dict[Task, list[tuple[list[int], int]]] = {task: [] for task in Task}
        for row in block:
            task = Task.GRADE if hasattr(row, "label") else Task.EXTRACT
            prompt = tokenizer(render_prompt(task, row_exchange(row)))["input_ids"]
            answer = tokenizer(row_completion(row) + "<|im_end|>")["input_ids"]
            own = prompt[len(prefix) :]
            assert prompt[: len(prefix)] == prefix
            examples[task].append((own + answer, len(own)))
        batches = []
        for task, members in examples.items():
            members.sort(key=lambda member: len(member[0]))
            batches += [(task, members[k : k + batch_size]) for k in range(0, len(members), batch_size)]
        random.Random(len(batches)).shuffle(batches)
        for task, members in batches:
            longest = max(len(ids) for ids, _ in members)
            width = -(-longest // WIDTH_STEP) * WIDTH_STEP  # few widths: kernels are compiled once for each
            ids = torch.full((len(members), width), tokenizer.pad_token_id)
            weights = torch.zeros((len(members), width))
            for k, (own, start) in enumerate(members):
                ids[k, : len(own)] = torch.tensor(own)
                weights[k, 1:start] = TEXT_LOSS_WEIGHT
                weights[k, start : len(own)] = ANSWER_LOSS_WEIGHT[task]
            yield {"task": str(task), "prefix": torch.tensor([prefix]), "ids": ids, "weights": weights}


def _prefix_ids(tokenizer) -> list[int]:
    """Tokens that every prompt begins with, one short of where they may differ."""
    one, other = (tokenizer(render_prompt(Task.GRADE, text))["input_ids"] for text in ("USER: a", "USER: 1"))
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return one[: shared - 1]


def copy_loss(model, batch):
    """NLL of the repetition, and how far the taught heads are from looking where they should."""
    import torch

    ids, half = batch["ids"], batch["ids"].shape[1] // 2
    out = model.model(ids, output_attentions=True)
    logits = model.lm_head(out.last_hidden_state[:, half:-1]).float()
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, half + 1 :].flatten())

    def miss(layer: int, distance: int) -> torch.Tensor:
        weights = out.attentions[layer][:, 0].diagonal(-distance, 1, 2)
        return -weights[:, 1:].float().clamp_min(1e-6).log().mean()

    induction = sum(miss(layer, half - 1) for layer in INDUCTION_LAYERS) / len(INDUCTION_LAYERS)
    return nll + ATTENTION_LOSS_WEIGHT * (miss(PREVIOUS_TOKEN_LAYER, 1) + induction), nll.item()


def task_loss(model, batch):
    """Weighted token-mean NLL; the instruction's keys and values are computed once and keep their gradient."""
    import torch

    ids, weights, offset = batch["ids"], batch["weights"], batch["prefix"].shape[1]
    cache = model.model(batch["prefix"], use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(ids))  # an expanding index: gradients flow back to the prefix
    positions = torch.arange(offset, offset + ids.shape[1] - 1)[None]
    hidden = model.model(ids[:, :-1], past_key_values=cache, position_ids=positions).last_hidden_state
    scored = weights[:, 1:] > 0
    logits = model.lm_head(hidden[scored]).float()
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][scored], reduction="none")
    weight = weights[:, 1:][scored]
    return (losses * weight).sum() / weight.sum(), losses[weight >= 1].detach().mean().item()


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; where it only emulates it, that is 50 times slower than float32."""
    import torch

    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def orthogonalized(grad, coefficients, steps: int, eps: float):
    """torch.optim.Muon's Newton-Schulz iteration in float32 (it computes in bfloat16 whatever the CPU)."""
    import torch

    a, b, c = coefficients
    wide = grad.T if grad.size(0) > grad.size(1) else grad
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if grad.size(0) > grad.size(1) else wide


def make_optimizers(model, learning_rate: float) -> list:
    """Muon for the matrices inside the blocks, AdamW for the rest; both move weights by a like amount."""
    import torch

    if not has_bfloat16():
        from torch.optim import _muon

        _muon._zeropower_via_newtonschulz = orthogonalized
    inner = {name for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name}
    matrices = [p for name, p in model.named_parameters() if name in inner]
    others = [p for name, p in model.named_parameters() if name not in inner]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def rate_factor(step: int, steps: int) -> float:
    """Warm up over 50 steps, hold, fall linearly to zero over the last 40 %."""
    return min(1.0, (step + 1) / 50, max(0.0, (steps - step) / (0.4 * steps)))


def train(steps: int, batch_size: int, learning_rate: float, start_from: Path | None) -> None:
    """Train from scratch, from another base or from the last checkpoint, and write NANO_BASE at the end."""
    import torch
    from transformers import AutoTokenizer

    from observer.weights.tokenizer import build_tokenizer

    WORK.mkdir(parents=True, exist_ok=True)
    if start_from:
        AutoTokenizer.from_pretrained(start_from, local_files_only=True, trust_remote_code=False).save_pretrained(WORK)
    elif not (WORK / "tokenizer.json").exists():
        build_tokenizer(tokenizer_texts(), VOCAB_SIZE).save_pretrained(WORK)
    tokenizer = AutoTokenizer.from_pretrained(WORK, local_files_only=True, trust_remote_code=False)
    model = make_model(tokenizer)
    optimizers = make_optimizers(model, learning_rate)
    first, copied, can_copy = _load_checkpoint(model, optimizers, start_from)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size:,} parameters, {size * 2 / 1e6:.1f} MB in bf16; step {first} of {steps}", flush=True)
    copies, tasks = copy_batches(32), task_batches(tokenizer, batch_size, skip=first - copied)
    recent: dict[str, list[float]] = {}
    made_of = json.loads((start_from / "card.json").read_text()) if start_from else None
    tokens, start = 0, time.monotonic()
    for step in range(first, steps):
        batch = next(tasks if can_copy else copies)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            loss, answer_loss = task_loss(model, batch) if can_copy else copy_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate * rate_factor(step, steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.setdefault(batch["task"], []).append(answer_loss)
        tokens += batch["ids"].numel()
        if not can_copy:
            copied += 1
            can_copy = len(recent["copy"]) >= 5 and sum(recent["copy"][-5:]) < COPY_TARGET_NLL * 5
        if (step + 1) % 25 == 0:
            seconds = time.monotonic() - start
            means = "  ".join(f"{task} {sum(values) / len(values):.4f}" for task, values in sorted(recent.items()))
            left = seconds / (step + 1 - first) * (steps - step - 1)
            print(
                f"step {step + 1:5d}  NLL of answers: {means}  {tokens / seconds:,.0f} tokens/s  "
                f"{format_duration(left)} left",
                flush=True,
            )
            recent = {}
            gc.collect()
        if (step + 1) % 250 == 0:
            _save_checkpoint(model, optimizers, step + 1, copied, can_copy)
    write_base(model, tokenizer, steps, made_of)


def write_base(model, tokenizer, steps: int, made_of: dict | None) -> None:
    """Save bf16 weights, tokenizer and a card; the folder appears whole or not at all."""
    import copy

    import torch

    weights = copy.deepcopy(model).to(torch.bfloat16)
    weights.generation_config.eos_token_id = tokenizer.eos_token_id
    with atomic_path(NANO_BASE) as folder:
        weights.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        card = {"made_by": "data/make_nano_base.py", "steps": steps, "shape": SHAPE, "vocab_size": VOCAB_SIZE}
        card |= {"started_from": made_of} if made_of else {}
        (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"wrote {NANO_BASE}")


def _save_checkpoint(model, optimizers, step: int, copied: int, can_copy: bool) -> None:
    import torch
    from safetensors.torch import save_model

    with atomic_path(WORK / "checkpoint") as folder:
        folder.mkdir()
        save_model(model, str(folder / "model.safetensors"))
        state = {
            "step": step,
            "copied": copied,
            "can_copy": can_copy,
            "optimizers": [o.state_dict() for o in optimizers],
        }
        torch.save(state, folder / "state.pt")


def _load_checkpoint(model, optimizers, start_from: Path | None) -> tuple[int, int, bool]:
    """(steps done, how many of them were copying, whether copying has been learned)"""
    import torch
    from safetensors.torch import load_model

    folder = WORK / "checkpoint"
    if not folder.exists():
        if start_from:
            load_model(model, str(start_from / "model.safetensors"))
        return 0, 0, start_from is not None
    load_model(model, str(folder / "model.safetensors"))
    state = torch.load(folder / "state.pt", weights_only=True)
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["copied"], state["can_copy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3200, help="optimizer steps in all (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="rows a step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak (default %(default)s)")
    parser.add_argument("--start-from", type=Path, metavar="FOLDER", help="go on from a base of the same shape")
    args = parser.parse_args()
    train(args.steps, args.batch_size, args.learning_rate, args.start_from)


if __name__ == "__main__":
    main()
