"""Products of activations with a layer's weights."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32


def matmul(x: Float[Array, "*B I"], kernel: Float32[Array | np.ndarray, "I O"]) -> Float[Array, "*B O"]:
    """Multiplies by weights in the dtype of `x`.

    Products of bfloat16 numbers are summed in float32 and rounded once. So are their gradients; on a CPU, that of
    `kernel` is not rounded.

    Args:
        x: activations, bfloat16 or float32.
        kernel: parameters; rounded to the dtype of `x`.
    """
    return _bfloat16_matmul(x, kernel) if x.dtype == jnp.bfloat16 else x @ kernel.astype(x.dtype)


def platform() -> str:
    """The platform that programs are traced for."""
    return jax.default_backend()


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this machine's processor has instructions for products of bfloat16 numbers (AVX512-BF16)."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False


# Differentiated by hand: otherwise the loop over blocks would keep a bfloat16 copy of every block's weights.
@jax.custom_vjp
def _bfloat16_matmul(x: Array, kernel: Array) -> Array:
    return _multiply(x, kernel.astype(x.dtype), ((x.ndim - 1,), (0,)), x.dtype)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _bfloat16_matmul(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    leading = tuple(range(x.ndim - 1))
    of_x = _multiply(gradient, kernel.astype(x.dtype), ((x.ndim - 1,), (1,)), x.dtype)
    return of_x, _multiply(x, gradient, (leading, leading), kernel.dtype)


_bfloat16_matmul.defvjp(_forward, _backward)


def _multiply(a: Array, b: Array, axes: tuple[tuple[int, ...], tuple[int, ...]], dtype: jnp.dtype) -> Array:
    """The product of two bfloat16 arrays, summed over the given axes of each."""
    if platform() != "cpu":
        return jax.lax.dot_general(a, b, (axes, ((), ()))).astype(dtype)
    # Asked for a bfloat16 result, XLA would convert both to float32 even where the processor need not.
    if not multiplies_bfloat16():
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32).astype(dtype)
