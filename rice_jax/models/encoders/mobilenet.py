"""MobileNetV2 as the stem of a vision transformer: the places of its last feature map are the patches.

Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"; Dosovitskiy et al. 2021, "An
Image is Worth 16x16 Words", section 3.1 ("Hybrid Architecture"). Checked against a computation in float64.
Differs: a batch norm is a scale and a bias, which hold its statistics. For patches of 16 pixels the last stride is left
out and the convolutions after it are dilated, as Yu and Koltun 2016 do, "Multi-Scale Context Aggregation by Dilated
Convolutions", so that weights trained with the stride fit.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from rice_jax.config import VitConfig
from rice_jax.ops.matmul import matmul

FIRST, LAST = 32, 1280  # channels after the first and the last convolution


class Stage(NamedTuple):
    """Bottlenecks with equally many channels."""

    expansion: int
    channels: int
    depth: int
    stride: int


STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
LAST_STRIDE = 6  # the stage with it


class Mobilenet(nnx.Module):
    """MobileNetV2 of width 1 without its classifier: a convolution, seven stages of bottlenecks, a convolution."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        """Fresh weights."""
        self.frozen, self.remat, self.dtype = config.frozen_stages, config.remat != "none", config.dtype
        self.stage_0 = Convolution((3, 3, 3, FIRST), config, rngs, stride=2)
        channels = FIRST
        for number, stage in enumerate(STAGES, 1):
            setattr(self, f"stage_{number}", Bottlenecks(channels, number, stage, config, rngs))
            channels = stage.channels
        self.num_stages = len(STAGES) + 2
        setattr(self, f"stage_{len(STAGES) + 1}", Convolution((channels, LAST), config, rngs))

    def __call__(self, pictures: Float[Array, "B S S 3"]) -> Float[Array, "B N 1280"]:
        """The places of the last feature map in reading order."""
        x = pictures.astype(self.dtype)
        for number in range(self.num_stages):
            stage = getattr(self, f"stage_{number}")
            x = nnx.remat(_apply)(stage, x) if self.remat else stage(x)
            if number + 1 == self.frozen:
                x = jax.lax.stop_gradient(x)
        return x.reshape(len(x), -1, LAST)


class Bottlenecks(nnx.Module):
    """The bottlenecks of a stage."""

    def __init__(self, inputs: int, number: int, stage: Stage, config: VitConfig, rngs: nnx.Rngs):
        """Fresh weights of the stage of this number, for a map of `inputs` channels."""
        self.depth = stage.depth
        left_out = config.patch_size < 32 and number >= LAST_STRIDE  # the last stride
        for index in range(stage.depth):
            stride = stage.stride if index == 0 and not left_out else 1
            # The block whose stride is left out still reads places beside each other.
            dilation = 2 if left_out and not (index == 0 and number == LAST_STRIDE) else 1
            block = Bottleneck(inputs, stage, stride, dilation, config, rngs)
            setattr(self, f"block_{index}", block)
            inputs = stage.channels

    def __call__(self, x: Float[Array, "B G G C"]) -> Float[Array, "B K K E"]:
        for index in range(self.depth):
            x = getattr(self, f"block_{index}")(x)
        return x


class Bottleneck(nnx.Module):
    """Widens the channels, filters each of them, and narrows them again."""

    def __init__(self, inputs: int, stage: Stage, stride: int, dilation: int, config: VitConfig, rngs: nnx.Rngs):
        """Fresh weights for a map of `inputs` channels."""
        hidden = inputs * stage.expansion
        self.residual = stride == 1 and inputs == stage.channels
        if stage.expansion > 1:
            self.expand = Convolution((inputs, hidden), config, rngs)
        self.filter = Convolution((3, 3, hidden), config, rngs, stride=stride, dilation=dilation)
        self.project = Convolution((hidden, stage.channels), config, rngs, activate=False)

    def __call__(self, x: Float[Array, "B G G C"]) -> Float[Array, "B K K E"]:
        y = self.expand(x) if hasattr(self, "expand") else x
        y = self.project(self.filter(y))
        return x + y if self.residual else y


class Convolution(nnx.Module):
    """A convolution, a scale and a bias for each channel, and ReLU6."""

    def __init__(
        self,
        shape: tuple[int, ...],
        config: VitConfig,
        rngs: nnx.Rngs,
        *,
        stride: int = 1,
        dilation: int = 1,
        activate: bool = True,
    ):
        """Fresh weights.

        Args:
            shape: of the kernel: [inputs, outputs] of one place, [3, 3, channels] of each channel by itself, or
                [3, 3, inputs, outputs].
            config: has the compute dtype.
            rngs: key stream `params`.
            stride: between places of the output.
            dilation: between places that the kernel reads.
            activate: apply ReLU6.
        """
        self.stride, self.dilation, self.activate, self.dtype = stride, dilation, activate, config.dtype
        inputs = np.prod(shape[:2]) if len(shape) == 3 else np.prod(shape[:-1])
        init = nnx.initializers.normal(float((2 / inputs) ** 0.5))
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.scale = nnx.Param(jnp.ones(shape[-1]))
        self.bias = nnx.Param(jnp.zeros(shape[-1]))

    def __call__(self, x: Float[Array, "B G G I"]) -> Float[Array, "B K K O"]:
        kernel = self.kernel[...]
        scale, bias = (part[...].astype(self.dtype) for part in (self.scale, self.bias))
        if kernel.ndim == 2:
            x = matmul(x, kernel)
        elif kernel.ndim == 4:
            x = convolve(x, kernel.astype(self.dtype), self.stride)
        else:
            x = filter_channels(x, kernel.astype(self.dtype), self.stride, self.dilation)
        x = x * scale + bias
        return jnp.clip(x, 0, 6) if self.activate else x


def convolve(x: Array, kernel: Array, stride: int, dilation: int = 1, groups: int = 1) -> Array:
    """A convolution of [B, G, G, I] by [3, 3, I / groups, O], with zeros around the map."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        2 * ((dilation, dilation),),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def filter_channels(
    x: Float[Array, "B G G C"], kernel: Float[Array, "3 3 C"], stride: int, dilation: int
) -> Float[Array, "B K K C"]:
    """Convolves each channel by itself; on CPUs in another way, since XLA's own takes 7 times as long there."""

    def grouped(x: Array, kernel: Array) -> Array:
        return convolve(x, kernel[:, :, None], stride, dilation, groups=x.shape[-1])

    def shifted(x: Array, kernel: Array) -> Array:
        return add_shifted(x, kernel, stride, dilation)

    return jax.lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def add_shifted(x: Array, kernel: Array, stride: int, dilation: int) -> Array:
    """The convolution as a sum of nine shifted maps."""
    return sum(part * weight for part, weight in zip(_shifts(x, stride, dilation), kernel.reshape(9, -1), strict=True))


def _add_shifted(x: Array, kernel: Array, stride: int, dilation: int) -> tuple[Array, tuple[Array, Array]]:
    return add_shifted(x, kernel, stride, dilation), (x, kernel)


def _add_shifted_gradients(stride: int, dilation: int, inputs: tuple[Array, Array], gradient: Array):
    x, kernel = inputs
    (of_x,) = jax.linear_transpose(lambda x: add_shifted.fun(x, kernel, stride, dilation), x)(gradient)
    # The nine sums in one pass over the maps; as nine reductions, they take most of the time of a step.
    products = [(part * gradient).astype(jnp.float32) for part in _shifts(x, stride, dilation)]
    add = lambda sums, more: [a + b for a, b in zip(sums, more, strict=True)]  # noqa: E731
    of_kernel = jnp.stack(jax.lax.reduce(products, 9 * [jnp.float32(0)], add, (0, 1, 2)))
    return of_x, of_kernel.reshape(kernel.shape).astype(kernel.dtype)


add_shifted.defvjp(_add_shifted, _add_shifted_gradients)


def _shifts(x: Array, stride: int, dilation: int) -> list[Array]:
    """What each of the nine places of a kernel reads, in reading order."""
    side = (x.shape[1] - 1) // stride + 1
    padded = jnp.pad(x, ((0, 0), 2 * (dilation,), 2 * (dilation,), (0, 0)))
    places = [slice(i * dilation, i * dilation + (side - 1) * stride + 1, stride) for i in range(3)]
    return [padded[:, rows, columns] for rows in places for columns in places]


def _apply(stage: nnx.Module, x: Array) -> Array:
    return stage(x)
