"""Devices: the mesh, how parameters are split, and global arrays from each process's part."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rice_jax.config import ConfigError, MeshConfig

AXES = "data", "fsdp"
BATCH = PartitionSpec(AXES)

# A parameter with one of these names, the last part of its path, is a matrix, perhaps with leading axes of layers.
SPLIT = "kernel", "embedding"
# Matrices that are not split along their input axis: path → axis, None = whole.
EXCEPTIONS = (
    (r"(out|down)/kernel", -1),  # their output, like the input of the others, has the width of the tokens
    (r"(pfr/.*|detector/(box_3|score))/kernel", None),  # a few numbers
)


def create_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices as `data` × `fsdp`, a group of `fsdp` within a slice (a node, with GPUs) if it fits.

    Args:
        config: sizes of both axes; -1 = as many as the other leaves.
        devices: None = all devices of all processes.

    Raises:
        ConfigError: the number of devices is not the product of the two.
    """
    devices = jax.devices() if devices is None else devices
    num_devices = len(devices)
    data = num_devices // config.fsdp if config.data == -1 else config.data
    fsdp = num_devices // config.data if config.fsdp == -1 else config.fsdp
    if data * fsdp != num_devices:
        raise ConfigError(
            f"config.mesh.data and fsdp: found {config.data} and {config.fsdp}, expected {num_devices} devices in all; "
            "-1 for one of them takes what the other leaves"
        )
    # `jax.make_mesh` takes no devices of several slices, and splits a physical axis only on v5e.
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        arranged = np.array(sorted(devices, key=lambda device: (device.slice_index, device.id))).reshape(data, fsdp)
    else:
        arranged = create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * 2)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the activations of a model are; the models call it where the partitioner needs guidance.

    Attributes:
        mesh: the devices that share a batch; None = one device.
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

    def send_rows(self, function: Callable, sent: PyTree, kept: PyTree) -> jax.Array:
        """Sends rows of the batch to all devices, and sums each row's results over the devices.

        Args:
            function: of (all sent rows, the kept rows of one device, the number of the first of these) to an array with
                a row for each sent row.
            sent, kept: trees of arrays with a row for each row of the batch.

        Returns:
            The sum of the results of all devices, a row for each row of the batch.
        """
        if self.mesh is None:
            return function(sent, kept, 0)

        def apply(sent, kept):
            first = jax.lax.axis_index(AXES) * len(jax.tree.leaves(kept)[0])
            results = function(jax.tree.map(lambda x: jax.lax.all_gather(x, AXES, tiled=True), sent), kept, first)
            return jax.lax.psum_scatter(results, AXES, tiled=True)

        return jax.shard_map(apply, mesh=self.mesh, in_specs=(BATCH, BATCH), out_specs=BATCH)(sent, kept)


ONE_PLACE = Placement()


def each_device(mesh: Mesh):
    """A decorator that runs a function of (params, rows) on each device separately, on its part of the batch.

    A parameter's gradient is summed over the devices once at the end, whatever loops the function has. Parameters that
    are split are gathered first.
    """

    def each(function):
        def run_here(params, rows):
            # Every device has its own copy from here on, so their gradients are summed here and not at each use.
            own = jax.tree.map(lambda x: jax.lax.pcast(x, AXES, to="varying"), params)
            return function(own, rows)

        return jax.shard_map(run_here, mesh=mesh, in_specs=(PartitionSpec(), BATCH), out_specs=BATCH)

    return each


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """The sharding of every leaf of a tree whose paths end in a parameter's path, as those of an optimizer's state do.

    Matrices (`SPLIT`) are split over `fsdp` along their input axis, except for those in `EXCEPTIONS`. All else stays
    whole: vectors, positions, axes of layers, counters, and an axis that does not divide by `fsdp`.

    Splitting each along its largest axis would need no exceptions for blocks, but a step has nearly twice as many
    collectives then: the largest axis of `qkv` joins three projections, and their slices lie across the devices.
    """

    def place(path, leaf) -> NamedSharding:
        axis = _split_axis(path_name(path))
        if axis is None or leaf.ndim < 2 or leaf.shape[axis] % mesh.shape["fsdp"]:
            return replicated(mesh)
        spec: list[str | None] = [None] * leaf.ndim
        spec[axis] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(place, tree)


def abstract_arrays(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shapes of parameters, or of a state, in their place on the mesh: `jax.ShapeDtypeStruct` with a sharding."""
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, tree, parameter_shardings(mesh, tree))


def _split_axis(name: str) -> int | None:
    """The axis that `fsdp` splits of a parameter, counted from the end; None = it stays whole."""
    for pattern, axis in EXCEPTIONS:
        if re.search(f"(^|/){pattern}$", name):
            return axis
    return -2 if name.split("/")[-1] in SPLIT else None


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
    """Joins the rows of all processes to arrays over all devices.

    Raises:
        ConfigError: the global batch does not divide over the devices.
    """
    sharding = NamedSharding(mesh, BATCH)
    require_even_batch(len(jax.tree.leaves(local)[0]) * jax.process_count(), mesh)
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(sharding, value), dict(local))
