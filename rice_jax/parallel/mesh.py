"""Devices: the mesh, which parameter is split how, and global arrays from each process's part."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rice_jax.config import ConfigError, MeshConfig

AXES = "data", "fsdp"
BATCH = PartitionSpec(AXES)

# Parameter path → how `fsdp` splits it; blocks carry a leading axis of layers, which stays whole. Every parameter of
# the model matches exactly one rule (tests/test_mesh.py).
PARAMETER_RULES = (
    (r"logit_scale", PartitionSpec()),
    (r"encoder/(class_embedding|position_embedding)", PartitionSpec()),
    (r"encoder/(ln_pre|ln_post)/(scale|bias)", PartitionSpec()),
    (r"encoder/blocks/(ln_1|ln_2)/(scale|bias)", PartitionSpec()),
    (r"encoder/(patch_embedding|projection)/kernel", PartitionSpec("fsdp")),
    (r"encoder/blocks/(qkv|up)/kernel", PartitionSpec(None, "fsdp", None)),
    (r"encoder/blocks/(out|down)/kernel", PartitionSpec(None, None, "fsdp")),
    (r"encoder/blocks/(qkv|up|out|down)/bias", PartitionSpec()),
    (r"pmd/(self_blocks|cross_blocks)/(ln_1|ln_2)/(scale|bias)", PartitionSpec()),
    (r"pmd/(self_blocks|cross_blocks)/(qkv|up)/kernel", PartitionSpec(None, "fsdp", None)),
    (r"pmd/(self_blocks|cross_blocks)/(out|down)/kernel", PartitionSpec(None, None, "fsdp")),
    (r"pmd/(self_blocks|cross_blocks)/(qkv|up|out|down)/bias", PartitionSpec()),
    (r"pmd/ln_pool/(scale|bias)", PartitionSpec()),
    (r"pmd/pool/kernel", PartitionSpec("fsdp")),
    (r"pmd/match_vector", PartitionSpec()),
    (r"pfr/(conv_1|conv_2)/(kernel|bias)", PartitionSpec()),
    (r"detector/(queries|anchors)", PartitionSpec()),
    (r"detector/(ln_input|ln_output)/(scale|bias)", PartitionSpec()),
    (r"detector/(input|position|time|box_1|box_2)/kernel", PartitionSpec("fsdp")),
    (r"detector/(box_3|score)/kernel", PartitionSpec()),
    (r"detector/(input|position|time|box_1|box_2|box_3|score)/bias", PartitionSpec()),
    (r"detector/(layers|temporal_blocks)/(ln_1|ln_2|ln_3)/(scale|bias)", PartitionSpec()),
    (r"detector/layers/(self_attention|cross_attention)/(query|key|value)/kernel", PartitionSpec(None, "fsdp", None)),
    (r"detector/layers/(self_attention|cross_attention)/out/kernel", PartitionSpec(None, None, "fsdp")),
    (r"detector/layers/(self_attention|cross_attention)/(query|key|value|out)/bias", PartitionSpec()),
    (r"detector/(layers|temporal_blocks)/(qkv|up)/kernel", PartitionSpec(None, "fsdp", None)),
    (r"detector/(layers|temporal_blocks)/(out|down)/kernel", PartitionSpec(None, None, "fsdp")),
    (r"detector/(layers|temporal_blocks)/(qkv|up|out|down)/bias", PartitionSpec()),
)


def create_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Devices, all of all processes by default, as `data` × `fsdp`; -1 takes what the other leaves.

    Raises:
        ConfigError: the number of devices is not the product of the two.
    """
    num_devices = jax.device_count() if devices is None else len(devices)
    data = num_devices // config.fsdp if config.data == -1 else config.data
    fsdp = num_devices // config.data if config.fsdp == -1 else config.fsdp
    if data * fsdp != num_devices:
        raise ConfigError(
            f"config.mesh.data and fsdp: found {config.data} and {config.fsdp}, expected {num_devices} devices in all; "
            "-1 for one of them takes what the other leaves"
        )
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the activations of a model live; the models call it where the partitioner needs to be told.

    Attributes:
        mesh: the devices that share a batch; None = everything is in one place.
    """

    mesh: Mesh | None = None

    def constrain(self, x: jax.Array) -> jax.Array:
        """Pins the leading axis of activations to all devices.

        Without it the partitioner may split the width inside a scan over layers.
        """
        # Within `each_device` every device has its own rows, and there is nothing to pin.
        if self.mesh is None or jax.sharding.get_abstract_mesh().manual_axes:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, BATCH))

    def take_rows(self, x: jax.Array, index: jax.Array) -> jax.Array:
        """Takes rows of an array by their numbers in the global batch.

        Every device receives the whole array once and, in the backward pass, sends its share of all gradients once.
        Left to itself, the partitioner moves the array for every use.

        Args:
            x: `[B, ...]`.
            index: rows of x, int32 `[B, K]`.

        Returns:
            `[B, K, ...]`.
        """
        if self.mesh is None:
            return x[index]

        def take(x, index):
            return jax.lax.all_gather(x, AXES, tiled=True)[index]

        return jax.shard_map(take, mesh=self.mesh, in_specs=(BATCH, BATCH), out_specs=BATCH)(x, index)

    def visit_rows(self, look: Callable, guests: PyTree, hosts: PyTree) -> jax.Array:
        """Sends rows of the batch to all devices, and returns to each row the sum of what it got there.

        Args:
            look: function of (all guests, the hosts of one device, the number of the first of these hosts) to an array
                with a row for each guest.
            guests, hosts: trees of arrays with a row for each row of the batch.
        """
        if self.mesh is None:
            return look(guests, hosts, 0)

        def look_here(guests, hosts):
            first = jax.lax.axis_index(AXES) * len(jax.tree.leaves(hosts)[0])
            seen = look(jax.tree.map(lambda x: jax.lax.all_gather(x, AXES, tiled=True), guests), hosts, first)
            return jax.lax.psum_scatter(seen, AXES, tiled=True)

        return jax.shard_map(look_here, mesh=self.mesh, in_specs=(BATCH, BATCH), out_specs=BATCH)(guests, hosts)


ONE_PLACE = Placement()


def each_device(mesh: Mesh):
    """A function that makes one of (params, rows) to rows run on each device by itself, on its part of the batch.

    A parameter's gradient is summed over the devices when all is done, whatever loops there are in between. Parameters
    that are split are gathered first.
    """

    def each(function):
        def run_here(params, rows):
            # From here on every device has its own, so that this is where their gradients meet; else each use would be.
            own = jax.tree.map(lambda x: jax.lax.pcast(x, ("data", "fsdp"), to="varying"), params)
            return function(own, rows)

        return jax.shard_map(run_here, mesh=mesh, in_specs=(PartitionSpec(), BATCH), out_specs=BATCH)

    return each


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh, tree):
    """The sharding of every leaf of a tree whose paths end in a parameter's path.

    Optimiser states hold trees of the parameters' own shapes, so the same rules place them; anything else (a counter)
    is small and replicated. An axis that does not divide by `fsdp` stays whole.
    """

    def place(path, leaf):
        name = path_name(path)
        for pattern, spec in PARAMETER_RULES:
            if re.search(f"(^|/){pattern}$", name):
                return NamedSharding(mesh, _fit(spec, leaf.shape, mesh.shape["fsdp"]))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def path_name(path) -> str:
    """`encoder/blocks/qkv/kernel` from a JAX key path."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def require_even_batch(batch_size: int, mesh: Mesh) -> None:
    """Refuses a training batch that does not divide over the devices.

    Raises:
        ConfigError: naming the nearest sizes that do.
    """
    if rest := batch_size % mesh.size:
        sizes = [size for size in (batch_size - rest, batch_size - rest + mesh.size) if size]
        raise ConfigError(
            f"config.data.batch_size: found {batch_size}, expected a multiple of the {mesh.size} devices; the nearest "
            f"{'are' if len(sizes) > 1 else 'is'} {' and '.join(map(str, sizes))}"
        )


def global_batch(mesh: Mesh, local: Mapping[str, Any]) -> dict[str, Any]:
    """Joins every process's rows to arrays over all devices.

    Raises:
        ConfigError: the global batch does not divide over the devices.
    """
    sharding = NamedSharding(mesh, BATCH)
    require_even_batch(len(jax.tree.leaves(local)[0]) * jax.process_count(), mesh)
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(sharding, value), dict(local))


def _fit(spec: PartitionSpec, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    return PartitionSpec(
        *(axis if axis is None or shape[i] % fsdp == 0 else None for i, axis in enumerate(spec) if i < len(shape))
    )
