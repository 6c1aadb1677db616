import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from rice_jax.config import PfrConfig, PmdConfig, VitConfig
from rice_jax.convert import reference
from rice_jax.convert.reference import from_reference, to_reference
from rice_jax.convert.tensors import ConvertError
from rice_jax.losses.matching import hardest_negatives
from rice_jax.models.aggregation.mean import embed, masked_mean
from rice_jax.models.rice import Rice, RiceConfig
from rice_jax.models.start import start_from
from rice_jax.models.weights import load_weights, save_weights
from rice_jax.train.checkpoint import open_checkpoints, save
from rice_jax.types import Tokens
from tests.convert.torch_archive import write_archive, write_old
from tests.golden.cases import Case, assert_close

MICRO = dict(image_size=16, patch_size=8, width=64, layers=2, heads=1, embed_dim=16)
MICRO_PMD = dict(num_pairs=1, num_heads=2)
EMBEDDINGS = "transformer.transformer.embeddings."
IN_PROJ = "transformer.transformer.transformer.layers.1.attn.in_proj_weight"
CONV = "transformer.heads.rec.0.weight"


@functools.cache
def _case():
    return Case("micro")


def _micro():
    """The reference's state dict; a new dict each time."""
    return {name.removeprefix("params/"): x for name, x in _case().arrays.items() if name.startswith("params/")}


def _used(state):
    return {name: x for name, x in state.items() if not name.startswith(EMBEDDINGS)}


def _config(**pmd):
    return RiceConfig(
        VitConfig(**MICRO, dtype="float32"),
        logit_scale=1.0,
        pmd=PmdConfig(**(MICRO_PMD | pmd), attention_dropout=0.0),
        pfr=PfrConfig(mask_padding=False, init="random"),
    )


def _abstract(**pmd):
    return nnx.eval_shape(lambda: Rice(_config(**pmd), rngs=nnx.Rngs(0)))


def _rice(**pmd):
    """Our parameters at random, and what a checkpoint says of them."""
    random = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.split(_abstract(**pmd))[1])
    return jax.tree.map(lambda x: random.random(x.shape, np.float32), shapes), MICRO | {"pmd": MICRO_PMD | pmd}


def _assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_an_encoder_that_the_reference_does_not_compute_is_not_exported():
    params, model = _rice()
    with pytest.raises(ConvertError, match="found an encoder with {'activation': 'gelu'}, expected OpenAI's CLIP"):
        to_reference(params, model | {"activation": "gelu"})


def test_reference_to_ours_and_back():
    params, model = from_reference(_micro())
    state = to_reference(params, model)
    assert model == MICRO | {"pmd": MICRO_PMD}
    assert {x.dtype for x in state.values()} == {np.dtype(np.float32)}
    assert state.keys() == _micro().keys()
    _assert_same(_used(state), _used(_micro()))


@pytest.mark.parametrize("num_pairs, num_heads", [(1, 2), (3, 4)])
def test_ours_to_reference_and_back(num_pairs, num_heads):
    params, model = _rice(num_pairs=num_pairs, num_heads=num_heads)
    state = to_reference(params, model)
    again, same = from_reference(state)
    _assert_same(again, params)
    assert same == model
    for block in range(num_pairs):
        for ours, theirs in [("self_blocks", 2 * block), ("cross_blocks", 2 * block + 1)]:
            np.testing.assert_array_equal(
                state[f"transformer.transformer.transformer.layers.{theirs}.mlp.c_fc.weight"],
                params["pmd"][ours]["up"]["kernel"][block].T,
            )


def test_module_prefix():
    params, model = from_reference({f"module.{name}": x for name, x in _micro().items()})
    expected, same = from_reference(_micro())
    _assert_same(params, expected)
    assert model == same


def test_unused_embeddings():
    state = to_reference(*from_reference(_used(_micro())))
    assert state[f"{EMBEDDINGS}class_embedding"].tolist() == [0] * 64
    assert state[f"{EMBEDDINGS}layer_norm.weight"].tolist() == [1] * 64
    assert state[f"{EMBEDDINGS}layer_norm.bias"].tolist() == [0] * 64
    np.testing.assert_array_equal(
        state[f"{EMBEDDINGS}position_embedding.weight"], _micro()["image_encoder.model.positional_embedding"]
    )


def test_without_decoder():
    """A model that was trained by ICL alone."""
    state = {name: x for name, x in _micro().items() if name.startswith(("image_encoder.", "transformer.logit"))}
    params, model = from_reference(state)
    assert params.keys() == {"encoder", "logit_scale"} and model == MICRO
    _assert_same(to_reference(params, model), state)


def test_without_reconstruction():
    state = {name: x for name, x in _micro().items() if ".rec." not in name}
    with pytest.raises(ConvertError, match=r"no transformer\.heads\.rec\.0\.weight.* --pmd_heads=8"):
        from_reference(state)
    params, model = from_reference(state, pmd_heads=4)
    assert params.keys() == {"encoder", "logit_scale", "pmd"} and model["pmd"] == MICRO_PMD | {"num_heads": 4}
    assert to_reference(params, model).keys() == state.keys()


def _rename(old, new):
    return lambda state: state.update({new: state.pop(old)})


def _replace(name, change):
    return lambda state: state.update({name: change(state[name])})


@pytest.mark.parametrize(
    "change, message",
    [
        (
            _rename("transformer.heads.vim.weight", "transformer.heads.vim.bias"),
            r"1 .*missing:\n  transformer\.heads\.vim\.weight\n1 .*unknown name:\n  transformer\.heads\.vim\.bias",
        ),
        (
            _rename("transformer.logit_scale", "module.transformer.logit_scale"),
            r"missing:\n  transformer\.logit_scale\n1 .*unknown name:\n  module\.transformer\.logit_scale",
        ),
        (lambda s: s.clear(), r"21 tensors are missing:\n  image_encoder\.model\.class_embedding"),
        (
            lambda s: [s.pop(name) for name in list(s) if "transformer.layers.1." in name],
            r"12 tensors are missing:\n  transformer\.transformer\.transformer\.layers\.1\.",
        ),
        (lambda s: s.update({"text.weight": 0}), r"1 tensors have an unknown name:\n  text\.weight"),
        (
            _replace(IN_PROJ, lambda x: x.T),
            r"layers\.1\.attn\.in_proj_weight: found shape \(64, 192\), expected \(192, 64\)",
        ),
        (
            _replace("transformer.heads.rec.2.weight", lambda x: x[..., 0]),
            r"transformer\.heads\.rec\.2\.weight: found shape \(1, 1, 1\), expected \(1, 1, 1, 1\)",
        ),
        (
            _replace("transformer.logit_scale", lambda x: x[None]),
            r"transformer\.logit_scale: found shape \(1,\), expected \(\)",
        ),
        (
            _replace("transformer.heads.vim.weight", lambda x: x * np.nan),
            r"transformer\.heads\.vim\.weight: found values that are not finite",
        ),
        (_replace(CONV, lambda x: x[0]), r"rec\.0\.weight: found shape \(2, 1, 1\), expected \[pairs \* heads / 2"),
        (_replace(CONV, lambda x: x[:, :1]), r"rec\.0\.weight: found shape \(1, 1, 1, 1\), expected \[pairs"),
        (
            _replace(CONV, lambda x: np.concatenate([x] * 2, axis=1)),
            r"rec\.0\.weight: found shape \(1, 4, 1, 1\), expected \(2, 4, 1, 1\)",
        ),
        (
            _replace(CONV, lambda x: np.concatenate([x, x[:, :1]], axis=1)),
            r"3 heads of PMD: .* divisor of the width 64",
        ),
    ],
)
def test_bad_weights(change, message):
    state = _micro()
    change(state)
    with pytest.raises(ConvertError, match=message):
        from_reference(state)


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_that_cannot_be(heads):
    with pytest.raises(ConvertError, match=f"{heads} heads of the encoder: expected a divisor of the width 64"):
        from_reference(_micro(), encoder_heads=heads)
    with pytest.raises(ConvertError, match=f"{heads} heads of PMD: expected a divisor of the width 64"):
        from_reference(_micro(), pmd_heads=heads)


def test_export_of_other_parameters():
    params, model = from_reference(_micro())
    with pytest.raises(ConvertError, match=r"position_embedding: found shape \(5, 64\), expected \(17, 64\)"):
        to_reference(params, model | {"image_size": 32})
    params["text"] = params["pmd"].pop("match_vector")
    with pytest.raises(ConvertError, match=r"of the reference's RICE:\n  pmd/match_vector: missing\n  text: unknown"):
        to_reference(params, model)


def test_imported_model_computes_the_same(tmp_path, capsys):
    """What the reference recorded, from its file through the command and `config.model.init_from`."""
    file, out = tmp_path / "rice.safetensors", tmp_path / "ours"
    safetensors.numpy.save_file(_micro(), file)
    reference.main(["import", str(file), str(out)])
    said = capsys.readouterr().out
    assert "PMD of 2 blocks of 2 heads, PFR" in said and said.count("\n") == 1
    for flag in (f"init_from={out}", "pmd.num_pairs=1", "pmd.num_heads=2", "pfr.mask_padding=False"):
        assert f"--config.model.{flag}" in said

    params, _ = _rice()
    params = start_from(out, jax.device_put(params), _config())
    for name, value in _compute(params).items():
        assert_close(value, _case().out(name))


def _compute(params):
    graphdef, _ = nnx.split(_abstract())
    image, video, frame_mask = _case().pictures()
    batch, frames = frame_mask.shape

    @jax.jit
    def compute(params):
        model = nnx.merge(graphdef, params)
        pictures = jnp.concatenate([image[:, None], video], axis=1).reshape(-1, *image.shape[1:])
        tokens, features = (x.reshape(batch, 1 + frames, *x.shape[1:]) for x in model.encoder(pictures))
        images, videos = embed(features[:, 0]), embed(masked_mean(features[:, 1:], jnp.asarray(frame_mask)))
        negatives, _ = hardest_negatives(images @ videos.T, 3)
        matches = model.match_batch(
            {"frame_mask": jnp.asarray(frame_mask)}, Tokens(tokens[:, 0], tokens[:, 1:]), negatives
        )
        return {"image_embeddings": images, "video_embeddings": videos, "vim_logits": 10 * matches.cosine}

    return compute(params)


def test_export_of_a_run(tmp_path, capsys):
    params, model = _rice()
    checkpoints = open_checkpoints(tmp_path / "run", keep=1)
    save(checkpoints, 3, params, {"count": np.zeros(1)}, {"model": model, "seed": 0}, {})
    checkpoints.close()
    file = tmp_path / "new" / "rice.safetensors"
    reference.main(["export", str(tmp_path / "run"), str(file)])
    assert "PMD of 2 blocks of 2 heads, PFR" in capsys.readouterr().out
    _assert_same(safetensors.numpy.load_file(file), to_reference(params, model))


def test_heads_from_the_command_line(tmp_path):
    file = tmp_path / "rice.safetensors"
    safetensors.numpy.save_file(_micro(), file)
    reference.main(["import", str(file), str(tmp_path / "ours"), "--encoder_heads=2", "--pmd_heads=2"])
    assert load_weights(tmp_path / "ours")[1]["model"] == MICRO | {"heads": 2, "pmd": MICRO_PMD}


def _written(path, content=b""):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: p / "nothing.safetensors", r"nothing\.safetensors: not found"),
        (lambda p: p / "nothing.pth", r"nothing\.pth: not found"),
        (lambda p: _written(p / "rice.bin"), r"found the suffix '\.bin', expected one of \.safetensors, \.pth"),
        (lambda p: _written(p / "rice.safetensors", b"x" * 99), "not a safetensors file"),
    ],
)
def test_import_names_what_is_wrong(tmp_path, make, message):
    with pytest.raises(SystemExit, match=message):
        reference.main(["import", str(make(tmp_path)), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_export_names_what_is_wrong(tmp_path):
    with pytest.raises(SystemExit, match="found no checkpoint"):
        reference.main(["export", str(tmp_path), str(tmp_path / "rice.safetensors")])
    with pytest.raises(SystemExit, match=r"found the suffix '\.npz'"):
        reference.main(["export", str(tmp_path), str(tmp_path / "rice.npz")])
    params, model = _rice()
    save_weights(tmp_path / "clip", {"encoder": params["encoder"]}, {"model": model})
    with pytest.raises(SystemExit, match=r"not the parameters of the reference's RICE:\n  logit_scale: missing"):
        reference.main(["export", str(tmp_path / "clip"), str(tmp_path / "rice.safetensors")])


def test_commands_overwrite_nothing(tmp_path):
    file, out = tmp_path / "rice.safetensors", tmp_path / "out"
    safetensors.numpy.save_file(_micro(), file)
    out.mkdir()
    _written(out / "mine")
    with pytest.raises(SystemExit, match="not empty"):
        reference.main(["import", str(file), str(out)])
    before = file.read_bytes()
    with pytest.raises(SystemExit, match="rice.safetensors: exists; choose another name"):
        reference.main(["export", str(out), str(file)])
    assert [path.name for path in out.iterdir()] == ["mine"] and file.read_bytes() == before


def test_without_torch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    needs = r"rice\.pth: needs PyTorch: pip install 'rice-jax\[torch\]'"
    save_weights(tmp_path / "ours", *_saved())
    with pytest.raises(SystemExit, match=needs):
        reference.main(["export", str(tmp_path / "ours"), str(tmp_path / "rice.pth")])


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
@pytest.mark.parametrize("write", [write_archive, write_old])
def test_import_without_torch(tmp_path, monkeypatch, key, write):
    monkeypatch.setitem(sys.modules, "torch", None)
    state = {f"module.{name}": x for name, x in _micro().items()}
    file = write(tmp_path / "rice.pth", {key: state, "optimizer": {"lr": [1]}, "epoch": 3} if key else state)
    reference.main(["import", str(file), str(tmp_path / "out")])
    params, model = load_weights(tmp_path / "out")
    expected, same = _saved()
    _assert_same(params, expected)
    assert model == same


def _saved():
    params, model = from_reference(_micro())
    return params, {"model": model}


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_import_of_pth(tmp_path, key):
    torch = pytest.importorskip("torch")
    state = {f"module.{name}": torch.tensor(x) for name, x in _micro().items()}
    torch.save({key: state, "optimizer": {"lr": [1e-4]}, "epoch": 3} if key else state, tmp_path / "rice.pth")
    reference.main(["import", str(tmp_path / "rice.pth"), str(tmp_path / "out")])
    params, model = load_weights(tmp_path / "out")
    expected, same = _saved()
    _assert_same(params, expected)
    assert model == same


def test_export_of_pth(tmp_path):
    torch = pytest.importorskip("torch")
    save_weights(tmp_path / "ours", *_saved())
    reference.main(["export", str(tmp_path / "ours"), str(tmp_path / "rice.pth")])
    state = torch.load(tmp_path / "rice.pth", weights_only=True)
    assert state.keys() == _micro().keys()
    for name, x in _used(_micro()).items():
        assert state[name].dtype == torch.float32
        np.testing.assert_array_equal(state[name].numpy(), x)


def test_pth_that_is_no_state_dict(tmp_path):
    write_archive(tmp_path / "rice.pth", [1, 2])
    with pytest.raises(SystemExit, match="found a list, expected a state dict of tensors"):
        reference.main(["import", str(tmp_path / "rice.pth"), str(tmp_path / "out")])


def test_pth_runs_no_pickled_code(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": {"transformer.logit_scale": _Touch(tmp_path / "ran")}}, tmp_path / "rice.pth")
    with pytest.raises(SystemExit, match="found a .* at 'transformer.logit_scale', expected a state dict"):
        reference.main(["import", str(tmp_path / "rice.pth"), str(tmp_path / "out")])
    assert not (tmp_path / "ran").exists()


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)
