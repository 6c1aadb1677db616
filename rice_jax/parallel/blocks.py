"""Pairs of rows of a batch with each other or with classes, of which no device holds a number for each."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rice_jax.parallel.mesh import AXES, BATCH

MAX_ROWS = 1024  # of the others that meet a device's own rows at once


def fold_pairs(mesh: Mesh, max_rows: int = MAX_ROWS):
    """Folds a function over blocks of pairs: a device's own rows meet those of all devices, a part at a time.

    The others' rows travel round the devices in a ring, so a device holds those of one device and sends them on. For
    its gradients a block is computed again.

    Args:
        mesh: the devices that share the batch.
        max_rows: largest number of other rows in a block.

    Returns:
        A function of (function, shared, start, own, others) to the last result. `function` is one of (shared, result,
        own rows, other rows) to the next result. The rows are trees of arrays with a row for each row of the batch,
        and so are `start` and the results, for the own rows; `shared` is the same everywhere.
    """

    def fold(function: Callable, shared: PyTree, start: PyTree, own: PyTree, others: PyTree) -> PyTree:
        function = jax.checkpoint(function)

        def visit(shared: PyTree, result: PyTree, own: PyTree, others: PyTree) -> PyTree:
            num_blocks, rest = divmod(len(jax.tree.leaves(others)[0]), max_rows)
            size = num_blocks * max_rows
            blocks = jax.tree.map(lambda x: x[:size].reshape(num_blocks, max_rows, *x.shape[1:]), others)
            if num_blocks:
                result, _ = jax.lax.scan(lambda x, block: (function(shared, x, own, block), None), result, blocks)
            return function(shared, result, own, jax.tree.map(lambda x: x[size:], others)) if rest else result

        def travel(shared: PyTree, start: PyTree, own: PyTree, others: PyTree) -> PyTree:
            shared = jax.tree.map(lambda x: jax.lax.pcast(x, AXES, to="varying"), shared)
            steps = [(device, (device + 1) % mesh.size) for device in range(mesh.size)]

            def step(carry: tuple, _) -> tuple[tuple, None]:
                result, others = carry
                others = jax.tree.map(lambda x: jax.lax.ppermute(x, AXES, steps), others)
                return (visit(shared, result, own, others), others), None

            first = visit(shared, start, own, others)
            (result, _), _ = jax.lax.scan(step, (first, others), length=mesh.size - 1)
            return result

        specs = PartitionSpec(), BATCH, BATCH, BATCH
        return jax.shard_map(travel, mesh=mesh, in_specs=specs, out_specs=BATCH)(shared, start, own, others)

    return fold


def split_classes(mesh: Mesh):
    """Splits an array `[rows, …, classes]`: rows over `data`, classes over `fsdp`, as the classes' parameters are.

    A sum over classes is then one of each device's own classes, and of these sums. An axis that does not divide stays
    whole.

    Returns:
        A function of the array.
    """

    def split(x: jax.Array) -> jax.Array:
        sizes = zip(AXES, (x.shape[0], x.shape[-1]), strict=True)
        rows, classes = (axis if size % mesh.shape[axis] == 0 else None for axis, size in sizes)
        spec = PartitionSpec(rows, *[None] * (x.ndim - 2), classes)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return split


def take_classes(mesh: Mesh):
    """Takes rows of the classes' parameters, which are split over `fsdp`, and splits what it takes in the same way.

    Left to itself, the partitioner sums the gradient of all classes over the devices.

    Returns:
        A function of (parameters `[C, E]`, numbers of rows `[K]`) to `[K, E]`.
    """
    devices = mesh.shape["fsdp"]

    def take_own(rows: jax.Array, number: jax.Array) -> jax.Array:
        place = number - jax.lax.axis_index("fsdp") * len(rows)
        is_own = (place >= 0) & (place < len(rows))
        own = jnp.where(is_own[:, None], rows[jnp.clip(place, 0, len(rows) - 1)], 0)
        return jax.lax.psum_scatter(own, "fsdp", tiled=True)

    def take(rows: jax.Array, number: jax.Array) -> jax.Array:
        if len(rows) % devices or len(number) % devices:
            return rows[number]
        split = PartitionSpec("fsdp")
        return jax.shard_map(take_own, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split)(rows, number)

    return take
