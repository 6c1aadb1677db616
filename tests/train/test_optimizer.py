import jax
import jax.numpy as jnp
import optax

from rice_jax.config import MeshConfig
from rice_jax.models.create import create_params
from rice_jax.parallel.mesh import create_mesh, replicated
from rice_jax.train.optimizer import learning_rate_groups, split_gradients
from tests.settings import model_of, small_config


def test_gradients_are_split_like_their_parameters():
    mesh = create_mesh(MeshConfig(data=2, fsdp=4))
    params = create_params(model_of(small_config()), mesh, seed=0)

    def gradients(params):
        whole = jax.grad(lambda params: sum(jnp.sum(x**2) for x in jax.tree.leaves(params)))(params)
        whole = jax.lax.with_sharding_constraint(whole, replicated(mesh))
        return split_gradients(optax.identity(), mesh).update(whole, optax.EmptyState())[0]

    for parameter, gradient in zip(jax.tree.leaves(params), jax.tree.leaves(jax.jit(gradients)(params)), strict=True):
        assert gradient.sharding.is_equivalent_to(parameter.sharding, gradient.ndim)


def test_paths_within_pretrained_parts_may_be_new():
    params = {"encoder": {"blocks": {"message": {"out": 0.0}, "out": 0.0}, "integration": 0.0}, "head": 0.0}
    new = ("encoder/blocks/message", "encoder/integration")
    encoder = {"blocks": {"message": {"out": "new"}, "out": "encoder"}, "integration": "new"}
    assert learning_rate_groups(("encoder",), params, new) == {"encoder": encoder, "head": "new"}
    assert learning_rate_groups(("encoder",), params)["encoder"]["integration"] == "encoder"
