"""A Swin transformer as transformers writes it: converted, trained, indexed, and used to recognize."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from rice_jax.commands import export
from rice_jax.config import ConfigError, MeshConfig, SwinConfig
from rice_jax.convert import clip
from rice_jax.convert.hub_families import find_export
from rice_jax.index.model import load_model
from rice_jax.index.update import build_index
from rice_jax.models.aggregation.mean import embed
from rice_jax.models.create import create_model, create_params
from rice_jax.models.start import start_from
from rice_jax.models.weights import CheckpointError, load_weights, require_trained_embedding, save_weights
from rice_jax.parallel.mesh import create_mesh, global_batch
from rice_jax.recognition.recognizer import Recognizer
from rice_jax.tasks import TASKS
from rice_jax.train.optimizer import create_optimizer
from rice_jax.train.state import create_state
from rice_jax.train.steps import compile_step, training_step
from scripts.parity import Case
from tests.golden.cases import assert_close, find
from tests.models.encoders.test_swin import batch, mesh_of
from tests.settings import model_of, small_config, small_swin
from tests.shop import draw, png

CASE = Case(find("encoders/swin_pad"))
# What a run has to say that starts from the weights: nothing of the encoder.
DEFAULTS = {"depths": "2,2,6,2", "heads": "3,6,12,24", "patch_size": 4, "width": 96, "window": 7, "mlp_ratio": 4.0}


def run_of(weights, **settings):
    values = {f"model__swin__{name}": value for name, value in DEFAULTS.items()}
    values |= dict(model__architecture="vit", model__embed_dim=512, model__init_from=str(weights))
    return small_swin(**values | dict(data__batch_size=16) | settings)


def write_folder(folder, prefix="", extra=(), without="", **changes):
    state = {prefix + name: x for name, x in CASE.under("params/").items() if name != without}
    folder.mkdir()
    safetensors.numpy.save_file(state | dict(extra), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CASE.facts["config"] | changes))
    return folder


def convert(*arguments):
    clip.main([str(argument) for argument in arguments], prog="rice convert")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    directory = tmp_path_factory.mktemp("swin")
    convert(write_folder(directory / "theirs"), directory / "ours")
    return directory / "ours"


def test_a_folder_is_converted_and_embeds_pictures_as_transformers_does(ours):
    loaded = load_model(ours)
    config = loaded.config.encoder
    assert (config.depths, config.heads, config.window, config.width, config.embed_dim) == ("2,2", "2,4", 4, 16, 32)
    assert (config.image_size, config.pixels, config.activation, config.mlp_ratio) == (40, "imagenet", "gelu", 2.0)
    model = nnx.merge(loaded.graphdef, loaded.params)
    encode = nnx.jit(lambda model, pictures: model.encoder(pictures))
    embed_image = nnx.jit(lambda model, pictures: model.embed_image({"image": pictures}))
    tokens, features = encode(model, jnp.moveaxis(CASE.arrays["in/pixel_values"], 1, -1))
    assert_close(features, CASE.arrays["out/pooler_output"])
    assert_close(tokens[:, 0], CASE.arrays["out/pooler_output"])
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = encode(model, jnp.asarray((pictures / 255 - mean) / std, jnp.float32))[1]
    assert_close(embed_image(model, jnp.asarray(pictures)), embed(expected))


def test_files_of_whole_models_give_the_same(ours, tmp_path):
    """With a classifier, the head of their pretraining, and buffers that older files hold."""
    extra = {
        "classifier.weight": np.ones((3, 32), np.float32),
        "classifier.bias": np.ones(3, np.float32),
        "swin.embeddings.mask_token": np.ones((1, 1, 16), np.float32),
        "swin.encoder.layers.1.blocks.0.attention.self.relative_position_index": np.zeros((16, 16), np.int64),
    }
    source = write_folder(tmp_path / "theirs", "swin.", extra, architectures=["SwinForImageClassification"])
    convert(source, tmp_path / "out")
    (params, settings), (same, expected) = load_weights(tmp_path / "out"), load_weights(ours)
    assert settings == expected
    jax.tree.map(np.testing.assert_array_equal, params, same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"without": "layernorm.bias"},
            r"not a Swin transformer of 2,2 blocks:\n1 tensors are missing:\n  layernorm",
        ),
        ({"extra": {"head.x": np.ones(1)}}, r"1 tensors have an unknown name:\n  head\.x"),
        ({"window_size": 5}, r"relative_position_bias_table: found shape \(49, 2\), expected \(81, 2\)"),
        ({"depths": [2, 3]}, r"tensors are missing:\n  encoder\.layers\.1\.blocks\.2\."),
        ({"num_heads": [2, 5]}, "found 5 heads in a stage of width 32, expected a divisor"),
        ({"num_heads": 4}, "num_heads 4: expected a list of whole numbers"),
        ({"layer_norm_eps": None}, r"swin\.epsilon: found None \(NoneType\), expected float"),
        ({"hidden_act": ["gelu"]}, r"hidden_act \['gelu'\]: expected one of"),
        ({"hidden_act": "relu"}, "hidden_act 'relu': expected one of"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings True: expected False"),
        ({"model_type": "swinv2"}, r"config\.json: found model_type 'swinv2', expected one of .*, swin, rice_jax$"),
        ({"model_type": "dinov2"}, "not a DINOv2 vision transformer"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(SystemExit, match=message):
        convert(write_folder(tmp_path / "theirs", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_contradicts_the_weights_is_refused_in_a_line(ours):
    with pytest.raises(ConfigError, match=r"^config\.model\.swin\.window: found 5, expected 4 as in the weights /"):
        run_of(ours, model__swin__window=5)
    with pytest.raises(ConfigError, match=r"^config\.model\.pixels: found 'half', expected 'imagenet' as in the weig"):
        run_of(ours, model__pixels="half")
    model = model_of(small_config(loss__pmd_weight=0.0))
    with pytest.raises(CheckpointError, match=r"found an encoder with architecture='swin', expected 'vit' \(config"):
        start_from(ours, create_params(model, mesh_of(1), seed=0), model)


def test_other_weights_start_no_swin(ours, tmp_path):
    config = small_config(loss__pmd_weight=0.0)
    save_weights(tmp_path / "vit", create_params(model_of(config), mesh_of(1), seed=0), config.to_dict())
    with pytest.raises(ConfigError, match=r"^config\.model\.architecture: found 'swin', expected 'vit' as in the weig"):
        small_swin(model__init_from=str(tmp_path / "vit"))


def test_the_export_is_the_folder_that_was_converted(ours, tmp_path):
    with pytest.raises(SystemExit, match="found architecture='swin', expected an encoder that transformers' CLIP can"):
        convert("--export", ours, tmp_path / "out")
    export.main(["hf", str(ours), str(tmp_path / "out")])
    found, expected = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors"), CASE.under("params/")
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
    values = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert values == {name: CASE.facts["config"][name] for name in values}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            dict(image_size=12, window=4),
            r"^found 3 × 3 patches in stage 1 of .*image_size=12, expected at least swin\.w",
        ),
        (dict(width=10, mlp_ratio=2.26), r"^found swin\.mlp_ratio=2\.26 in a stage of width 10, expected a whole"),
    ],
)
def test_sizes_that_transformers_does_not_compute_are_not_exported(sizes, message):
    whole = dict(image_size=16, patch_size=2, width=8, depths="2,1", heads="2,4", window=4, embed_dim=5)
    find_export(SwinConfig(**whole))
    with pytest.raises(clip.ConvertError, match=message):
        find_export(SwinConfig(**whole | sizes))


def test_from_weights_to_a_recognized_product(ours, tmp_path):
    """Trains on a new projection, saves, indexes pictures, and finds them in frames."""
    config = run_of(ours, model__embed_dim=12)
    assert config.model.encoder.own == load_model(ours).config.encoder.own, "taken from the weights"
    assert (config.model.image_size, config.model.encoder.embed_dim, config.model.pixels) == (16, 12, "imagenet")
    assert run_of(ours).model.encoder.embed_dim == 32, "taken from the weights, without a projection"
    mesh, model = create_mesh(MeshConfig(1, 1), jax.devices()[:1]), model_of(config)
    start = start_from(ours, create_params(model, mesh, seed=0), model)
    with pytest.raises(CheckpointError, match=r"ours: has no trained projection to config\.model\.embed_dim "):
        require_trained_embedding(ours, start)
    optimizer = create_optimizer(config.optimizer, config.train.total_steps, ("encoder", "logit_scale"))
    state = create_state(start, optimizer, mesh)
    step = training_step(create_model(model, mesh), optimizer, TASKS["retrieval"].loss(config, mesh))
    step, losses = compile_step(step, state, mesh), []
    for _ in range(5):
        state, metrics = step(state, global_batch(mesh, batch()))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]

    save_weights(tmp_path / "trained", jax.tree.map(np.asarray, state.params), config.to_dict())
    (tmp_path / "pictures").mkdir()
    for seed in range(4):
        (tmp_path / "pictures" / f"p{seed}.png").write_bytes(png(draw(seed)))
    index = build_index(tmp_path / "pictures", out=tmp_path / "index", model=tmp_path / "trained")
    assert index.vectors.shape == (4, 12) and index.queries is None
    again = load_model(tmp_path / "trained").about
    assert again.fingerprint == index.about.fingerprint != load_model(ours).about.fingerprint
    found = Recognizer(tmp_path / "index", top=2).push(draw(2), 0.0)
    assert found.products[0].id == "p2"
