"""Model, losses, gradients and optimizer against what the reference implementation computed.

The case of ViT-B/32's sizes takes a minute: `python scripts/check_parity.py ../shared/golden/base.npz`.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from rice_jax.convert.names import REFERENCE_IGNORED
from rice_jax.convert.reference import from_reference, to_reference
from rice_jax.models.rice import Rice
from rice_jax.train.optimizer import create_optimizer, schedule
from scripts import check_parity
from tests.fixtures import run
from tests.golden import oracle
from tests.golden.cases import HERE, SHARED, Case, assert_close, find
from tests.settings import small_config

# Of sizes and settings that no recording has: two pairs of blocks, other heads, padding that is not black …
ODD = dict(
    seed=5, width=24, layers=3, patch=6, image=12, embed=20, clip_heads=3, pmd_layers=2, pmd_heads=4, B=5, F=2,
    n_valid=[2, 1, 2, 1, 2], pad="noise", rec_init="random", logit_scale=3.0, store_weights=True,
)  # fmt: skip
# … and the reference's start of the reconstruction head, a single frame, weights and pictures by recipe.
ONES = dict(
    seed=6, width=32, layers=1, patch=4, image=12, embed=8, clip_heads=2, pmd_layers=1, pmd_heads=8, B=6, F=1,
    n_valid=[1] * 6, pad="zeros", rec_init="ones", logit_scale=4.0, store_weights=False,
)  # fmt: skip
# Small parameters of every part of the decoder and of the head.
DERIVED = (
    "transformer.logit_scale",
    "transformer.heads.vim.weight",
    "transformer.heads.rec.0.weight",
    "transformer.heads.rec.2.weight",
    "transformer.transformer.pooler.layer_norm.bias",
    *(f"transformer.transformer.transformer.layers.{i}.ln_1.weight" for i in range(4)),
)


def check(*paths: Path) -> tuple[int, str, dict[str, list[str]]]:
    """Runs the script; returns its exit code, its last line and, for each case, what it found to be wrong."""
    # Cases are small: optimizing the compiled program would take longer than running it.
    arguments = [sys.executable, "-m", "scripts.check_parity", *map(str, paths)]
    result = run(arguments, XLA_FLAGS="--xla_backend_optimization_level=0")
    wrong = {}
    for line in result.stdout.splitlines():
        if line.endswith(".npz"):
            wrong[Path(line).stem] = found = []
        elif line.startswith("BAD "):
            found.append(line.split()[1].rstrip(":"))
    assert not result.stderr.strip(), result.stderr
    return result.returncode, result.stdout.splitlines()[-1], wrong


def test_model_computes_what_was_recorded():
    """Compares the larger case; the smaller one is compared below, beside damaged copies."""
    code, verdict, wrong = check(find("tiny"))
    assert (code, wrong) == (0, {"tiny": []})
    recorded = [key for key in Case("tiny").recorded if not key.startswith(("params/", "in/"))]
    num_losses = 2 * 4 * 4  # of two optimizers, before each of three updates and after the last
    assert verdict.startswith(f"PASS: {len(recorded) + num_losses} compared, 0 ")


@pytest.mark.parametrize("name", ["micro", "tiny"])
def test_oracle_computes_what_was_recorded(name):
    case = Case(name)
    config = case.facts["config"]
    assert {key: list(shape) for key, shape in oracle.shapes(config).items()} == case.facts["param_shapes"]
    weights, pictures = case.under("params/"), [case.arrays[key] for key in check_parity.INPUTS]
    outputs = oracle.outputs(weights, *pictures, config)
    assert outputs.keys() == case.under("out/").keys()
    for key, value in outputs.items():
        assert_close(value, case.out(key), tolerance=1e-5)
    np.testing.assert_array_equal(outputs["hard_neg_index"], case.out("hard_neg_index"))


def test_oracle_derives_what_was_recorded():
    case = Case("micro")
    weights, pictures = case.under("params/"), [case.arrays[key] for key in check_parity.INPUTS]
    for name in ("transformer.logit_scale", "transformer.heads.rec.0.weight", "transformer.heads.vim.weight"):
        ours = oracle.gradient(weights, name, pictures, case.facts["config"])
        assert_close(ours, case.arrays[f"grad/{name}"], tolerance=1e-5)


def test_model_computes_what_the_oracle_does_at_other_sizes(tmp_path):
    oracle.write_case(tmp_path / "odd.npz", ODD, DERIVED)
    oracle.write_case(tmp_path / "ones.npz", ONES)
    code, verdict, wrong = check(tmp_path / "odd.npz", tmp_path / "ones.npz")
    assert (code, wrong) == (0, {"odd": [], "ones": []})
    assert verdict.startswith(f"PASS: {22 + len(DERIVED) + 22} compared, 0 ")


def test_model_computes_what_was_recorded_and_nothing_else(tmp_path):
    """Of a recording as it is every line holds; a number, an order, an array too many is one that does not."""
    case = Case("micro")
    recorded = case.recorded

    def change(key, edit):
        value = recorded[key].copy()
        edit(value)
        return {key: value}

    def off_by(share):
        def edit(value):
            value.flat[0] += share * np.abs(value).max()

        return edit

    def swap(value):
        value[0, :2] = value[0, 1::-1]

    norm = "transformer.transformer.pooler.layer_norm.weight"
    unused = "transformer.transformer.embeddings.class_embedding"
    wrong = {
        "out/vim_pooled": change("out/vim_pooled", off_by(2e-4)),
        "out/hard_neg_index": change("out/hard_neg_index", swap),
        "grad/transformer.heads.vim.weight": change("grad/transformer.heads.vim.weight", off_by(1e-2)),
        # What half the weight decay would leave.
        f"after3/{norm}": {f"after3/{norm}": recorded[f"after3/{norm}"] + 3e-5 * recorded[f"params/{norm}"]},
        f"after3/{unused}": change(f"after3/{unused}", off_by(1e-6)),
        f"grad/{unused}": {f"grad/{unused}": np.zeros_like(recorded[f"params/{unused}"])},
        "out/unknown": {"out/unknown": np.zeros(1)},
        "out/vic_loss": {"out/vic_loss": np.full((), np.nan)},
    }
    for number, (key, changed) in enumerate(wrong.items()):
        # Updates take long and are in the way of most.
        optimizer = {"after3": case.facts["optimizer"]["after3"]} if key.startswith("after3/") else {}
        kept = {key: x for key, x in recorded.items() if not key.startswith("after3") or key.split("/")[0] in optimizer}
        np.savez(tmp_path / f"{number}.npz", **kept | changed)
        (tmp_path / f"{number}.json").write_text(json.dumps(case.facts | {"optimizer": optimizer}))
    code, verdict, found = check(find("micro"), *(tmp_path / f"{number}.npz" for number in range(len(wrong))))
    assert found == {"micro": []} | {str(number): [key] for number, key in enumerate(wrong)}
    assert code == 1 and verdict.startswith("FAIL: ")


@pytest.mark.parametrize("beta2", [0.98, 0.999])
def test_update_rule_in_float64(beta2):
    """`param_groups.json`'s rule step by step, with gradients small enough that epsilon's place in it shows."""
    rng = np.random.default_rng(0)
    shape = (4, 3)
    params = {"encoder": {"projection": {"kernel": rng.standard_normal(shape), "bias": rng.standard_normal(shape)}}}
    params["pmd"] = {"kernel": rng.standard_normal(shape)}
    settings = dataclasses.replace(
        small_config().optimizer, encoder_learning_rate=1e-2, new_learning_rate=1e-1, beta2=beta2, warmup_steps=0
    )
    optimizer = create_optimizer(settings, total_steps=10**9, pretrained=("encoder",))
    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = optimizer.init(ours)
    update = jax.jit(optimizer.update)
    truth = flatten_dict(params, sep="/")
    first, second = ({path: np.zeros(shape) for path in truth} for _ in range(2))
    for t in range(1, 5):
        gradients = {path: 1e-6 * rng.standard_normal(shape) for path in truth}
        nested = {"encoder": {"projection": {k: gradients[f"encoder/projection/{k}"] for k in ("kernel", "bias")}}}
        nested["pmd"] = {"kernel": gradients["pmd/kernel"]}
        updates, state = update(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), nested), state, ours)
        ours = optax.apply_updates(ours, updates)
        for path, gradient in gradients.items():
            rate = 1e-1 if path.startswith("pmd") else 1e-2
            first[path] = 0.9 * first[path] + 0.1 * gradient
            second[path] = beta2 * second[path] + (1 - beta2) * gradient**2
            step = rate * np.sqrt(1 - beta2**t) / (1 - 0.9**t) * first[path] / (np.sqrt(second[path]) + 1e-6)
            truth[path] = truth[path] - step
            if not path.endswith("bias"):
                truth[path] = truth[path] - rate * 0.2 * truth[path]
    for path, value in flatten_dict(ours, sep="/").items():
        np.testing.assert_allclose(value, truth[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_schedule():
    truth = json.loads((HERE / "schedule.json").read_text())["multiplier"]
    multiplier = schedule(1.0, warmup_steps=500, total_steps=5000)
    for step, expected in truth.items():
        if int(step) <= 5000:
            assert float(multiplier(int(step))) == pytest.approx(expected, abs=2e-7), step
    assert float(multiplier(6000)) == 0.0, "stays at its end, where the reference's rises again"


def test_parameter_groups():
    """Every parameter has the learning rate and the weight decay that its name had in the recording."""
    recorded = json.loads((HERE / "param_groups.json").read_text())["tiny"]["groups"]
    config = ONES | dict(layers=4)
    shapes = oracle.shapes(config)
    assert sorted(name for names in recorded.values() for name in names) == sorted(shapes)
    state = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    params, sizes = from_reference(state, config["clip_heads"])
    optimizer = create_optimizer(check_parity.OPTIMIZER, check_parity.TOTAL_STEPS, Rice.PRETRAINED)
    first_update = jax.jit(lambda gradients: optimizer.update(gradients, optimizer.init(params), params)[0])
    zeros, ones = jax.tree.map(jnp.zeros_like, params), params
    decay, step = (to_reference(first_update(gradients), sizes) for gradients in (zeros, ones))
    for group, names in recorded.items():
        rate, weight_decay = (float(setting.partition("=")[2]) for setting in group.split())
        for name in names:
            if not REFERENCE_IGNORED.fullmatch(name):
                np.testing.assert_allclose(decay[name], -rate * weight_decay, rtol=1e-4, err_msg=name)
                np.testing.assert_allclose(step[name], -rate * (1 + weight_decay), rtol=1e-3, err_msg=name)


def test_shared_cases_are_reported_when_absent():
    if not SHARED.exists():
        pytest.skip("../shared/golden is not beside this checkout: cases tiny and base were not compared")
    assert (SHARED / "tiny.npz").exists() and (SHARED / "base.npz").exists()
