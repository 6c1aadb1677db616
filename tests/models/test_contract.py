import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax.config import ConfigError, MeshConfig
from rice_jax.eval.embed import compile_embedder, compute_rows, model_embedder
from rice_jax.eval.rerank import matcher
from rice_jax.index import model as index_model
from rice_jax.index.update import update_index
from rice_jax.models.aggregation import AGGREGATIONS
from rice_jax.models.contract import (
    AnyModel,
    SupportsAttention,
    SupportsDetection,
    SupportsEmbedding,
    SupportsMatching,
    SupportsStreaming,
    SupportsTexts,
    require,
)
from rice_jax.models.create import model_class
from rice_jax.models.rice import embed
from rice_jax.parallel.mesh import create_mesh
from tests.settings import model_of, small_config

CAPABILITIES = (
    SupportsAttention,
    SupportsDetection,
    SupportsEmbedding,
    SupportsMatching,
    SupportsStreaming,
    SupportsTexts,
)
RICE = {SupportsEmbedding, SupportsStreaming, SupportsMatching, SupportsAttention}
VIDEO = {"model__architecture": "timesformer", "loss__pmd_weight": 0.0}
XCLIP = VIDEO | {"model__architecture": "xclip"}
TOWER = {"model__text": "tower", "model__text_init_from": "text", "model__text_tower__layers": 1}
TOWER |= {f"model__text_tower__{name}": 8 for name in ("vocab_size", "context", "width", "heads", "mlp_width")}
READER = {"model__text": "embeddings", "data__texts": "texts", "eval__text_weight": "fit", "loss__pmd_weight": 0.0}
BATCH, FRAMES = 4, 3


@functools.cache
def model(**settings) -> AnyModel:
    config = model_of(small_config(**settings))
    return model_class(config)(config, rngs=nnx.Rngs(0))


def batch() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (BATCH, 16, 16, 3), np.uint8)),
        "video": jnp.asarray(rng.integers(0, 256, (BATCH, FRAMES, 16, 16, 3), np.uint8)),
        "frame_mask": jnp.asarray(np.arange(FRAMES) < rng.integers(1, FRAMES + 1, (BATCH, 1))),
        "patch_mask": jnp.asarray(rng.random((BATCH, FRAMES, 4)) < 0.7),
    }


@pytest.mark.parametrize(
    ("settings", "capabilities"),
    [
        ({}, RICE),
        ({"loss__pmd_weight": 0.0}, {SupportsEmbedding, SupportsStreaming}),
        (TOWER, RICE | {SupportsTexts}),
        (READER, {SupportsEmbedding, SupportsStreaming, SupportsTexts}),
        ({"task": "detection"}, {SupportsDetection}),
        (VIDEO, {SupportsEmbedding}),
        (XCLIP, {SupportsEmbedding}),
    ],
)
def test_models_have_what_they_list_and_are_refused_for_the_rest(settings, capabilities):
    subject = model(**settings)
    assert isinstance(subject, AnyModel) and subject.capabilities == capabilities
    for capability in CAPABILITIES:
        if capability in capabilities:
            assert isinstance(subject, capability)
            require(subject, capability, "a test")
        else:
            message = "^a test needs a model that can .*; (Rice|Detector|VideoModel) cannot with"
            with pytest.raises(ConfigError, match=message):
                require(subject, capability, "a test")


@pytest.mark.parametrize("settings", [{}, {"task": "detection"}, VIDEO, XCLIP])
def test_every_part_that_a_model_names_exists(settings):
    subject = model(**settings)
    # A model has the learned scale of its loss alone, and a teacher's head only with a teacher.
    taught = {"loss__distill_direct_weight": 1.0, "data__teacher": "teacher"}
    others = [{"loss__kind": "softmax"} | taught, {"loss__kind": "sigmoid"}] if subject.TRAINING_ONLY else [{}]
    if "text" in subject.PRETRAINED:
        others.append(TOWER)
    parts = {part for other in others for part in nnx.to_pure_dict(nnx.state(model(**other, **settings)))}
    assert {*subject.PRETRAINED, *subject.TRAINING_ONLY, *subject.MATCH_ONLY} <= parts
    assert not {*subject.TRAINING_ONLY} & {*subject.MATCH_ONLY}


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_a_video_is_made_of_its_frames(kind):
    """Streamed frames, of which all patches count, give the embedding of the whole video."""
    rows = batch() | {"patch_mask": jnp.ones((BATCH, FRAMES, 4), bool)}
    subject = model(model__aggregation__kind=kind, data__num_frames=10)
    encode_frames = nnx.jit(lambda subject, pictures: subject.encode_frames(pictures))
    kept = encode_frames(subject, rows["video"].reshape(-1, 16, 16, 3))
    features = kept.features.reshape(BATCH, FRAMES, -1)
    embedding, tokens = nnx.jit(lambda subject, rows: (subject.embed_video(rows), subject.video_tokens(rows)))(
        subject, rows
    )
    np.testing.assert_allclose(subject.aggregate(features, rows["frame_mask"]), embedding, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kept.tokens.reshape(tokens.shape), tokens, rtol=1e-4, atol=1e-5)
    images = encode_frames(subject, rows["image"]).features
    embedding, encoded = nnx.jit(lambda subject, rows: (subject.embed_image(rows), subject.encode_images(rows)))(
        subject, rows
    )
    np.testing.assert_allclose(embed(images), embedding, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoded.embedding, embedding, rtol=1e-5, atol=1e-6)


def test_similarities_are_scaled_as_in_training():
    assert model().similarity_scale() == 16
    np.testing.assert_allclose(model(loss__kind="sigmoid").similarity_scale(), 10, rtol=1e-6)
    assert model(loss__kind="triplet").similarity_scale() == 1
    assert model(loss__kind="triplet", **VIDEO).similarity_scale() == 1


def test_the_match_of_inference_is_that_of_training():
    """With a patch mask, of each video's own image and two others."""
    rows, subject = batch(), model()
    negatives = jnp.array([[1, 2], [2, 3], [3, 0], [0, 1]])
    expected = nnx.jit(lambda subject, rows: subject.match_batch(rows, subject(rows)[1], negatives))(subject, rows)

    @nnx.jit
    def inferred(subject, rows):
        queries = jnp.stack([subject.encode_images(rows).queries] * BATCH)
        found = subject.match(queries, subject.video_tokens(rows), rows["frame_mask"], rows["patch_mask"])
        return found, subject.attention_maps(rows)

    found, maps = inferred(subject, rows)  # [video, image]
    for image in range(BATCH):
        videos = [image, *negatives[image].tolist()]
        np.testing.assert_allclose(found[videos, image], expected.cosine[image], rtol=1e-4, atol=1e-5)
    assert maps.shape == (BATCH, 4, FRAMES, 4)
    hidden = ~(rows["patch_mask"] & rows["frame_mask"][..., None])
    assert not np.any(np.asarray(maps).transpose(0, 2, 3, 1)[np.asarray(hidden)]), "no attention to masked patches"


@pytest.mark.parametrize("settings", [VIDEO, XCLIP])
def test_a_model_of_whole_videos_takes_an_image_as_one_frame_and_no_padding(settings):
    subject, rows = model(**settings), batch()
    del rows["patch_mask"]
    embeddings, tokens = nnx.jit(lambda subject, rows: subject(rows))(subject, rows)
    assert tokens is None
    embed_video = nnx.jit(lambda subject, rows: subject.embed_video(rows))
    one = {"video": rows["image"][:, None], "frame_mask": jnp.ones((BATCH, 1), bool)}
    np.testing.assert_allclose(embed_video(subject, one), embeddings.image, rtol=1e-5, atol=1e-6)
    alone = {"video": rows["video"][2:3, :2], "frame_mask": jnp.ones((1, 2), bool)}
    padded = {"video": rows["video"][2:3], "frame_mask": jnp.array([[True, True, False]])}
    np.testing.assert_allclose(embed_video(subject, alone), embed_video(subject, padded), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="^VideoModel cannot leave out patches; set config.model.ipd_use='crop'"):
        subject.embed_video(batch())


class WithTitles(nnx.Module):
    """Another family of models, which also reads an input that RICE does not."""

    PRETRAINED = TRAINING_ONLY = MATCH_ONLY = ()

    def __init__(self):
        self.weight = nnx.Param(jnp.ones(()))

    @property
    def capabilities(self):
        return frozenset({SupportsEmbedding})

    def embed_image(self, batch):
        return self.weight[...] * embed(batch["title"])

    embed_video = embed_image

    def similarity_scale(self):
        return jnp.ones(())


def test_a_batch_reaches_any_model_whole():
    graphdef, params = nnx.split(WithTitles())
    mesh = create_mesh(small_config().mesh)
    titles = np.random.default_rng(0).standard_normal((8, 4), np.float32)
    rows = batch() | {"title": titles, "index": np.arange(8, dtype=np.int32), "mask": np.ones(8, bool)}
    rows = {name: np.resize(value, (8, *value.shape[1:])) for name, value in rows.items()}
    embedder = compile_embedder(model_embedder(graphdef), params, mesh)
    for found in (
        compute_rows(embedder.image, params, [rows], 8, mesh).embedding,
        compute_rows(embedder.video, params, [rows], 8, mesh),
    ):
        np.testing.assert_allclose(found, embed(jnp.asarray(titles)), rtol=1e-6)


def test_what_a_model_cannot_do_is_refused_in_a_sentence(live_shop, tmp_path):
    graphdef, params = nnx.split(model(loss__pmd_weight=0.0))
    for refused in (model_embedder(graphdef, with_queries=True).image, matcher(graphdef)):
        with pytest.raises(ConfigError, match="^re-ranking needs a model that can match an image with a video; Rice"):
            jax.eval_shape(refused, params, batch())
    with pytest.raises(ConfigError, match="^recognition needs a model that can encode a video frame by frame; Det"):
        require(model(task="detection"), SupportsStreaming, "recognition")
    detector = nnx.split(model(task="detection"))
    loaded = index_model.Model(live_shop.index.about, live_shop.index.about.model, *detector, create_mesh(MeshConfig()))
    with pytest.raises(ConfigError, match="^an index needs a model that can embed images and videos; Detector cannot"):
        update_index(tmp_path / "index", tmp_path, loaded)
    assert not list(tmp_path.iterdir())
