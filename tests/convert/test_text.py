"""Text towers of every source, against an implementation in float64 and against transformers' modules."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rice_jax.cli import main
from rice_jax.config import TextConfig, VitConfig
from rice_jax.convert import hub, text
from rice_jax.convert.tensors import ConvertError
from rice_jax.convert.text import from_hugging_face_text, from_original_text
from rice_jax.models.rice import RiceConfig
from rice_jax.models.weights import load_weights
from scripts.parity import Case
from scripts.parity_text import named, text_outputs
from tests.golden.cases import HERE, assert_close

VOCAB, WIDTH, LAYERS, POSITIONS, EMBED = 30, 64, 2, 9, 12
OPENAI_SHAPES = {
    "token_embedding.weight": (VOCAB, WIDTH),
    "positional_embedding": (POSITIONS, WIDTH),
    "ln_final.weight": (WIDTH,),
    "ln_final.bias": (WIDTH,),
    "text_projection": (WIDTH, EMBED),
}
BLOCK_SHAPES = {
    "ln_1.weight": (WIDTH,),
    "ln_1.bias": (WIDTH,),
    "attn.in_proj_weight": (3 * WIDTH, WIDTH),
    "attn.in_proj_bias": (3 * WIDTH,),
    "attn.out_proj.weight": (WIDTH, WIDTH),
    "attn.out_proj.bias": (WIDTH,),
    "ln_2.weight": (WIDTH,),
    "ln_2.bias": (WIDTH,),
    "mlp.c_fc.weight": (96, WIDTH),
    "mlp.c_fc.bias": (96,),
    "mlp.c_proj.weight": (WIDTH, 96),
    "mlp.c_proj.bias": (WIDTH,),
}
IDS = np.array([[28, 3, 4, 5, 29, 0, 0], [28, 29, 0, 0, 0, 0, 0], [28, 7, 7, 1, 0, 2, 29]])
MASK = np.arange(7) < np.array([[5], [2], [7]])
PICTURES = {"visual.conv1.weight": np.zeros((64, 3, 4, 4), np.float32), "logit_scale": np.zeros((), np.float32)}


def openai_state() -> dict[str, np.ndarray]:
    shapes = OPENAI_SHAPES | {
        f"transformer.resblocks.{i}.{name}": shape for i in range(LAYERS) for name, shape in BLOCK_SHAPES.items()
    }
    rng = np.random.default_rng(3)
    return {name: (0.2 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def oracle(state: dict[str, np.ndarray], ids: np.ndarray, last: np.ndarray, heads: int) -> np.ndarray:
    """CLIP's text feature in float64, one text after the other."""
    state = {name: value.astype(np.float64) for name, value in state.items()}

    def norm(x, name):
        centered = x - x.mean(-1, keepdims=True)
        return (
            centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * state[name + ".weight"]
            + state[name + ".bias"]
        )

    features = []
    for row, end in zip(ids, last, strict=True):
        x = state["token_embedding.weight"][row] + state["positional_embedding"][: len(row)]
        for i in range(LAYERS):
            block = f"transformer.resblocks.{i}."
            qkv = norm(x, block + "ln_1") @ state[block + "attn.in_proj_weight"].T + state[block + "attn.in_proj_bias"]
            q, k, v = (part.reshape(len(row), heads, -1).swapaxes(0, 1) for part in np.split(qkv, 3, axis=1))
            scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
            scores = np.where(np.tri(len(row), dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(row), -1)
            x = x + mixed @ state[block + "attn.out_proj.weight"].T + state[block + "attn.out_proj.bias"]
            hidden = norm(x, block + "ln_2") @ state[block + "mlp.c_fc.weight"].T + state[block + "mlp.c_fc.bias"]
            hidden = hidden / (1 + np.exp(-1.702 * hidden))
            x = x + hidden @ state[block + "mlp.c_proj.weight"].T + state[block + "mlp.c_proj.bias"]
        features.append(norm(x, "ln_final")[end] @ state["text_projection"])
    return np.stack(features)


def features(params, config) -> np.ndarray:
    return encode(params, config, IDS, MASK)


def encode(params, config, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    run = jax.jit(lambda params, ids, mask: text_outputs(config, params, ids, mask)["feature"])
    return np.asarray(run(params, jnp.asarray(ids, jnp.int32), jnp.asarray(mask)))


def hugging_face_state(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """OpenAI's tensors under transformers' names, by hand."""
    theirs = {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.final_layer_norm.weight": state["ln_final.weight"],
        "text_model.final_layer_norm.bias": state["ln_final.bias"],
        "text_projection.weight": state["text_projection"].T.copy(),
    }
    parts = {"ln_1": "layer_norm1", "attn.out_proj": "self_attn.out_proj", "ln_2": "layer_norm2"}
    parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for i in range(LAYERS):
        ours, layer = f"transformer.resblocks.{i}.", f"text_model.encoder.layers.{i}."
        for kind in ("weight", "bias"):
            for name, other in parts.items():
                theirs[f"{layer}{other}.{kind}"] = state[f"{ours}{name}.{kind}"]
            for letter, part in zip("qkv", np.split(state[f"{ours}attn.in_proj_{kind}"], 3), strict=True):
                theirs[f"{layer}self_attn.{letter}_proj.{kind}"] = part.copy()
    return theirs


CLIP_CONFIG = {
    "model_type": "clip",
    "projection_dim": EMBED,
    "text_config": dict(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=96
    )
    | dict(max_position_embeddings=POSITIONS, hidden_act="quick_gelu"),
}


@pytest.mark.parametrize("prefix", ["", "text.", "module."])
def test_clips_own_names(prefix):
    state = openai_state()
    renamed = {prefix + name: value for name, value in state.items()} | PICTURES
    params, config, _ = from_original_text(renamed, "quick_gelu", heads=4)
    assert (config.kind, config.context, config.vocab_size, config.embed_dim) == ("clip", POSITIONS, VOCAB, EMBED)
    assert_close(features(params, config), oracle(state, IDS, MASK.sum(1) - 1, heads=4), tolerance=1e-5)


def test_transformers_names_of_clip():
    state = openai_state()
    renamed = hugging_face_state(state) | {"vision_model.x": np.zeros(1), "visual_projection.weight": np.zeros(1)}
    params, config, names = from_hugging_face_text(renamed, CLIP_CONFIG)
    assert_close(features(params, config), oracle(state, IDS, MASK.sum(1) - 1, heads=4), tolerance=1e-5)
    back = named(params, names, config)
    assert back.keys() == hugging_face_state(state).keys()
    assert all((value == renamed[name]).all() for name, value in back.items())


def test_padding_changes_nothing():
    params, config, _ = from_original_text(openai_state(), "gelu", heads=2)
    other = np.where(MASK, IDS, 9)
    outputs = [encode(params, config, ids, MASK) for ids in (IDS, other)]
    np.testing.assert_array_equal(*outputs)


def chinese_clip(original: bool) -> tuple[dict[str, np.ndarray], dict]:
    """The recorded tower's tensors under either kind of names."""
    case = Case(HERE / "text" / "chinese_clip.npz")
    sizes, state = case.facts["config"], case.under("params/")
    config = dict(vocab_size=187, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=48)
    config |= dict(max_position_embeddings=56, type_vocab_size=2)
    if original:
        state = {
            f"module.bert.{name.removeprefix('text_model.')}": x for name, x in state.items() if "text_model" in name
        }
        state["module.text_projection"] = case.arrays["params/text_projection.weight"].T.copy()
        state |= {"module.logit_scale": np.zeros(()), "module.visual.proj": np.zeros((2, 2))}
        state["module.bert.pooler.dense.weight"] = np.zeros((24, 24), np.float32)
    return state, {"model_type": "chinese_clip", "projection_dim": sizes["projection"], "text_config": config}


def test_both_kinds_of_chinese_clip_are_the_same():
    first, config, _ = from_hugging_face_text(*chinese_clip(original=False))
    second, other, _ = from_original_text(chinese_clip(original=True)[0], "gelu", heads=3)
    assert config == other and config.context == 52
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("token_embedding.weight"), "1 tensors are missing:\n  token_embedding.weight"),
        (lambda s: s.update(other=np.zeros(2)), "1 tensors have an unknown name:\n  other"),
        (lambda s: s.update({"ln_final.bias": np.zeros(3)}), r"ln_final.bias: found shape \(3,\), expected \(64,\)"),
        (lambda s: s.update({"ln_final.bias": np.full(64, np.nan)}), "ln_final.bias: found values that are not finite"),
    ],
)
def test_every_tensor_finds_its_place_or_is_named(change, message):
    state = openai_state()
    change(state)
    with pytest.raises(ConvertError, match=message):
        from_original_text(state, "gelu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t5"}, "found model_type 't5', expected a text tower of one of chinese_clip, clip, bert"),
        ({"model_type": "bert", "hidden_act": "relu"}, "found hidden_act 'relu', expected one of"),
        ({"model_type": "bert", "hidden_act": ["gelu"]}, r"found hidden_act \['gelu'\], expected one of"),
        (
            {"model_type": "bert", "layer_norm_eps": None},
            r"text_tower\.epsilon: found None \(NoneType\), expected float",
        ),
        ({"model_type": "bert", "num_attention_heads": 7}, "found 7, expected a divisor of the width"),
    ],
)
def test_other_models_are_refused(config, message):
    with pytest.raises(ConvertError, match=message):
        from_hugging_face_text({}, config)


def test_the_command_writes_weights_settings_and_tokenizer(tmp_path, capsys):
    state, config = chinese_clip(original=False)
    source = tmp_path / "source"
    source.mkdir()
    safetensors.numpy.save_file(state, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match="found none of a tokenizer's files .*; set --tokenizer"):
        main(["convert", "text", str(source), str(tmp_path / "out")])
    (source / "vocab.txt").write_bytes((HERE / "text" / "vocab.txt").read_bytes())
    with pytest.raises(SystemExit) as ended:
        main(["convert", "text", str(source), str(tmp_path / "out")])
    assert not ended.value.code
    assert (
        "a Chinese-CLIP text tower of 0.0 million parameters, width 24, 3 blocks of 3 heads, gelu, vocabulary of 187"
        in (capsys.readouterr().out)
    )
    params, saved = load_weights(tmp_path / "out")
    expected, tower, _ = from_hugging_face_text(state, config)
    jax.tree.map(np.testing.assert_array_equal, params["text"], expected)
    assert saved["text"] == tower.own
    assert (tmp_path / "out" / "tokenizer" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    for flag, found in (("--heads=2", "has 3 heads"), ("--activation=quick_gelu", "computes 'gelu'")):
        with pytest.raises(SystemExit, match=f"source: its files say that it {found}, found {flag}"):
            main(["convert", "text", str(source), str(tmp_path / "other"), flag])
    assert not (tmp_path / "other").exists()


def test_a_file_without_configuration(tmp_path):
    state = openai_state()
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "merges.txt").write_text("#version\nt h\n")
    with pytest.raises(ConvertError, match="found no activation in this file"):
        text.convert(tmp_path / "model.safetensors", tmp_path / "out")
    text.convert(tmp_path / "model.safetensors", tmp_path / "out", activation="quick_gelu", heads=4)
    params, saved = load_weights(tmp_path / "out")
    assert saved["text"]["activation"] == "quick_gelu" and saved["text"]["heads"] == 4
    jax.tree.map(np.testing.assert_array_equal, params["text"], from_original_text(state, "quick_gelu", 4)[0])


def test_a_texts_heads_divide_the_width_of_texts_and_not_of_pictures(tmp_path):
    state = openai_state() | {"visual.conv1.weight": np.zeros((1664, 3, 1, 1), np.float32)}
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "merges.txt").write_text("#version\nt h\n")
    width = state["ln_final.weight"].shape[0]
    _, config, _ = text.read_source(tmp_path / "model.safetensors", activation="gelu", heads=4)
    assert config.heads == 4 and 1664 % 3 and width % 3
    for heads in (3, 0, -1):
        with pytest.raises(ConvertError, match=f"found --heads={heads}, expected a divisor of the width of {width}"):
            text.read_source(tmp_path / "model.safetensors", activation="gelu", heads=heads)


def test_open_clip_folders(tmp_path):
    state = openai_state() | PICTURES
    safetensors.numpy.save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "merges.txt").write_text("#version\nt h\n")
    cfg = {"embed_dim": EMBED, "vision_cfg": {}, "text_cfg": {"context_length": POSITIONS, "heads": 4}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}))
    _, config, _ = text.read_source(tmp_path)
    assert (config.activation, config.heads) == ("gelu", 4)
    cfg["text_cfg"]["hf_model_name"] = "roberta"
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}))
    with pytest.raises(ConvertError, match="found text_cfg with hf_model_name='roberta'"):
        text.read_source(tmp_path)


def test_a_model_that_reads_texts_is_not_exported(tmp_path):
    with pytest.raises(ConvertError, match="found a decoder that reads texts, expected config.model.text='off'"):
        hub.require_exportable(RiceConfig(VitConfig(), text=TextConfig(EMBED)), tmp_path)


@pytest.mark.parametrize("kind", ["clip", "chinese_clip", "bert"])
def test_transformers_computes_the_same(kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
    sizes |= dict(max_position_embeddings=11, attn_implementation="eager")
    torch.manual_seed(0)
    if kind == "bert":
        config = transformers.BertConfig(**sizes)
        model = transformers.BertModel(config)
        run = lambda **x: model(**x).pooler_output  # noqa: E731
    elif kind == "clip":
        ends = dict(eos_token_id=49, bos_token_id=48, pad_token_id=0, projection_dim=6)
        config = transformers.CLIPTextConfig(**sizes, **ends)
        model = transformers.CLIPTextModelWithProjection(config)
        run = lambda **x: model(**x).text_embeds  # noqa: E731
    else:
        text_sizes = transformers.ChineseCLIPTextConfig(**sizes).to_dict()
        vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=4)
        config = transformers.ChineseCLIPConfig(
            text_config=text_sizes, vision_config=vision | dict(patch_size=2), projection_dim=6
        )
        model = transformers.ChineseCLIPModel(config)
        run = lambda **x: model.text_projection(model.text_model(**x).last_hidden_state[:, 0])  # noqa: E731
    state = {name: value.numpy() for name, value in model.eval().state_dict().items()}
    params, tower, _ = from_hugging_face_text(state, config.to_dict())
    ids = np.array([[48, 3, 4, 49, 0], [48, 7, 8, 9, 49]])
    mask = np.arange(5) < np.array([[4], [5]])
    with torch.no_grad():
        expected = run(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int))).numpy()
    assert_close(encode(params, tower, ids, mask), expected)
