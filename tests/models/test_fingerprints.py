"""An index is used only with the model that made it: with its encoder, and where it re-ranks with its decoder."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from rice_jax.config import MeshConfig
from rice_jax.config.model import SWITCHES
from rice_jax.index.store import About, read_index, write_index
from rice_jax.index.update import build_index
from rice_jax.models.aggregation import AGGREGATIONS
from rice_jax.models.create import create_params
from rice_jax.models.encoders import VIDEO_ENCODERS
from rice_jax.models.weights import (
    CheckpointError,
    embedding_fingerprint,
    load_weights,
    match_fingerprint,
    save_weights,
)
from rice_jax.parallel.mesh import create_mesh
from rice_jax.recognition.engine import Engine
from tests.settings import model_of, small_config
from tests.shop import draw, png

ONE = create_mesh(MeshConfig(1, 1), jax.devices()[:1])


def changed(params, name):
    """The parameters with one number of one of them changed."""
    flat = dict(flatten_dict(params, sep="/"))
    flat[name] = np.array(flat[name])
    flat[name].flat[0] += 0.125
    return unflatten_dict(flat, sep="/")


def test_every_parameter_that_changes_an_answer_changes_a_fingerprint():
    config = model_of(small_config())
    params = create_params(config, ONE, seed=0)
    before = embedding_fingerprint(params, config, 20), match_fingerprint(params, config)
    for name in flatten_dict(params, sep="/"):
        other = changed(params, name)
        after = embedding_fingerprint(other, config, 20), match_fingerprint(other, config)
        differs = tuple(x != y for x, y in zip(before, after, strict=True))
        part = name.split("/")[0]
        assert differs == {"encoder": (True, False), "pmd": (False, True)}.get(part, (False, False)), name
    assert before[0] != embedding_fingerprint(params, config, 21)
    without = model_of(small_config(loss__pmd_weight=0.0))
    assert match_fingerprint(create_params(without, ONE, seed=0), without) is None


OTHERS = {
    "architecture": "swin",
    "pixels": "half",
    "activation": "gelu",
    "mlp_ratio": 3.0,
    "positions": "rotary",
    "registers": 1,
    "epsilon": 1e-6,
    "pooling": "mean",
    "stem": "mobilenet",
    "num_frames": 11,
    "integration_layers": 2,
    "integration_heads": 4,
    "integration_mlp_ratio": 2.0,
}


def test_every_switch_of_the_encoder_changes_the_fingerprint():
    """Most of them change no parameter's shape."""
    config = model_of(small_config())
    params = create_params(config, ONE, seed=0)
    found = {embedding_fingerprint(params, config, 20)}
    for name in SWITCHES:
        value = OTHERS.get(name, not getattr(config.encoder, name))
        encoder = dataclasses.replace(config.encoder, **{name: value})
        found.add(embedding_fingerprint(params, dataclasses.replace(config, encoder=encoder), 20))
    assert len(found) == 1 + len(SWITCHES)


@pytest.mark.parametrize("architecture", VIDEO_ENCODERS)
def test_every_parameter_of_an_encoder_of_videos_counts(architecture):
    config = model_of(small_config(model__architecture=architecture, loss__pmd_weight=0.0))
    params = create_params(config, ONE, seed=0)
    before = embedding_fingerprint(params, config, 20)
    assert match_fingerprint(params, config) is None
    for name in flatten_dict(params, sep="/"):
        assert (embedding_fingerprint(changed(params, name), config, 20) != before) == name.startswith("encoder/"), name


def test_a_part_that_a_family_does_not_list_counts():
    config = model_of(small_config())
    params = dict(create_params(config, ONE, seed=0))
    without = embedding_fingerprint(params, config, 20)
    params["aggregation"] = {"weight": np.ones(3, np.float32)}
    found = embedding_fingerprint(params, config, 20)
    assert without != found != embedding_fingerprint(changed(params, "aggregation/weight"), config, 20)


def test_an_aggregation_counts_with_all_that_decides_its_result():
    """Its kind and its heads show in no parameter."""

    def settings(kind, **changes):
        return model_of(small_config(model__aggregation__kind=kind, data__num_frames=10, **changes))

    configs = [settings(kind) for kind in AGGREGATIONS]
    configs.append(settings("transformer", model__aggregation__transformer__heads=2))
    found = [embedding_fingerprint(create_params(config, ONE, seed=0), config, 20) for config in configs]
    assert len(set(found)) == len(configs) == len(AGGREGATIONS) + 1
    # Of these two, not even the parameters differ.
    weighing = [settings("attention", model__aggregation__attention__pooling=kind) for kind in ("score", "direction")]
    params = create_params(weighing[0], ONE, seed=0)
    assert len({embedding_fingerprint(params, config, 20) for config in weighing}) == 2
    assert embedding_fingerprint(params, weighing[0], 20) in found, "an index made before the other existed is valid"
    params = create_params(configs[-1], ONE, seed=0)
    for name in flatten_dict(params, sep="/"):
        differs = embedding_fingerprint(changed(params, name), configs[-1], 20) != found[-1]
        assert differs == (name.split("/")[0] in ("encoder", "aggregation")), name


@pytest.fixture(scope="module")
def reranked(live_shop, tmp_path_factory):
    """An index with a fingerprint of its decoder, and weights with one number of the decoder changed."""
    directory = tmp_path_factory.mktemp("reranked")
    index = read_index(live_shop.directory)
    params, config = load_weights(index.about.checkpoint)
    fingerprint = match_fingerprint(params, index.about.model)
    write_index(
        directory / "index",
        dataclasses.replace(index, about=dataclasses.replace(index.about, match_fingerprint=fingerprint)),
    )
    assert read_index(directory / "index").about.match_fingerprint == fingerprint
    save_weights(directory / "changed", changed(params, "pmd/match_vector"), config)
    return directory


def test_another_decoder_is_refused_to_re_rank(reranked):
    Engine(reranked / "index", rerank=2)
    with pytest.raises(CheckpointError, match=r"^\S+changed: is not the model that made the index \(found .* decoder"):
        Engine(reranked / "index", model=reranked / "changed", rerank=2)


def test_an_index_that_does_not_tell_its_decoder_is_used_as_before(reranked, live_shop):
    values = dataclasses.asdict(live_shop.index.about)
    del values["match_fingerprint"]
    assert About.from_dict(values).match_fingerprint is None
    Engine(live_shop.directory, model=reranked / "changed", rerank=2)


def test_another_decoder_is_refused_to_change_an_index(reranked, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in (20, 21):
        (pictures / f"new{seed}.png").write_bytes(png(draw(seed)))
    assert len(build_index(pictures, out=reranked / "index").image_ids) == 10
    before = (reranked / "index" / "index.parquet").read_bytes()
    with pytest.raises(CheckpointError, match=r"another model made this index \(found \w+, decoder \w+ ") as refused:
        build_index(pictures, out=reranked / "index", model=reranked / "changed")
    assert "\n" not in str(refused.value)
    assert (reranked / "index" / "index.parquet").read_bytes() == before
