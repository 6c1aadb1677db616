"""COPE's training step: on any mesh, in chunks, with sampled classes; its settings; and new products between runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rice_jax.config import ConfigError, MeshConfig
from rice_jax.losses.cope import Centers, Pair, cope_loss
from rice_jax.losses.cosface import sample_classes
from rice_jax.models.create import create_model, create_params
from rice_jax.parallel.mesh import create_mesh, global_batch, parameter_shardings
from rice_jax.tasks import TASKS, resolve
from rice_jax.tasks.cope import class_rows
from rice_jax.tasks.start import grow
from rice_jax.train.state import TrainState, create_state
from rice_jax.train.steps import compile_step, training_step
from scripts.benchmarks.hlo import collectives
from tests.settings import model_of
from tests.tasks.cope_run import ALL_PAIRS, NUM_CLASSES, batch, cope_config, moved, with_text
from tests.text_model import write_text_model

BATCH = 16
GRADIENTS = optax.trace(0.0)  # keeps the gradients it is given


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("text"))


@functools.cache
def params(config) -> dict:
    mesh = create_mesh(MeshConfig(1, 1), jax.devices()[:1])
    return moved(create_params(model_of(config), mesh, seed=0))


def one_step(config, devices=1, fsdp=1, number=0, start=None):
    """Metrics and gradients of a step, and the text of the compiled program."""
    mesh = create_mesh(MeshConfig(-1, fsdp), jax.devices()[:devices])
    start = start or params(config)
    state = create_state(jax.device_put(start, parameter_shardings(mesh, start)), GRADIENTS, mesh)
    state = state._replace(step=jax.device_put(jnp.int32(number), state.step.sharding))
    loss = TASKS["cope"].loss(config, mesh)
    step = compile_step(training_step(create_model(model_of(config), mesh), GRADIENTS, loss), state, mesh)
    rows = global_batch(mesh, batch(BATCH, with_titles=config.model.text == "tower"))
    compiled = step.lower(state, rows).compile()
    after, metrics = compiled(state, rows)
    return metrics, after.optimizer.trace, compiled.as_text()


def assert_same(actual, expected):
    (metrics, gradients, _), (wanted, wanted_gradients, _) = actual, expected
    assert metrics.keys() == wanted.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, wanted[name], rtol=5e-5, atol=1e-6, err_msg=name)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-5)
    jax.tree.map(close, gradients, wanted_gradients)


@pytest.fixture(scope="module")
def config(text_model):
    return with_text(text_model, data__batch_size=BATCH)


@pytest.fixture(scope="module")
def expected(config):
    return one_step(config)


def test_the_step_computes_the_loss_of_the_models_views(config, expected):
    """An oracle without mesh, padding, and chunks: the model's views of each domain, encoded alone."""
    metrics, gradients, _ = expected
    rows = jax.tree.map(jnp.asarray, batch(BATCH))
    graphdef = create_model(model_of(config), create_mesh(MeshConfig(1, 1), jax.devices()[:1]))
    model, views, real = nnx.merge(graphdef, jax.tree.map(jnp.asarray, params(config))), {}, {}
    for domain in ("page", "video", "live"):
        items = {name: value for name, value in rows[domain].items() if name != "real"}
        found, has = model({domain: items})[domain].views(domain)
        views |= found
        real |= {name: rows[domain]["real"] for name in found}
    real["page_text"] &= rows["page"]["text_token_mask"].any(axis=1)
    pairs = [Pair(*pair) for pair in config.loss.cope.weighted_pairs]
    assert len(pairs) == ALL_PAIRS.count(":") and not rows["live"]["real"].all()
    centers = Centers(model.classes.embedding[:NUM_CLASSES])
    wanted = cope_loss(views, rows["product"], real, pairs, centers, dict.fromkeys(("page", "video", "live"), 1.0))
    assert set(wanted) < set(metrics) and 0 < metrics["accuracy"] < 1
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)
    of_classes = gradients["classes"]["embedding"]
    assert of_classes.shape == (class_rows(NUM_CLASSES), 8) and not np.any(of_classes[NUM_CLASSES:]), "padding"
    assert np.any(of_classes[:NUM_CLASSES])
    assert all(np.isfinite(x).all() and np.any(x) for x in jax.tree.leaves(gradients["page"]))


@pytest.mark.parametrize(("fsdp", "chunks"), [(1, 1), (4, 1), (8, 2)])
def test_eight_devices_and_chunks_give_the_losses_and_gradients_of_one(config, expected, fsdp, chunks):
    """No device gets the logits of all classes, or all centers, and gradients of centers are summed once."""
    chunked = dataclasses.replace(config, train=dataclasses.replace(config.train, grad_cache_chunks=chunks))
    found = one_step(chunked, 8, fsdp, start=params(config))
    assert_same(found, expected)
    if fsdp > 1:
        matrix, logits = f"[{class_rows(NUM_CLASSES)},8]", f"[{BATCH},{class_rows(NUM_CLASSES)}]"
        shapes = [one.shape for one in collectives(found[2])]
        assert shapes and not any(matrix in shape or logits in shape for shape in shapes)
        own = f"[{class_rows(NUM_CLASSES) // fsdp},8]"
        assert sum(shape.count(own) for shape in shapes) == (fsdp < 8), shapes


def test_sampled_classes_depend_on_seed_and_step_alone():
    config = cope_config(data__batch_size=BATCH, loss__cope__sampled_classes=24)
    start = params(config)
    first, second = one_step(config, start=start), one_step(config, number=1, start=start)
    assert_same(one_step(config, 8, 4, start=start), first)
    product, drawn = jnp.asarray(batch(BATCH, with_titles=False)["product"]), []
    for number, (_, gradients, _) in enumerate((first, second)):
        touched = np.flatnonzero(np.any(np.asarray(gradients["classes"]["embedding"]), axis=1)).tolist()
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        drawn.append(set(np.asarray(sample_classes(product, NUM_CLASSES, 24, key)).tolist()))
        assert {*product.tolist()} < {*touched} <= drawn[-1]
    assert drawn[0] != drawn[1]
    with pytest.raises(ConfigError, match="sampled_classes: found 24, expected at most the 20 products of the data"):
        mesh = create_mesh(MeshConfig(1, 1), jax.devices()[:1])
        TASKS["cope"].loss(cope_config(loss__cope__sampled_classes=24, model__cope__num_classes=20), mesh)


def test_without_classes_there_is_no_matrix():
    config = cope_config(loss__cope__class_weight=0.0, data__batch_size=BATCH)
    metrics, gradients, _ = one_step(config, start=params(config))
    assert "classes" not in gradients and not any(name.startswith("class-") for name in metrics)


def test_a_class_matrix_grows_by_fresh_rows_without_moments():
    rng = np.random.default_rng(0)

    def rows(count: int) -> dict:
        return {"classes": {"embedding": jnp.asarray(rng.standard_normal((count, 4)), jnp.float32)}}

    old, moments, fresh = rows(8), rows(8), rows(16)["classes"]["embedding"]
    state = TrainState(jnp.int32(7), old | {"page": {"bias": jnp.ones(3)}}, {"mu": moments, "count": jnp.int32(7)})
    grown = grow(state, fresh, 5)
    found, of_moments = (tree["classes"]["embedding"] for tree in (grown.params, grown.optimizer["mu"]))
    np.testing.assert_array_equal(found[:5], old["classes"]["embedding"][:5])
    np.testing.assert_array_equal(found[5:], fresh[5:])
    np.testing.assert_array_equal(of_moments[:5], moments["classes"]["embedding"][:5])
    assert of_moments.shape == fresh.shape and not np.any(of_moments[5:])
    assert grown.step == grown.optimizer["count"] == 7 and np.all(grown.params["page"]["bias"] == 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__domains": "a,b"}, "config.data.domains: found 'a,b', expected three sets with config.task='cope'"),
        ({"data__batch_size": 1}, "config.data.batch_size: found 1, expected 2 or more: products are contrasted"),
        (
            {"model__architecture": "vit", "model__num_frames": 10, "model__integration_heads": 8},
            "found 'vit' with conf",
        ),
        (
            {"loss__kind": "triplet"},
            "config.loss.kind: found 'triplet' with config.task='cope', which does not read it",
        ),
        ({"data__random_frames": True}, "random_frames: found True with config.task='cope', expected False"),
        ({"loss__mask_same_image": False}, "mask_same_image: found False with config.task='cope', which does not"),
        ({"loss__cope__pairs": "page-video"}, "config.loss.cope.pairs: found 'page-video', expected pairs and weights"),
        ({"loss__cope__pairs": "page-page:1"}, "config.loss.cope.pairs: found 'page-page:1', expected pairs"),
        ({"loss__cope__pairs": "page-live:0"}, "config.loss.cope.pairs: found 'page-live:0', expected pairs"),
        ({"loss__cope__pairs": "page-live:1,live-page:2"}, "'page-live:1,live-page:2', expected each pair once"),
        ({"loss__cope__pairs": "page_text-live:1"}, "pairs: found 'page_text', expected some of live, page, video"),
        ({"loss__cope__pairs": "", "loss__cope__class_weight": 0.0}, "pairs and class_weight: found neither"),
        (
            {"loss__cope__sampled_classes": 4},
            r"sampled_classes: found 4, expected config.data.batch_size",
        ),
        (
            {"loss__cope__sampled_classes": 9, "loss__cope__class_weight": 0.0},
            "sampled_classes: found 9 with config.loss.cope.class_weight=0, which has no classes",
        ),
        ({"eval__rerank": 2}, "eval.rerank=0, found 'off' and 2"),
    ],
)
def test_settings_that_exclude_each_other(changes, message):
    with pytest.raises(ConfigError, match=message):
        cope_config(**changes)


def test_settings_of_texts(text_model):
    with pytest.raises(ConfigError, match="text_domains: found 'page,page', expected some of page, video, live"):
        with_text(text_model, model__cope__text_domains="page,page")
    with pytest.raises(ConfigError, match="pairs: found 'page_visual', expected some of live, live_text, live_vis"):
        with_text(text_model, model__cope__text_domains="live")
    for name in ("image_title", "video_speech", "title_speech"):
        with pytest.raises(ConfigError, match="expected 0; add pairs of texts to config.loss.cope.pairs, such as"):
            with_text(text_model, **{f"loss__{name}_weight": 1.0})
    config = with_text(text_model, model__cope__max_tokens=99)
    assert config.input.text_context == config.model.text_tower.context < 99
    assert model_of(with_text(text_model)).text_domains == ("page",) and model_of(cope_config()).text_domains == ()
    assert resolve(config.to_dict()) == config
