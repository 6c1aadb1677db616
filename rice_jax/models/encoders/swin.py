"""Swin transformers: pictures in, a feature out; `SwinConfig` has the sizes.

Source: Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows". Checked against
transformers' `SwinModel`.
Differs: a window is never larger than the grid, so that any size of picture fits; a projection of the pooled patches.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from rice_jax.config import ConfigError, SwinConfig, VitConfig
from rice_jax.models.encoders.vit import REMAT_POLICIES, patchify
from rice_jax.models.layers import BlockLayers, Linear, layer_norm, linear, stack
from rice_jax.parallel.mesh import ONE_PLACE, Placement


class Swin(nnx.Module):
    """Encoder whose patches attend to each other within windows, and are merged from stage to stage."""

    def __init__(self, config: SwinConfig, *, placement: Placement = ONE_PLACE, rngs: nnx.Rngs):
        """Builds the encoder with fresh weights.

        Args:
            config: sizes, compute dtype and rematerialization.
            placement: of the activations of every block, `[pictures, G, G, D]`.
            rngs: key stream `params`.
        """
        self.config = config
        self.placement = placement
        self.patch_embedding = Linear(3 * config.patch_size**2, config.width, dtype=config.dtype, rngs=rngs)
        self.ln_pre = layer_norm(_sizes(config, 0), rngs)
        for number in range(len(config.stages)):
            setattr(self, f"stage_{number}", Stage(config, number, placement, rngs))
        last = _sizes(config, -1)
        self.ln_post = layer_norm(last, rngs)
        if config.embed_dim != last.width:
            # Keeps angles as far as a projection can, so that pretrained features are of use from the start.
            init = nnx.initializers.orthogonal()
            self.projection = linear(last, last.width, config.embed_dim, init, rngs, use_bias=False)

    def __call__(
        self, pictures: Float[Array, "B S S 3"], patch_mask: Bool[Array, "B N"] | None = None
    ) -> tuple[Float[Array, "B 1 D"], Float[Array, "B E"]]:
        """Encodes pictures.

        Args:
            pictures: normalized as `config.pixels` says, square, side `config.image_size`.
            patch_mask: None; windows cannot leave out patches.

        Returns:
            tokens: the picture's summary alone, the mean of the last stage's patches, since nothing may attend to
                patches of this encoder.
            feature: the summary's projection, or the summary, not normalized, in the compute dtype.
        """
        if patch_mask is not None:
            raise ConfigError(
                "config.model.architecture='swin' cannot leave out patches; set config.model.ipd_use='crop'"
            )
        x = self.embed(pictures)
        for number in range(len(self.config.stages)):
            x = getattr(self, f"stage_{number}")(x)
        _, pooled = self.summarize(x)
        return pooled[:, None], self.projection(pooled) if hasattr(self, "projection") else pooled

    @staticmethod
    def fit(params: PyTree, config: SwinConfig) -> PyTree:
        """Positions are relative to each other, and so fit any size of picture."""
        return params

    def embed(self, pictures: Float[Array, "B S S 3"]) -> Float[Array, "B G G D"]:
        """The input of the first stage."""
        x = self.patch_embedding(patchify(pictures.astype(self.config.dtype), self.config.patch_size))
        grid = self.config.image_size // self.config.patch_size
        return self.ln_pre(x).reshape(len(x), grid, grid, -1)

    def summarize(self, x: Float[Array, "B G G D"]) -> tuple[Float[Array, "B N D"], Float[Array, "B D"]]:
        """The normalized patches and their mean, from the last stage's output."""
        patches = self.ln_post(x).reshape(len(x), -1, x.shape[-1])
        return patches, patches.mean(axis=1)


class Stage(nnx.Module):
    """Blocks with plain and shifted windows in turn, and the merging of patches unless it is the last stage."""

    def __init__(self, config: SwinConfig, number: int, placement: Placement, rngs: nnx.Rngs):
        """Fresh weights of the stage of this number."""
        self.config, self.placement, (self.depth, *_) = config, placement, config.stages[number]
        sizes = _sizes(config, number)
        self.blocks = stack(lambda rngs: WindowBlock(sizes, config.window, rngs), self.depth, rngs)
        if number < len(config.stages) - 1:
            self.merge = Merge(sizes, rngs)

    def __call__(self, x: Float[Array, "B G G D"]) -> Float[Array, "B K K C"]:
        x = self.apply_blocks(x)
        return self.merge(x) if hasattr(self, "merge") else x

    def apply_blocks(self, x: Float[Array, "B G G D"]) -> Float[Array, "B G G D"]:
        """Pairs of a plain and a shifted block are scanned; a last plain one may be left."""
        config, constrain = self.config, self.placement.constrain
        graphdef, state = nnx.split(self.blocks)
        side = min(config.window, x.shape[1])
        shift = config.window // 2 if side < x.shape[1] else 0

        def apply(x: Array, state: PyTree, shift: int) -> Array:
            return constrain(nnx.merge(graphdef, state)(constrain(x), side, shift))

        def pair(x: Array, states: PyTree) -> tuple[Array, None]:
            for number, by in enumerate((0, shift)):
                x = apply(x, jax.tree.map(lambda leaf, number=number: leaf[number], states), by)
            return x, None

        if config.remat != "none":
            policy = REMAT_POLICIES[config.remat]
            apply = jax.checkpoint(apply, policy=policy, static_argnums=2)
        half = self.depth // 2
        if half:
            pairs = jax.tree.map(lambda leaf: leaf[: 2 * half].reshape(half, 2, *leaf.shape[1:]), state)
            x, _ = jax.lax.scan(pair, x, pairs, unroll=half if config.unroll else 1)
        return apply(x, jax.tree.map(lambda leaf: leaf[-1], state), 0) if self.depth % 2 else x


class WindowBlock(BlockLayers):
    """Pre-norm self attention within windows and an MLP, both residual."""

    def __init__(self, sizes: VitConfig, window: int, rngs: nnx.Rngs):
        """Fresh weights, with a bias for each pair of places in a window and each head."""
        super().__init__(sizes, rngs)
        self.window = window
        normal = nnx.initializers.normal(0.02)
        self.position_bias = nnx.Param(normal(rngs.params(), ((2 * window - 1) ** 2, sizes.heads)))

    def __call__(self, x: Float[Array, "B G G D"], side: int, shift: int) -> Float[Array, "B G G D"]:
        """Updates all patches.

        Args:
            x: the patches in their places. The grid is filled up with zeros to a multiple of `side`; as in the
                original, patches attend to these.
            side: of the windows, `window` at most.
            shift: of the windows, down and to the right; 0 = none.
        """
        batch, grid, _, width = x.shape
        padding = -grid % side
        normed = jnp.pad(self.ln_1(x), ((0, 0), (0, padding), (0, padding), (0, 0)))
        windows = to_windows(jnp.roll(normed, (-shift, -shift), axis=(1, 2)), side)  # [B, W, L, D]
        projected = self.project_all(windows.reshape(-1, *windows.shape[2:]))
        q, k, v = (x.reshape(*windows.shape[:3], self.heads, -1) for x in projected)
        scores = jnp.einsum("bwlhc,bwmhc->bwhlm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        scores += jnp.moveaxis(self.position_bias[...][relative_places(side, self.window)], -1, 0)
        if shift:
            scores = jnp.where(same_region(grid + padding, side, shift)[:, None], scores, -jnp.inf)
        attended = jnp.einsum("bwhlm,bwmhc->bwlhc", jax.nn.softmax(scores).astype(v.dtype), v)
        places = jnp.roll(from_windows(attended.reshape(windows.shape), grid + padding), (shift, shift), axis=(1, 2))
        attended = places[:, :grid, :grid].reshape(batch, grid * grid, self.heads, -1)
        return self.residuals(x.reshape(batch, grid * grid, width), attended).reshape(x.shape)


class Merge(nnx.Module):
    """Makes one patch of twice the width of every four."""

    def __init__(self, sizes: VitConfig, rngs: nnx.Rngs):
        """Fresh weights for patches of `sizes.width`."""
        width, dtype = sizes.width, sizes.dtype
        self.ln = nnx.LayerNorm(4 * width, epsilon=sizes.epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)
        self.reduce = linear(sizes, 4 * width, 2 * width, nnx.initializers.normal(0.02), rngs, use_bias=False)

    def __call__(self, x: Float[Array, "B G G D"]) -> Float[Array, "B K K C"]:
        """A grid of odd side is filled up with zeros."""
        odd = x.shape[1] % 2
        x = jnp.pad(x, ((0, 0), (0, odd), (0, odd), (0, 0)))
        four = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.ln(jnp.concatenate(four, axis=-1)))


def to_windows(x: Float[Array, "B P P D"], side: int) -> Float[Array, "B W L D"]:
    """Cuts a grid into windows, both in reading order."""
    batch, grid, _, width = x.shape
    windows = x.reshape(batch, grid // side, side, grid // side, side, width).swapaxes(2, 3)
    return windows.reshape(batch, -1, side * side, width)


def from_windows(windows: Float[Array, "B W L D"], grid: int) -> Float[Array, "B P P D"]:
    """The inverse of `to_windows`."""
    batch, _, places, width = windows.shape
    side = round(places**0.5)
    x = windows.reshape(batch, grid // side, grid // side, side, side, width).swapaxes(2, 3)
    return x.reshape(batch, grid, grid, width)


def relative_places(side: int, window: int) -> np.ndarray:
    """The row of the table of biases for each pair of places in a window of `side`, which may be a part of `window`."""
    places = np.stack(np.meshgrid(*2 * (np.arange(side),), indexing="ij"), axis=-1).reshape(-1, 2)
    rows, columns = np.moveaxis(places[:, None] - places, -1, 0) + window - 1
    return rows * (2 * window - 1) + columns


def same_region(grid: int, side: int, shift: int) -> np.ndarray:
    """Which places of each window of a shifted grid were neighbors before the shift: bool [W, L, L]."""
    region = np.zeros(grid, int)
    region[grid - side :], region[grid - shift :] = 1, 2
    windows = (3 * region[:, None] + region).reshape(grid // side, side, grid // side, side).swapaxes(1, 2)
    regions = windows.reshape(-1, side * side)
    return regions[:, :, None] == regions[:, None]


def _sizes(config: SwinConfig, number: int) -> VitConfig:
    """What the layers of a stage share with those of a ViT."""
    _, heads, width = config.stages[number]
    return VitConfig(
        width=width,
        heads=heads,
        layers=sum(depth for depth, _, _ in config.stages),
        mlp_ratio=config.mlp_ratio,
        activation=config.activation,
        epsilon=config.epsilon,
        dtype=config.dtype,
    )
