"""Models of open_clip: their JSON says what tensors with OpenAI's names do not."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from rice_jax.convert import clip
from rice_jax.convert.names import TIMM_SIGLIP
from rice_jax.convert.openai import from_open_clip
from rice_jax.convert.tensors import to_theirs
from rice_jax.convert.vit import places, shapes
from rice_jax.models.weights import load_weights
from scripts.parity import Case
from tests.convert.test_clip import SIZES, openai_micro
from tests.convert.torch_archive import write_archive
from tests.golden.cases import find

VISION = {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8}
TIMM = {
    "image_size": 16,
    "timm_model_name": "vit_base_patch16_siglip_224",
    "timm_model_pretrained": False,
    "timm_pool": "map",
    "timm_proj": "none",
}


def values(**vision):
    return {"model_cfg": {"embed_dim": 16, "vision_cfg": VISION | vision, "text_cfg": {"width": 8}}}


def write(folder, state, config, weights="open_clip_model.safetensors"):
    folder.mkdir()
    if weights.endswith(".bin"):
        write_archive(folder / weights, state)
    else:
        safetensors.numpy.save_file(state, folder / weights)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def convert(*arguments):
    clip.main([str(argument) for argument in arguments], prog="rice convert")


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("quick", [True, False])
def test_a_folder_says_its_activation(tmp_path, weights, quick):
    config = values()
    config["model_cfg"]["quick_gelu"] = quick
    source = write(tmp_path / "theirs", openai_micro(), config, weights)
    convert(source, tmp_path / "ours")
    params, saved = load_weights(tmp_path / "ours")
    assert saved == {"model": SIZES | ({} if quick else {"activation": "gelu"})}
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], clip.from_openai(openai_micro())[0])
    with pytest.raises(SystemExit, match="its files say that it computes"):
        convert(source, tmp_path / "other", f"--activation={'gelu' if quick else 'quick_gelu'}")
    with pytest.raises(SystemExit, match="theirs: its files say that it has 1 heads, found --heads=2"):
        convert(source, tmp_path / "other", "--heads=2")
    convert(source, tmp_path / "same", "--heads=1")


def test_a_folder_of_another_program_may_hold_it_too(tmp_path):
    """As those of hub models do whose `config.json` is of their own class."""
    source = write(tmp_path / "theirs", openai_micro(), values())
    (source / "config.json").write_text(json.dumps({"model_type": "marqo"}))
    convert(source, tmp_path / "ours")
    convert(source / "open_clip_model.safetensors", tmp_path / "same")
    assert (
        load_weights(tmp_path / "ours")[1]
        == load_weights(tmp_path / "same")[1]
        == {"model": SIZES | {"activation": "gelu"}}
    )


def test_what_no_tensor_shows_is_read():
    state = openai_micro()
    scales = {f"visual.transformer.resblocks.{i}.ls_{j}.gamma": np.ones(64, np.float32) for i in (0, 1) for j in (1, 2)}
    config = values(head_width=16, norm_kwargs={"eps": 1e-6}, act_kwargs={"approximate": "tanh"}, ls_init_value=0.1)
    config["preprocess_cfg"] = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    params, vit = from_open_clip(state | scales, config)
    assert (vit.heads, vit.epsilon, vit.activation, vit.pixels) == (4, 1e-6, "gelu_tanh", "half")
    assert params["blocks"]["scale_2"].shape == (2, 64)


def test_other_widths_of_the_mlp():
    """ViT-bigG's ratio is 4.9231, of which open_clip takes the whole part: 8192 of 1664."""
    state = openai_micro()
    for i in (0, 1):
        block = f"visual.transformer.resblocks.{i}.mlp"
        state[f"{block}.c_fc.weight"], state[f"{block}.c_fc.bias"] = np.ones((315, 64)), np.ones(315)
        state[f"{block}.c_proj.weight"] = np.ones((64, 315))
    params, vit = from_open_clip(state, values(mlp_ratio=4.9231))
    assert vit.mlp_width == 315 and params["blocks"]["up"]["kernel"].shape == (2, 64, 315)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"layers": [3, 4, 6, 3]}, r"vision_cfg with layers=\[3, 4, 6, 3\], which rice_jax does not compute"),
        ({"pool_type": "avg"}, "pool_type='avg'"),
        ({"attentional_pool": True}, "attentional_pool=True"),
        ({"act_kwargs": {"negative_slope": 0.1}}, "act_kwargs="),
        ({"width": 128}, r"mlp\.c_proj\.bias: found shape \(64,\), expected \(128,\)"),
        ({"image_size": [16, 32]}, r"image_size \[16, 32\], expected a square"),
        ({"image_size": "16"}, r"image_size: found '16' \(str\), expected int"),
        ({"image_size": 17}, r"image_size: found 17, expected a multiple of patch_size \(8\)"),
        ({"norm_kwargs": {"eps": None}}, r"epsilon: found None \(NoneType\), expected float"),
        ({"head_width": 0}, "not the settings of a vision transformer: ZeroDivisionError"),
        (TIMM | {"timm_model_name": "eva02_base_patch16_clip_224"}, "timm_model_name 'eva02_base_patch16_clip_224'"),
    ],
)
def test_what_is_not_computed_is_named(vision, message):
    with pytest.raises(clip.ConvertError, match=message):
        from_open_clip(openai_micro(), values(**vision))


def test_what_is_null():
    for found in ({"model_cfg": None}, {"model_cfg": []}):
        with pytest.raises(clip.ConvertError, match="found no vision_cfg, expected a model of open_clip"):
            from_open_clip(openai_micro(), found)
    assert from_open_clip(openai_micro(), values() | {"preprocess_cfg": None})[1].pixels == "clip"


def test_a_siglip_of_timm(tmp_path):
    """The weights of transformers' SigLIP under timm's names, of which `q` and `kv` stand for one."""
    recorded = Case(find("encoders/siglip_vision"))
    params, config = clip.from_hugging_face(recorded.under("params/"), recorded.facts["config"])
    state = to_theirs(params, places(TIMM_SIGLIP, config), shapes(config), "a Vit")
    for kind in ("weight", "bias"):
        joined = state.pop(f"visual.trunk.attn_pool.qkv.{kind}")
        state[f"visual.trunk.attn_pool.q.{kind}"], state[f"visual.trunk.attn_pool.kv.{kind}"] = np.split(joined, [32])
    state["text.token_embedding.weight"] = np.ones((9, 8), np.float32)
    vision = TIMM | {"timm_model_name": "vit_large_patch16_siglip_256"}
    config = {"model_cfg": {"embed_dim": 32, "vision_cfg": vision}}
    convert(write(tmp_path / "theirs", state, config), tmp_path / "ours")
    found, saved = load_weights(tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, found["encoder"], params)
    model = saved["model"]
    assert (model["heads"], model["activation"], model["pixels"], model["patch_size"]) == (16, "gelu", "half", 4)


def test_a_state_dict_must_be_told(tmp_path):
    path = tmp_path / "epoch_1.pt"
    write_archive(path, {"state_dict": openai_micro()})
    safetensors.numpy.save_file(openai_micro(), tmp_path / "bare.safetensors")
    for source in (path, tmp_path / "bare.safetensors"):
        with pytest.raises(SystemExit, match=rf"{source.name}: found no activation in this file; .*--activation=gelu$"):
            convert(source, tmp_path / "out")
        convert(source, tmp_path / source.stem, "--activation=gelu", "--heads=2")
        assert load_weights(tmp_path / source.stem)[1] == {"model": SIZES | {"activation": "gelu", "heads": 2}}
    with pytest.raises(SystemExit, match="found --heads=3, expected a divisor of the width"):
        convert(path, tmp_path / "out", "--activation=gelu", "--heads=3")


def test_a_wide_state_dict_must_be_told_its_heads(tmp_path):
    state = openai_micro() | {"visual.conv1.weight": np.zeros((1280, 3, 1, 1), np.float32)}
    safetensors.numpy.save_file(state, tmp_path / "h.safetensors")
    with pytest.raises(SystemExit, match=r"h\.safetensors: found a width of 1280 and no number of heads .* add --"):
        convert(tmp_path / "h.safetensors", tmp_path / "out", "--activation=gelu")


def test_a_folder_without_weights(tmp_path):
    folder = write(tmp_path / "theirs", openai_micro(), values())
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"open_clip_model\.safetensors: not found, expected beside open_clip_config"):
        convert(folder, tmp_path / "out")
