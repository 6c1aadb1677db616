import re

import jax
import numpy as np
import pytest
from flax import nnx

from rice_jax.models.rice import Rice
from rice_jax.train.state import create_params
from rice_jax.train.steps import retrieval_loss
from scripts import benchmark
from tests.settings import small_config
from tests.train.test_steps import batch, mesh_of

# Wide enough for matrix products to outweigh what grows with the width and not with its square.
SIZES = {
    "data.batch_size": 4,
    "data.num_frames": 3,
    "data.resize": 32,
    "model.image_size": 32,
    "model.patch_size": 8,
    "model.width": 256,
    "model.layers": 2,
    "model.heads": 4,
    "model.embed_dim": 32,
    "model.pmd.num_heads": 4,
}


def arguments(**more):
    return [f"--config.{name}={value}" for name, value in (SIZES | more).items()]


def test_our_step_does_little_more_than_the_least_and_the_naive_one_much_more(capsys):
    benchmark.main(["flops", *arguments()])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: [float(x) for x in re.findall(r"[\d.]+", line)] for line in lines[1:4]}
    (least, ours, naive) = (np.reshape(rows[name], (3, 2)) for name in ("least", "ours", "naive"))
    np.testing.assert_array_equal(least[:, 1], 1)
    assert np.all(ours[:, 1] > 1) and np.all(ours[:, 1] < 1.05), "of ICL, of PMD and PFR, and of both"
    assert naive[0, 0] == ours[0, 0] and naive[1, 0] > 4 * ours[1, 0]
    terms = sum(float(line.split()[-1]) for line in lines[6:])
    assert terms == pytest.approx(least[2, 0], rel=1e-2)


def test_recomputing_activations_needs_less_memory(capsys):
    benchmark.main(["memory", *arguments(**{"model.layers": 6, "model.width": 32})])
    _, kept, recomputed = (line.split()[1:] for line in capsys.readouterr().out.splitlines())
    assert kept[0] == recomputed[0] and float(recomputed[1]) < 0.5 * float(kept[1])


def test_the_naive_step_computes_the_same():
    config = small_config(data__batch_size=16, model__layers=4, model__pmd__num_pairs=2)
    params = create_params(config.model, mesh_of(1), seed=0)

    def loss_and_gradients(model):
        graphdef = nnx.split(nnx.eval_shape(lambda: model(config.model, rngs=nnx.Rngs(0))))[0]
        loss = lambda params, rows: retrieval_loss(graphdef, params, rows, config.loss)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch())

    def assert_same(ours, naive):
        np.testing.assert_allclose(ours, naive, rtol=1e-4, atol=1e-4 * np.abs(naive).max() + 1e-7)

    jax.tree.map(assert_same, loss_and_gradients(Rice), loss_and_gradients(benchmark.NaiveRice))


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--config.model.widht=3", "ConfigError: config.model: unknown keys ['widht']"),
        ("--config.modle.width=3", 'KeyError: \'Key "modle.width"'),
        ("--config.model.width=x", "ConfigError: config.model.width: found 'x' (str), expected int"),
        ("--config.loss.pmd_weight=0", "ConfigError: config.loss.pmd_weight: found 0, expected more"),
        ("--width=3", "found --width=3, expected --config.x.y=value"),
    ],
)
def test_bad_settings(capsys, flag, expected):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["flops", flag])
    assert expected in f"{stopped.value}{capsys.readouterr().err}"
