"""An index made by COPE: pictures are pages, with their titles, and clips are live clips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from rice_jax.api import load
from rice_jax.config import MeshConfig
from rice_jax.index.model import load_model
from rice_jax.index.pictures import show
from rice_jax.index.store import read_index
from rice_jax.index.update import build_index
from rice_jax.input.tokenizer import Tokenizer
from rice_jax.models.create import create_params
from rice_jax.models.weights import CheckpointError, save_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.recognition.engine import Engine, join_frames
from tests.settings import model_of
from tests.tasks.cope_run import TOKENS, cope_config, moved, with_text
from tests.text_model import write_text_model

TITLES = {"a": "红色 连衣裙", "b": "", "c": "蓝色 外套"}


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def save(text_model, tmp_path_factory):
    """Saves a run's weights, of which some may be changed, and returns the directory."""
    mesh = create_mesh(MeshConfig(1, 1), jax.devices()[:1])

    def save(reads: bool, change=lambda params: None):
        config = with_text(text_model) if reads else cope_config()
        params = moved(create_params(model_of(config), mesh, seed=0))
        change(params)
        directory = tmp_path_factory.mktemp("weights") / "run"
        save_weights(directory, params, config.to_dict())
        return directory

    return save


@pytest.fixture(scope="module")
def trained(save):
    return save(True)


def write_shop(directory, titles):
    rng, lines = np.random.default_rng(0), ["id,path,title"]
    for name, title in titles.items():
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)).save(directory / f"{name}.png")
        lines.append(f"{name},{name}.png,{title}")
    (directory / "shop.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory / "shop.csv"


def test_an_indexed_picture_is_a_page_with_its_title(trained, text_model, tmp_path):
    shop = write_shop(tmp_path, TITLES)
    index = build_index(shop, out=tmp_path / "index", model=trained)
    model = load_model(trained)
    assert index.about.model.text_domains == ("page",) and index.about.tokenizer == str(text_model / "tokenizer")
    assert read_index(tmp_path / "index").about == index.about
    assert index.about.model.num_classes == 0 and "classes" not in model.params
    ids, mask, _ = Tokenizer(str(text_model / "tokenizer"), TOKENS)(list(TITLES.values()))
    mask &= np.array([[title != ""] for title in TITLES.values()])
    pictures = np.stack([show(tmp_path / f"{name}.png", index.about) for name in TITLES])
    page = {"video": jnp.asarray(pictures[:, None]), "frame_mask": jnp.ones((3, 1), bool)}
    titled = page | {"text_ids": jnp.asarray(ids), "text_token_mask": jnp.asarray(mask)}
    embed = jax.jit(lambda params, batch: nnx.merge(model.graphdef, params).embed_domain(batch, "page"))
    np.testing.assert_allclose(index.vectors, embed(model.params, titled), rtol=1e-4, atol=1e-5)
    without = np.abs(index.vectors - embed(model.params, page)).max(axis=1)
    assert without[1] < 1e-5 < 1e-3 < min(without[0], without[2]), "b has no title"

    shop = write_shop(tmp_path, TITLES | {"c": "绿色 裙"})
    changed = build_index(shop, out=tmp_path / "index", model=trained)
    moved_by = np.abs(changed.vectors - index.vectors).max(axis=1)
    assert moved_by[2] > 1e-3 and not moved_by[:2].any(), "another title is another embedding"


def test_without_texts_no_tokenizer_is_needed_and_titles_change_nothing(save, tmp_path):
    run = save(False)
    index = build_index(write_shop(tmp_path, TITLES), out=tmp_path / "index", model=run)
    again = build_index(write_shop(tmp_path, TITLES | {"a": "other"}), out=tmp_path / "index", model=run)
    np.testing.assert_array_equal(index.vectors, again.vectors)
    assert again.titles[0] == "other" and index.about.tokenizer == "" and index.about.model.text is None


def test_a_video_is_a_live_clip(trained, tmp_path):
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(2)]
    wrapped, model = load(trained), load_model(trained)
    video = np.zeros((1, 3, 16, 16, 3), np.uint8)
    video[0, :2] = [show(frame, model.about) for frame in frames]
    batch = {"video": jnp.asarray(video), "frame_mask": jnp.array([[True, True, False]])}
    expected = nnx.merge(model.graphdef, model.params).embed_domain(batch, "live")[0]
    np.testing.assert_allclose(wrapped.embed_video(frames), expected, rtol=1e-4, atol=1e-5)
    assert wrapped.embed_dim == wrapped.embed_images(frames).shape[1] == 8


def test_the_fingerprint_covers_what_embeds(save, trained, text_model):
    fingerprint = load_model(trained).about.fingerprint

    def shift(part, *names):
        def change(params):
            leaf = params[part]
            for name in names[:-1]:
                leaf = leaf[name]
            leaf[names[-1]] = leaf[names[-1]] + 1

        return change

    changes = {"live": ("visual", "bias"), "text": ("position_embedding",), "page": ("fusion", "bias")}
    for part, names in changes.items():
        assert load_model(save(True, shift(part, *names))).about.fingerprint != fingerprint, part
    assert load_model(save(True, shift("classes", "embedding"))).about.fingerprint == fingerprint


def test_weights_without_the_heads_are_refused(save):
    def forget(params):
        del params["live"]

    with pytest.raises(CheckpointError, match="has no trained 'live' of COPE"):
        load_model(save(True, forget))


def test_recognition_embeds_a_clip_by_its_head_of_live_clips(trained, tmp_path):
    index = build_index(write_shop(tmp_path, TITLES), out=tmp_path / "index", model=trained)
    engine = Engine(tmp_path / "index", batch_sizes=(2,))
    rng, model = np.random.default_rng(2), load_model(trained)
    frames = [engine.prepare(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(3)]
    encoded = join_frames([engine.encode(np.stack(frames[:2])), engine.encode(np.stack(frames[2:]))])
    found = engine.rank(encoded, top=3)
    batch = {"video": jnp.asarray(np.stack(frames)[None]), "frame_mask": jnp.ones((1, 3), bool)}
    clip = nnx.merge(model.graphdef, model.params).embed_domain(batch, "live")[0]
    expected = dict(zip(index.image_ids, (index.vectors @ np.asarray(clip)).tolist(), strict=True))
    assert [match.id for match in found.products] == sorted(expected, key=expected.get, reverse=True)
    for match in found.products:
        assert match.score == pytest.approx(expected[match.id], abs=1e-5)
    one = {"video": batch["video"][0][:, None], "frame_mask": jnp.ones((3, 1), bool)}
    alone = nnx.merge(model.graphdef, model.params).embed_domain(one, "live")
    np.testing.assert_allclose(encoded.features, alone, rtol=1e-4, atol=1e-5)
    scores = engine.scores(encoded)
    assert scores.mean.shape == scores.frames.shape == (3,)
