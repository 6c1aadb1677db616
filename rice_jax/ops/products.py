"""Products of activations with a layer's weights."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


def product(x: Float[Array, "*B I"], kernel: Float32[Array, "I O"]) -> Float[Array, "*B O"]:
    """Multiplies by weights in the dtype of `x`.

    Products of bfloat16 numbers are summed in float32 and rounded once; the gradient of `x` likewise. On a CPU that
    multiplies bfloat16 numbers itself, the gradient of `kernel` is not rounded to bfloat16.

    Args:
        x: activations, bfloat16 or float32.
        kernel: parameters; rounded to the dtype of `x`.
    """
    return _bfloat16_product(x, kernel) if x.dtype == jnp.bfloat16 else x @ kernel.astype(x.dtype)


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this machine's processor has instructions for products of bfloat16 numbers (AVX512-BF16)."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False


# Differentiated by hand, since otherwise the loop over blocks keeps the rounded weights of each one.
@jax.custom_vjp
def _bfloat16_product(x: Array, kernel: Array) -> Array:
    return _multiply(x, kernel.astype(x.dtype), ((x.ndim - 1,), (0,)), x.dtype)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _bfloat16_product(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    leading = tuple(range(x.ndim - 1))
    of_x = _multiply(gradient, kernel.astype(x.dtype), ((x.ndim - 1,), (1,)), x.dtype)
    return of_x, _multiply(x, gradient, (leading, leading), kernel.dtype)


_bfloat16_product.defvjp(_forward, _backward)


def _multiply(a: Array, b: Array, axes: tuple[tuple[int, ...], tuple[int, ...]], dtype: jnp.dtype) -> Array:
    """Sums over axes of both; of bfloat16 numbers."""

    def multiply(a: Array, b: Array) -> Array:
        return jax.lax.dot_general(a, b, (axes, ((), ()))).astype(dtype)

    def multiply_to_float32(a: Array, b: Array) -> Array:
        return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32).astype(dtype)

    if not multiplies_bfloat16():
        return multiply(a, b)
    # On a CPU, XLA makes both float32 first unless the product is to be float32, which takes twice as long.
    return jax.lax.platform_dependent(a, b, cpu=multiply_to_float32, default=multiply)
