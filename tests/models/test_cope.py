"""COPE: what it embeds with texts of some domains, of all, or without, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from rice_jax.config import ConfigError, MeshConfig, TextTowerConfig, VitConfig
from rice_jax.models.aggregation.mean import embed
from rice_jax.models.contract import AnyModel, SupportsDomains, SupportsEmbedding, SupportsStreaming, require
from rice_jax.models.cope import DOMAINS, Cope, CopeConfig
from rice_jax.models.create import abstract_params, model_class
from rice_jax.models.rice import normalize
from rice_jax.parallel.mesh import create_mesh

ENCODER = VitConfig(
    architecture="xclip",
    image_size=16,
    patch_size=8,
    width=16,
    layers=1,
    heads=2,
    embed_dim=8,
    num_frames=3,
    integration_heads=2,
    dtype="float32",
)
TEXT = TextTowerConfig(
    vocab_size=30, positions=8, context=8, width=12, layers=1, heads=2, mlp_width=16, head="pooler", embed_dim=12
)
WITHOUT = CopeConfig(ENCODER, text_domains=(), embed_dim=6, num_classes=8)
PAGES = dataclasses.replace(WITHOUT, text=TEXT, text_domains=("page",))
ALL = dataclasses.replace(PAGES, text_domains=DOMAINS)
BATCH = 3


def create(config):
    return model_class(config)(config, rngs=nnx.Rngs(0))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _embed(graphdef, params, batch, domain):
    return nnx.merge(graphdef, params).embed_domain(batch, domain)


def embed_domain(model, batch, domain):
    return _embed(*nnx.split(model), batch, domain)


@pytest.fixture(scope="module")
def pages():
    """COPE with text of pages, whose biases are not zeros."""
    model = create(PAGES)
    rng = np.random.default_rng(1)
    move = lambda x: x + 0.1 * jnp.asarray(rng.standard_normal(x.shape), x.dtype)  # noqa: E731
    nnx.update(model, jax.tree.map(move, nnx.state(model)))
    return model


def items(num_frames=3, **texts):
    rng = np.random.default_rng(num_frames)
    video = jnp.asarray(rng.integers(0, 256, (BATCH, num_frames, 16, 16, 3), np.uint8))
    return {"video": video, "frame_mask": jnp.ones((BATCH, num_frames), bool), **texts}


def texts(lengths=(4, 2, 3)):
    ids = jnp.asarray(np.random.default_rng(5).integers(1, 30, (BATCH, 4)), jnp.int32)
    return {"text_ids": ids, "text_token_mask": jnp.arange(4) < jnp.array(lengths)[:, None]}


def test_it_is_a_model_that_embeds_items_of_domains():
    model = create(PAGES)
    assert isinstance(model, (AnyModel, Cope)) and isinstance(model, SupportsDomains)
    require(model, SupportsEmbedding, "a test")
    with pytest.raises(ConfigError, match="^recognition needs a model that can encode a video frame by frame; Cope "):
        require(model, SupportsStreaming, "recognition")
    parts = set(nnx.to_pure_dict(nnx.state(model)))
    assert {*model.PRETRAINED, *model.TRAINING_ONLY} <= parts == {"encoder", "text", "classes", *DOMAINS}
    assert model.similarity_scale() == 20
    assert set(nnx.to_pure_dict(nnx.state(create(WITHOUT)))) == {"encoder", "classes", *DOMAINS}


def test_a_shops_images_are_pages_and_its_videos_are_live_clips(pages):
    graphdef, params = nnx.split(pages)
    image, video = items(1, **texts()), items()
    shown = {"image": image["video"][:, 0], **texts()}
    embed_image = jax.jit(lambda params, batch: nnx.merge(graphdef, params).embed_image(batch))
    embed_video = jax.jit(lambda params, batch: nnx.merge(graphdef, params).embed_video(batch))
    np.testing.assert_allclose(embed_image(params, shown), embed_domain(pages, image, "page"), rtol=1e-6)
    live = embed_video(params, video)
    np.testing.assert_allclose(live, embed_domain(pages, video, "live"), rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(live, axis=1), 1, rtol=1e-6)
    assert live.shape == (BATCH, 6) and live.dtype == jnp.float32
    assert np.abs(live - embed_domain(pages, video, "video")).max() > 0.01, "each domain has a head of its own"


def test_a_missing_text_is_left_out_whatever_stands_in_its_place(pages):
    titled, untitled = items(1, **texts((4, 0, 3))), items(1)
    found, without = embed_domain(pages, titled, "page"), embed_domain(pages, untitled, "page")
    np.testing.assert_allclose(found[1], without[1], rtol=1e-5, atol=1e-6)
    assert np.abs(found - without)[jnp.array([0, 2])].max(axis=1).min() > 1e-3
    other = {**titled, "text_ids": titled["text_ids"].at[1].set(7)}
    np.testing.assert_array_equal(embed_domain(pages, other, "page")[1], found[1])
    # The half of the visual feature alone is added to the bias.
    visual = jnp.asarray(np.random.default_rng(2).standard_normal((BATCH, 8)), jnp.float32)
    fused, head = pages.page(visual), pages.page
    expected = head.visual(visual) @ head.fusion.kernel[6:] + head.fusion.bias[...]
    np.testing.assert_allclose(fused.fused, expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_missing_texts_are_numbers(pages):
    graphdef, params = nnx.split(pages)

    def loss(params):
        views, real = nnx.merge(graphdef, params)({"page": items(1, **texts((4, 0, 3)))})["page"].views("page")
        assert set(views) == {"page", "page_visual", "page_text"} and set(real) == {"page_text"}
        return sum((view**3).sum() for view in views.values())

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_fresh_heads_keep_what_the_encoder_finds_similar():
    """In all domains alike, so that a pretrained encoder need not be aligned again."""
    model = create(dataclasses.replace(ALL, embed_dim=ENCODER.embed_dim))  # a narrower one would keep it roughly
    pictures = items(1)
    features = embed(model.encoder(normalize(pictures["video"], model.pixels), pictures["frame_mask"]))
    fused = model({"page": pictures | texts(), "live": pictures})
    page, live = embed(fused["page"].fused), embed(fused["live"].fused)
    np.testing.assert_allclose(page @ live.T, features @ features.T, rtol=1e-4, atol=1e-5)


def test_domains_encoded_together_are_those_encoded_alone():
    model = create(ALL)
    batch = {"page": items(1, **texts()), "video": items(3, **texts((1, 4, 2))), "live": items(3, **texts((2, 0, 4)))}
    batch["live"]["frame_mask"] = jnp.arange(3) < jnp.array([1, 3, 2])[:, None]
    graphdef, params = nnx.split(model)
    encode = jax.jit(lambda params, batch: nnx.merge(graphdef, params)(batch))
    together = encode(params, batch)
    scans = str(jax.make_jaxpr(encode)(params, batch)).count(" scan[")
    assert scans == 3, "one pass of the blocks, one of those over the frames, and one of the text tower's"
    for domain, rows in batch.items():
        (alone,) = encode(params, {domain: rows}).values()
        for found, expected in zip(together[domain], alone, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        views, real = together[domain].views(domain)
        assert set(views) == {domain, f"{domain}_visual", f"{domain}_text"} and set(real) == {f"{domain}_text"}
    assert together["live"].has_text.tolist() == [True, False, True]


def test_what_cannot_be_embedded_is_refused_in_a_sentence(pages):
    with pytest.raises(ConfigError, match="^domain: found 'pages', expected one of 'page', 'video', 'live'$"):
        pages.embed_domain(items(), "pages")
    with pytest.raises(ConfigError, match="^text_ids: found texts of domain 'live' for a model that reads those of 'p"):
        pages.embed_video(items(**texts()))
    with pytest.raises(ConfigError, match="^Cope cannot leave out patches; set config.model.ipd_use='crop'$"):
        pages.embed_video({**items(), "patch_mask": jnp.ones((BATCH, 3, 4), bool)})
    with pytest.raises(ConfigError, match="^config.model.architecture: found 'vit', expected one of .* with COPE"):
        create(dataclasses.replace(WITHOUT, encoder=dataclasses.replace(ENCODER, architecture="vit")))
    with pytest.raises(ConfigError, match="^text_domains: found page without a text tower, expected some of page, vi"):
        create(dataclasses.replace(PAGES, text=None))


def test_classes_are_split_by_rows_over_fsdp():
    mesh = create_mesh(MeshConfig(data=2, fsdp=4))
    params = abstract_params(PAGES, mesh)
    assert params["classes"]["embedding"].shape == (8, 6)
    assert params["classes"]["embedding"].sharding.spec == PartitionSpec("fsdp", None)
