import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from rice_jax.config import VitConfig
from rice_jax.convert import clip
from rice_jax.models.encoders.vit import Vit
from rice_jax.models.weights import load_weights
from tests.golden.cases import ENCODER, Case, assert_close

SIZES = dict(image_size=16, patch_size=8, width=64, layers=2, heads=1, embed_dim=16)
MICRO = VitConfig(**SIZES, dtype="float32")


@functools.cache
def _micro():
    return Case("micro")


def _bare_micro():
    """The encoder's weights under OpenAI's names; a new dict each time."""
    prefix = f"params/{ENCODER}"
    return {f"visual.{name.removeprefix(prefix)}": x for name, x in _micro().arrays.items() if name.startswith(prefix)}


def _apply(params, config, pictures):
    """Tokens and features of pictures `[B, S, S, 3]`."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Vit(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, params)
    return jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, jnp.asarray(pictures))


def openai_micro():
    """The micro weights with a text tower beside them, as in OpenAI's files."""
    rest = {
        "positional_embedding": (77, 8),
        "text_projection": (8, 16),
        "logit_scale": (),
        "token_embedding.weight": (99, 8),
        "ln_final.weight": (8,),
        "ln_final.bias": (8,),
        "transformer.resblocks.0.attn.in_proj_weight": (24, 8),
        "input_resolution": (),
    }
    return _bare_micro() | {name: np.zeros(shape, np.float32) for name, shape in rest.items()}


def _hugging_face_micro():
    """The micro weights as Hugging Face has them: (tensors, config.json)."""
    state, config = _convert_micro()
    return dict(state), dict(config)


@functools.cache
def _convert_micro():
    return clip.to_hugging_face(*clip.from_openai(_bare_micro()))


def _write_hugging_face(folder, state, config):
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_text_tower_is_ignored():
    params, _ = clip.from_openai(openai_micro())
    bare, _ = clip.from_openai(_bare_micro())
    np.testing.assert_array_equal(params["projection"]["kernel"], bare["projection"]["kernel"])
    assert params.keys() == bare.keys()


def test_openai_to_hugging_face_and_back():
    params, sizes = clip.from_openai(_bare_micro())
    state, config = clip.to_hugging_face(params, sizes)
    again, same = clip.from_hugging_face(state, config)
    assert same == sizes == MICRO
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_hugging_face_names_and_shapes():
    state, _ = _hugging_face_micro()
    openai = _bare_micro()
    assert len(state) == 8 + 2 * 16
    query, key, value = np.split(openai["visual.transformer.resblocks.1.attn.in_proj_weight"], 3)
    layer = "vision_model.encoder.layers.1"
    np.testing.assert_array_equal(state[f"{layer}.self_attn.q_proj.weight"], query)
    np.testing.assert_array_equal(state[f"{layer}.self_attn.k_proj.weight"], key)
    np.testing.assert_array_equal(state[f"{layer}.self_attn.v_proj.weight"], value)
    np.testing.assert_array_equal(
        state[f"{layer}.mlp.fc1.weight"], openai["visual.transformer.resblocks.1.mlp.c_fc.weight"]
    )
    np.testing.assert_array_equal(
        state["vision_model.embeddings.patch_embedding.weight"], openai["visual.conv1.weight"]
    )
    np.testing.assert_array_equal(state["visual_projection.weight"], openai["visual.proj"].T)


def test_a_whole_clip_of_hugging_face():
    """Its config nests the vision tower's, leaves defaults out, and has its own projection_dim."""
    state, vision = _hugging_face_micro()
    state |= {
        name: np.zeros(shape, np.float32)
        for name, shape in {
            "text_model.embeddings.token_embedding.weight": (99, 8),
            "text_projection.weight": (16, 8),
            "logit_scale": (),
        }.items()
    }
    state["vision_model.embeddings.position_ids"] = np.arange(5)[None]
    for name in ("hidden_act", "layer_norm_eps", "num_channels"):
        del vision[name]
    vision["projection_dim"] = 512
    config = {"model_type": "clip", "projection_dim": 16, "vision_config": vision}
    params, sizes = clip.from_hugging_face(state, config)
    assert sizes == MICRO
    np.testing.assert_array_equal(params["projection"]["kernel"], state["visual_projection.weight"].T)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(tmp_path, dtype):
    state, config = _hugging_face_micro()
    halves = {name: x.astype(dtype) for name, x in state.items()}
    params, _ = clip.from_hugging_face(*clip.read_hugging_face(_write_hugging_face(tmp_path / "half", halves, config)))
    bias = params["blocks"]["up"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias[0], halves["vision_model.encoder.layers.0.mlp.fc1.bias"].astype(np.float32))


@pytest.mark.parametrize("named", ["directory", "file"])
def test_command_converts_and_exports(tmp_path, capsys, named):
    state, config = _hugging_face_micro()
    state["text_projection.weight"] = np.zeros((16, 8), np.float32)
    source = _write_hugging_face(tmp_path / "hugging_face", state, config)
    clip.main([str(source if named == "directory" else source / "model.safetensors"), str(tmp_path / "ours")])
    assert "0.1 million parameters" in (said := capsys.readouterr().out) and "1 other tensors" in said

    params, saved = load_weights(tmp_path / "ours")
    assert saved == {"model": SIZES}
    tokens, features = _apply(params["encoder"], MICRO, _micro().pictures()[0])
    assert_close(tokens, _micro().out("image_patch"))
    assert_close(features, _micro().out("image_features"))

    clip.main(["--export", str(tmp_path / "ours"), str(tmp_path / "exported")])
    halves, exported = clip.read_hugging_face(tmp_path / "exported")
    assert halves.keys() | {"text_projection.weight"} == state.keys()
    for name, x in halves.items():
        assert x.dtype == np.float16
        np.testing.assert_array_equal(x, state[name].astype(np.float16))
    assert clip.from_hugging_face(halves, exported)[1] == MICRO


def _rename(old, new):
    return lambda state: state.update({new: state.pop(old)})


def _replace(name, change):
    return lambda state: state.update({name: change(state[name])})


@pytest.mark.parametrize(
    "change, message",
    [
        (
            _rename("visual.proj", "visual.head"),
            r"1 tensors are missing:\n  visual\.proj\n1 .*unknown.*\n  visual\.head",
        ),
        (lambda s: s.clear(), r"20 .*missing.*\n  visual\.class_embedding"),
        (
            lambda s: [s.pop(n) for n in list(s) if "resblocks.0." in n],
            r"12 .*missing.*\n  visual\.transformer\.resblocks\.0\.",
        ),
        (lambda s: s.update({"layer1.0.conv": 0}), r"1 tensors have an unknown name:\n  layer1\.0\.conv"),
        (
            _replace("visual.ln_post.bias", lambda x: x[:-1]),
            r"visual\.ln_post\.bias: found shape \(63,\), expected \(64,\)",
        ),
        (
            _replace("visual.transformer.resblocks.1.attn.in_proj_weight", lambda x: x.T),
            r"resblocks\.1\.attn\.in_proj_weight: found shape \(64, 192\), expected \(192, 64\)",
        ),
        (
            _replace("visual.positional_embedding", lambda x: np.concatenate([x, x[:1]])),
            r"visual\.positional_embedding: found shape \(6, 64\), expected \(5, 64\)",
        ),
        (
            _replace("visual.conv1.weight", lambda x: x[..., :4, :]),
            r"visual\.conv1\.weight: found shape \(64, 3, 4, 8\)",
        ),
        (_replace("visual.conv1.weight", lambda x: x[:60]), r"width of 60 .* multiple of 64"),
        (_replace("visual.proj", lambda x: x[0]), r"visual\.proj \(16,\): expected 4, 2 and 2 axes"),
        (
            _replace("visual.ln_pre.bias", lambda x: x * np.nan),
            r"visual\.ln_pre\.bias: found values that are not finite",
        ),
    ],
)
def test_bad_openai_weights(change, message):
    state = _bare_micro()
    change(state)
    with pytest.raises(clip.ConvertError, match=message):
        clip.from_openai(state)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layer_norm_eps": None}, r"epsilon: found None \(NoneType\), expected float"),
        ({"layer_norm_eps": "1e-6"}, r"epsilon: found '1e-6' \(str\), expected float"),
        ({"hidden_act": ["gelu"]}, r"hidden_act \['gelu'\]: expected one of"),
        ({"model_type": ["clip"]}, r"found model_type \['clip'\], expected one of clip, "),
        ({"vision_config": None}, "found vision_config None, expected an object"),
        ({"hidden_act": "relu"}, "hidden_act 'relu': expected one of 'quick_gelu', 'gelu', 'gelu_pytorch_tanh', "),
        ({"num_channels": 4}, "num_channels 4: expected 3"),
        ({"model_type": "vit"}, "found model_type 'vit', expected one of clip, clip_vision_model, "),
        ({"model_type": "siglip2"}, "found model_type 'siglip2', .*; checkpoints of a fixed resolution have"),
        (
            {"model_type": "siglip"},
            r"not a SigLIP vision transformer of 2 blocks:\n12 .*missing:(\n  .*)+head\.attention",
        ),
        ({"patch_size": [8, 8]}, r"patch_size \[8, 8\]: expected a positive whole number"),
        ({"patch_size": 7}, "image_size 16 is no multiple of patch_size 7"),
        ({"num_attention_heads": 3}, "hidden_size 64 is no multiple of num_attention_heads 3"),
        ({"intermediate_size": 128}, r"mlp\.fc1\.weight: found shape \(256, 64\), expected \(128, 64\)"),
        ({"num_hidden_layers": 3}, r"16 tensors are missing:\n  vision_model\.encoder\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"16 tensors have an unknown name:\n  vision_model\.encoder\.layers\.1\."),
        ({"image_size": 32}, r"position_embedding\.weight: found shape \(5, 64\), expected \(17, 64\)"),
        ({"projection_dim": 32}, r"visual_projection\.weight: found shape \(16, 64\), expected \(32, 64\)"),
    ],
)
def test_bad_hugging_face_config(change, message):
    state, config = _hugging_face_micro()
    with pytest.raises(clip.ConvertError, match=message):
        clip.from_hugging_face(state, config | change)


def test_many_problems_are_cut_short():
    state = {"visual.transformer.resblocks.2.other": np.zeros(1)}
    with pytest.raises(clip.ConvertError, match=r"44 tensors are missing:(\n  visual.*){20}\n  and 24 more\n1 tensors"):
        clip.from_openai(state)


def test_export_of_other_parameters():
    params, sizes = clip.from_openai(_bare_micro())
    with pytest.raises(clip.ConvertError, match=r"position_embedding: found shape \(5, 64\), expected \(17, 64\)"):
        clip.to_hugging_face(params, dataclasses.replace(sizes, image_size=32))
    params["logit_scale"] = params.pop("class_embedding")
    with pytest.raises(clip.ConvertError, match=r"class_embedding: missing\n  logit_scale: unknown"):
        clip.to_hugging_face(params, sizes)


def _empty(folder):
    folder.mkdir()
    return folder


def with_files(folder, **files):
    for name, content in files.items():
        (_empty(folder) if not folder.exists() else folder).joinpath(name.replace("__", ".")).write_bytes(content)
    return folder


_HEADER = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
FLOAT8 = len(_HEADER).to_bytes(8, "little") + _HEADER + b"\0"  # numpy has no such type


def with_index(folder, file):
    content = json.dumps({"weight_map": {"a": file}}).encode()
    return with_files(folder, model__safetensors__index__json=content, config__json=b"{}")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: p / "nothing", "nothing: not found"),
        (_empty, r"model\.safetensors: not found; a Hugging Face model is"),
        (lambda p: with_files(p, model__safetensors=b""), r"config\.json: not found"),
        (lambda p: with_files(p, model__safetensors=b"", config__json=b"{"), r"config\.json: not JSON"),
        (lambda p: with_files(p, model__safetensors=b"", config__json=b"[]"), r"config\.json: found a list"),
        (lambda p: with_files(p, model__safetensors=b"x" * 99, config__json=b"{}"), r"not a safetensors file"),
        (lambda p: with_files(p, model__safetensors=FLOAT8, config__json=b"{}"), "found tensors of a type that cannot"),
        (lambda p: with_index(p, "sub/x.safetensors"), "found the file 'sub/x.safetensors', expected names of"),
        (lambda p: with_index(p, ""), "found the file '', expected names of"),
        (lambda p: with_index(p, 3), "found the file 3, expected names of"),
        (lambda p: with_files(p, model__bin=b"x") / "model.bin", r"model\.bin: expected a directory with"),
    ],
)
def test_command_names_what_is_wrong(tmp_path, make, message):
    with pytest.raises(SystemExit, match=message):
        clip.main([str(make(tmp_path / "source")), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_command_overwrites_nothing(tmp_path):
    source = _write_hugging_face(tmp_path / "source", *_hugging_face_micro())
    out = with_files(tmp_path / "out", mine=b"")
    with pytest.raises(SystemExit, match="not empty"):
        clip.main([str(source), str(out)])
    clip.main([str(source), str(tmp_path / "ours")])
    with pytest.raises(SystemExit, match="not empty"):
        clip.main(["--export", str(tmp_path / "ours"), str(out)])
    assert [path.name for path in out.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "sizes",
    [
        dict(
            hidden_size=64, num_attention_heads=4, image_size=32, patch_size=8, num_hidden_layers=3, projection_dim=24
        ),
        dict(
            hidden_size=96, num_attention_heads=2, image_size=28, patch_size=14, num_hidden_layers=1, projection_dim=96
        ),
    ],
)
def test_transformers_computes_the_same(tmp_path, sizes):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**sizes, intermediate_size=4 * sizes["hidden_size"])
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    for parameter in model.parameters():  # away from zero biases and unit scales, which would hide a swap
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "theirs")
    pictures = torch.randn(3, 3, sizes["image_size"], sizes["image_size"])

    def run(model):
        with torch.no_grad():
            out = model(pixel_values=pictures)
        return out.last_hidden_state.numpy(), out.image_embeds.numpy()

    expected_tokens, expected_features = run(model)
    clip.main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    params, saved = load_weights(tmp_path / "ours")
    tokens, features = _apply(
        params["encoder"], VitConfig(**saved["model"], dtype="float32"), pictures.movedim(1, -1).numpy()
    )
    assert_close(tokens, expected_tokens)
    assert_close(features, expected_features)

    clip.main(["--export", str(tmp_path / "ours"), str(tmp_path / "exported")])
    exported = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    assert_close(run(exported.eval())[1], expected_features, tolerance=1e-2)  # its weights were rounded to float16
