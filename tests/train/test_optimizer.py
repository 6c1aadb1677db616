import jax
import jax.numpy as jnp
import numpy as np
import optax

from rice_jax.config import MeshConfig, OptimizerConfig
from rice_jax.models.create import create_params
from rice_jax.parallel.mesh import create_mesh, replicated
from rice_jax.train.optimizer import create_optimizer, learning_rate_groups, learning_rates, split_gradients
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


def test_kind_adamw_takes_its_published_step_with_three_rates_and_clips_all_but_the_classes():
    """The first step, with an epsilon so large that the step tells the size of the clipped gradient."""
    rates = {"text": 0.1, "encoder": 0.2, "head": 0.3, "classes": 0.3}
    params = {part: {"bias": jnp.array([1.0, -2.0])} for part in rates}
    gradients = {part: {"bias": jnp.array([3.0, 4.0])} for part in rates}
    config = OptimizerConfig(
        kind="adamw",
        text_learning_rate=0.1,
        encoder_learning_rate=0.2,
        new_learning_rate=0.3,
        epsilon=1.0,
        weight_decay=0.01,
        clip_norm=1.0,
        warmup_steps=0,
    )
    optimizer = create_optimizer(config, 10**9, ("encoder", "text"))
    steps, _ = optimizer.update(gradients, optimizer.init(params), params)
    norm = (3 * 25) ** 0.5  # of all but the classes
    for part, rate in rates.items():
        gradient = np.array([3.0, 4.0]) / (1 if part == "classes" else norm)
        expected = -rate * (gradient / (gradient + 1) + 0.01 * np.array([1.0, -2.0]))
        np.testing.assert_allclose(steps[part]["bias"], expected, rtol=1e-5)


def test_a_text_tower_has_the_rate_of_pretrained_parts_unless_it_has_its_own():
    """The state of runs without it, which checkpoints hold by these names, stays as it was."""
    shared, own = (OptimizerConfig(text_learning_rate=rate, warmup_steps=10) for rate in (0.0, 0.5))
    assert set(learning_rates(shared, 100)) == {"encoder", "new"}
    assert learning_rate_groups(("encoder", "text"), {"text": 0.0}) == {"text": "encoder"}
    rate = learning_rates(own, 100)["text"]
    assert rate(10) == 0.5 and rate(100) == rate(200) == 0
