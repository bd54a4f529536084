"""torch.compile of a model's blocks: what stands between attention and attention in one kernel each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from peft import PeftModel


def compile_blocks(model: PeftModel, backend: str = "inductor") -> None:
    """Compile each block for any number of tokens; one compilation serves them all, at its first batch.

    Attention is compiled with it where it is one call, and stays as it is where its calls differ with every batch.
    """
    for block in cast(Any, model.get_base_model()).model.layers:
        block.compile(dynamic=True, backend=backend)
