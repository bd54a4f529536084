"""torch.compile of a model's blocks: what stands between attention and attention in one kernel each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from peft import PeftModel


def compile_blocks(model: PeftModel) -> None:
    """Compile each block for any number of tokens; one compilation serves them all, at its first batch.

    Attention stays as it is: its calls differ with the rows of every batch.
    """
    import torch
    from transformers import AttentionInterface

    from observer.training.batching.attention import FOREST_ATTENTION, forest_attention

    AttentionInterface.register(FOREST_ATTENTION, torch.compiler.disable(forest_attention))
    for block in cast(Any, model.get_base_model()).model.layers:
        block.compile(dynamic=True)
