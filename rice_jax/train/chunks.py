"""Encodes batches in chunks, for losses over batches whose activations do not fit into memory together."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

Function = Callable[[PyTree, PyTree], Any]


def in_chunks(encode: Function, num_chunks: int, each_part: Callable[[Function], Function]) -> Function:
    """Makes a function encode its rows in chunks, one after the other, and again for the gradients.

    Only the activations of one chunk are in memory at a time, beside the outputs of all rows, which are a hundredth of
    their size. So a loss over the global batch needs the memory of a chunk.

    Args:
        encode: function of (params, rows) to a tree of arrays with a row for each row.
        num_chunks: 1 = all rows at once.
        each_part: makes a function of (params, rows) run on each device separately (`parallel.mesh.each_device`), so
            that gradients are summed over the devices once and not for every chunk.

    Returns:
        A function like `encode`, with the same outputs and gradients.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache).
    Differs: the second pass is rematerialization, so any output may be kept, tokens too.
    """
    if num_chunks == 1:
        return encode

    def encode_chunks(params: PyTree, rows: PyTree) -> Any:
        chunks = jax.tree.map(lambda x: x.reshape(num_chunks, -1, *x.shape[1:]), rows)
        # In a loop the compiler cannot merge the second pass with the first.
        checkpointed = jax.checkpoint(lambda rows: encode(params, rows), prevent_cse=False)
        encoded = jax.lax.map(checkpointed, chunks)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), encoded)

    return each_part(encode_chunks)
