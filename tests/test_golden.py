"""Encoder, ICL, its gradients and the optimiser against what the reference implementation computed."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from rice_jax.losses.contrastive import contrastive_loss
from rice_jax.models.rice import Rice, embed, embed_frames
from rice_jax.train.optimizer import create_optimizer, learning_rate_groups, schedule
from tests.golden.cases import HERE, SHARED, Case, assert_close, relative_l2
from tests.settings import small_config

CASES = ["micro", "tiny", "base"]


def icl(case: Case):
    """Parameters, and a function of them that gives the loss and everything on the way to it."""
    params, config = case.params()
    image, video, frame_mask = case.pictures()
    graphdef = nnx.split(Rice(config, rngs=nnx.Rngs(0)))[0]

    def compute(params):
        model = nnx.merge(graphdef, params)
        batch, frames = frame_mask.shape
        pictures = jnp.concatenate([image[:, None], video], axis=1).reshape(-1, *image.shape[1:])
        tokens, features = model.encoder(pictures)
        tokens = tokens.reshape(batch, 1 + frames, *tokens.shape[1:])
        features = features.reshape(batch, 1 + frames, -1)
        image_embedding = embed(features[:, 0])
        video_embedding = embed_frames(features[:, 1:], jnp.asarray(frame_mask))
        loss = contrastive_loss(image_embedding, video_embedding, model.logit_scale[...])
        return loss, {
            "image_patch": tokens[:, 0],
            "video_patch": tokens[:, 1:],
            "image_features": features[:, 0],
            "frame_features": features[:, 1:],
            "image_embeddings": image_embedding,
            "video_embeddings": video_embedding,
            "correlations": image_embedding @ video_embedding.T,
            "vic_loss": loss,
        }

    return jax.tree.map(jnp.asarray, params), compute


@functools.cache
def computed(name: str):
    """The case, our outputs and our gradients; computed once for all tests of it."""
    case = Case(name)
    params, compute = icl(case)
    (_, outputs), gradients = jax.jit(jax.value_and_grad(compute, has_aux=True))(params)
    return case, outputs, flatten_dict(gradients, sep="/")


@pytest.mark.parametrize("name", CASES)
def test_tokens_features_embeddings_and_loss(name):
    case, outputs, _ = computed(name)
    compared = 0
    for key, value in outputs.items():
        if f"out/{key}" in case.arrays:
            assert_close(value.reshape(case.out(key).shape), case.out(key))
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_icl(name):
    """Recorded whole for what only ICL reaches (`proj`, `ln_post`, `logit_scale`), as norms for all parameters."""
    case, _, gradients = computed(name)
    if "grad/image_encoder.model.proj" in case.arrays:
        # The encoder's other gradients hold PMD's and PFR's parts too.
        recorded = flatten_dict(case.params("grad/")[0], sep="/")
        for path in ("encoder/projection/kernel", "encoder/ln_post/scale", "encoder/ln_post/bias", "logit_scale"):
            assert relative_l2(gradients[path], recorded[path]) < 1e-3, path
    norms = case.facts["grad_norms_by_loss"]["vic_loss"]
    compared = 0
    for path, names in NORMS.items():
        value = np.asarray(gradients[path], np.float64)
        layers = range(case.facts["config"]["layers"]) if "/blocks/" in path else [None]
        for layer in layers:
            expected = norms[names.format(layer)]
            assert np.linalg.norm(value if layer is None else value[layer]) == pytest.approx(expected, rel=1e-3), path
            compared += 1
    assert compared == len([key for key in norms if key.startswith("image_encoder") or key.endswith("logit_scale")])


BLOCK = "image_encoder.model.transformer.resblocks.{}."
NORMS = {
    "logit_scale": "transformer.logit_scale",
    "encoder/class_embedding": "image_encoder.model.class_embedding",
    "encoder/position_embedding": "image_encoder.model.positional_embedding",
    "encoder/patch_embedding/kernel": "image_encoder.model.conv1.weight",
    "encoder/projection/kernel": "image_encoder.model.proj",
    **{
        f"encoder/{norm}/{ours}": f"image_encoder.model.{norm}.{theirs}"
        for norm in ("ln_pre", "ln_post")
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    },
    **{
        f"encoder/blocks/{norm}/{ours}": f"{BLOCK}{norm}.{theirs}"
        for norm in ("ln_1", "ln_2")
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    },
    "encoder/blocks/qkv/kernel": BLOCK + "attn.in_proj_weight",
    "encoder/blocks/qkv/bias": BLOCK + "attn.in_proj_bias",
    "encoder/blocks/out/kernel": BLOCK + "attn.out_proj.weight",
    "encoder/blocks/out/bias": BLOCK + "attn.out_proj.bias",
    "encoder/blocks/up/kernel": BLOCK + "mlp.c_fc.weight",
    "encoder/blocks/up/bias": BLOCK + "mlp.c_fc.bias",
    "encoder/blocks/down/kernel": BLOCK + "mlp.c_proj.weight",
    "encoder/blocks/down/bias": BLOCK + "mlp.c_proj.bias",
}


def constant_rate(beta2: float) -> optax.GradientTransformation:
    """The reference's AdamW at the rates of the recording, which had no warm-up."""
    settings = dataclasses.replace(
        small_config().optimizer,
        encoder_learning_rate=1e-6,
        beta2=beta2,
        epsilon=1e-6,
        weight_decay=0.2,
        warmup_steps=0,
    )
    # So long a cosine that its first three values are 1 to float32.
    return create_optimizer(settings, total_steps=10**9)


@pytest.mark.parametrize(("recording", "beta2"), [("after3", 0.98), ("after3_lprbetas", 0.999)])
def test_three_steps_on_icl(recording, beta2):
    """What three updates moved, for the parameters that only ICL's gradient reaches."""
    case = Case("micro")
    params, compute = icl(case)
    start = flatten_dict(params, sep="/")
    optimizer = constant_rate(beta2)
    state = optimizer.init(params)
    losses = []

    @jax.jit
    def step(params, state):
        (loss, _), gradients = jax.value_and_grad(compute, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    for _ in range(3):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    recorded = case.facts["optimizer"][recording]["losses"]
    assert losses[0] == pytest.approx(recorded[0]["vic_loss"], rel=1e-5)
    # From here on the recording's encoder has also learned from PMD and PFR: the same fall, not the same loss.
    assert losses[0] - losses[2] == pytest.approx(recorded[0]["vic_loss"] - recorded[2]["vic_loss"], rel=0.1)
    after, expected = flatten_dict(params, sep="/"), flatten_dict(case.params(f"{recording}/")[0], sep="/")
    for path, value in expected.items():
        assert_close(after[path], value)
    for path in ("encoder/projection/kernel", "encoder/ln_post/scale", "encoder/ln_post/bias", "logit_scale"):
        # What three updates moved agrees to 1 %, but for the rounding of three float32 sums on either side.
        moved = np.abs(expected[path].astype(np.float64) - start[path])
        difference = np.abs(np.asarray(after[path], np.float64) - expected[path])
        assert np.all(difference <= 0.01 * moved + 3 * np.spacing(np.abs(expected[path]))), path
        assert np.median(moved / np.spacing(np.abs(expected[path]))) > 20, path


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
    optimizer = create_optimizer(settings, total_steps=10**9)
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
    """Every name of the recording is in the group that it was in; the modules of later issues are no encoder."""
    case = Case("micro")
    params, _ = case.params()
    params["pmd"] = {"layer": {"kernel": np.zeros(1)}}
    groups = flatten_dict(learning_rate_groups(params), sep="/")
    assert {path for path, group in groups.items() if group == "new"} == {"pmd/layer/kernel"}
    recorded = json.loads((HERE / "param_groups.json").read_text())["tiny"]["groups"]
    assert "transformer.logit_scale" in recorded["lr=1e-06 wd=0.2"]
    undecayed = [name for key in recorded if key.endswith("wd=0") for name in recorded[key]]
    assert undecayed and all("bias" in name for name in undecayed)
    optimizer = constant_rate(0.999)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(zeros), jax.tree.map(jnp.ones_like, params))
    for path, update in flatten_dict(updates, sep="/").items():
        assert np.all(np.asarray(update) == 0) == path.endswith("bias"), f"{path}: decayed or not against the recording"


def test_shared_cases_are_reported_when_absent():
    if not SHARED.exists():
        pytest.skip("../shared/golden is not beside this checkout: cases tiny and base were not compared")
    assert (SHARED / "tiny.npz").exists() and (SHARED / "base.npz").exists()
