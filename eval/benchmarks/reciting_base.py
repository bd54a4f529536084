"""A Qwen3 of full shape that recites one answer, to time extraction where no trained weights can be reached.

Speed depends on the shape, but a grammar costs more when the model's choices break it, as random weights do with
nearly every token. So the random base gets a head of its own in which each token of one valid answer calls the next:
every choice is within the grammar and the answer ends, as with a trained model. The prompt's last line break begins it.
All matrix multiplications are those of the shape; the head is untied, which adds to the file, not to the work.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from eval.answers.origin import STAND_IN_NOTE
from eval.benchmarks.random_base import random_base
from observer.errors import ObserverError
from observer.export.gguf.write import write_gguf
from observer.export.quantize.quantize import quantize
from observer.prompts import IM_END
from observer.weights.gguf_types import UNQUANTIZED

NAME = "Qx7 Zk3 Wv9 Jp5 Xg2 Vb8 Kd4 Hy6 Fq1 Mn0 Tz Rw Uj Bc Lh Ds Pf"
"""It is to stand in what such a model reads: an engine that copies names would refuse it otherwise, token by token."""
ANSWER = f'{{"entities":[{{"name":"{NAME}","type":"Place"}}],"relationships":[]}}'
"""Within the grammar, and made of pieces that need not repeat: 56 tokens of Qwen's vocabulary."""

RECITING = "reciting"
"""What such files' names begin with."""

_EMBEDDING_STD = 1.0
"""Large beside what random layers add, so that the last token read can be told from the last hidden state."""
_PULL = 0.3
_LONGEST_PIECE = 12
WORK = Path("outputs/benchmark-engine")


def note_on(name: str) -> str | None:
    """What the figures of a model of this name do not say; None of one with weights of its own."""
    if name.startswith(RECITING):
        return "random weights with a head that recites one valid extraction: the answers say nothing"
    return STAND_IN_NOTE if "nano" in name else None


def add_model_options(parser: argparse.ArgumentParser, file_type: str) -> argparse._MutuallyExclusiveGroup:
    """What names a reciting model; the group returned takes the option of a real one."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--random-shape", metavar="SHAPE", help="a reciting model instead: 0.6b, 0.6b:block_count=4, …")
    parser.add_argument("--vocab", type=Path, metavar="PATH", help="with --random-shape: a GGUF's tokenizer")
    parser.add_argument("--type", default=file_type, help="with --random-shape; default: %(default)s")
    return group


def reciting_gguf(shape: str, file_type: str, *, vocab: Path | None, work: Path = WORK) -> Path:
    """The GGUF of this shape and type, made when it is not there. Raises ObserverError as `random_base` does."""
    untied = f"{shape}{',' if ':' in shape else ':'}is_tied=0"
    name = "-".join([RECITING, re.sub(r"[^a-z0-9.]+", "-", shape.casefold()), vocab.stem if vocab else "nano-vocab"])
    path = work / f"{name}-{file_type}.gguf"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            merged, full = Path(folder) / "merged", Path(folder) / "full.gguf"
            recite(random_base(untied, vocab=vocab), merged)
            if file_type in UNQUANTIZED:
                write_gguf(merged, path, file_type, name="reciting")
            else:
                write_gguf(merged, full, "f16", name="reciting")
                shutil.rmtree(merged)
                quantize(full, path, file_type)
    return path


def recite(base: Path, out: Path, answer: str = ANSWER) -> Path:
    """A copy of an untied base that goes on from a line break with `answer` and the end token."""
    import torch
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    line_break, end = tokenizer("\n")["input_ids"][-1], tokenizer.convert_tokens_to_ids(IM_END)
    chain = [line_break, *distinct_tokens(answer, tokenizer.get_vocab()), end]
    model: Any = Qwen3ForCausalLM.from_pretrained(
        str(base), dtype="auto", use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    with torch.no_grad():
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.mul_(_EMBEDDING_STD / embedding.float().std())
        for token, following in pairwise(chain):
            head[following] = _PULL * embedding[token]
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def distinct_tokens(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Ids that spell an ASCII text without using one twice, long ones first. Raises ObserverError when none do."""
    pieces = text.replace(" ", "Ġ")  # as a byte-level vocabulary writes it
    chosen: list[int] = []

    def spell(start: int) -> bool:
        if start == len(pieces):
            return True
        for stop in range(min(len(pieces), start + _LONGEST_PIECE), start, -1):
            token = vocabulary.get(pieces[start:stop])
            if token is not None and token not in chosen:
                chosen.append(token)
                if spell(stop):
                    return True
                chosen.pop()
        return False

    if not spell(0):
        raise ObserverError(f"--vocab: its tokens cannot spell {text!r} without using one twice; name Qwen's own")
    return chosen
