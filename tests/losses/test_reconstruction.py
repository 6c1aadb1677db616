import jax
import jax.numpy as jnp
import numpy as np

from rice_jax.losses.reconstruction import reconstruction_loss


def test_value_and_gradient():
    rng = np.random.default_rng(0)
    reconstruction, target = rng.standard_normal((2, 3, 4, 5))
    arguments = jnp.asarray(reconstruction, jnp.float32), jnp.asarray(target, jnp.float32)
    loss, (gradient, of_target) = jax.value_and_grad(reconstruction_loss, argnums=(0, 1))(*arguments)
    np.testing.assert_allclose(loss, ((reconstruction - target) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * (reconstruction - target) / target.size, rtol=1e-4, atol=1e-7)
    assert not np.any(of_target), "the target stands still"


def test_target_in_bfloat16_counts_in_float32():
    target = jnp.full((1, 2, 3), 1.0, jnp.bfloat16)
    loss = reconstruction_loss(jnp.full((1, 2, 3), 1.001, jnp.float32), target)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 1e-6, rtol=1e-3)
