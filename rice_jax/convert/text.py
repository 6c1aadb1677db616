r"""Converts the text tower of another program's model, with its tokenizer.

    rice convert text SOURCE OUT

SOURCE is one of
    a Hugging Face folder with `config.json` and `model.safetensors` of a
        Chinese-CLIP, CLIP or BERT;
    an open_clip folder with `open_clip_config.json` and the weights of a
        CLIP;
    a file of Chinese-CLIP's or OpenAI's own code, or another `.pt`, `.pth`
        or `.safetensors` file with their names.
No code in SOURCE is run. OUT is a new directory with the weights and, in
`tokenizer`, the files of the tokenizer: `tokenizer.json`, `vocab.txt`,
`merges.txt` or `bpe_simple_vocab_16e6.txt.gz`, copied from the folder of SOURCE
or from --tokenizer. `rice embed-text` reads it.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rice_jax.config import TOKENIZER_FILES, TOKENIZER_FOLDER, TextTowerConfig, TextTowerSettings
from rice_jax.convert.clip import check_given, found_activation, known_activation
from rice_jax.convert.hugging_face import read_hugging_face
from rice_jax.convert.names import (
    ACTIVATIONS,
    BERT,
    CHINESE_CLIP_TEXT,
    CHINESE_CLIP_TEXT_ORIGINAL,
    CLIP_TEXT,
    OPENAI_TEXT,
    TEXT_IGNORED,
    Table,
    prefixed,
)
from rice_jax.convert.openai import OPEN_CLIP_CONFIG, read_open_clip
from rice_jax.convert.tensors import (
    ConvertError,
    Places,
    check_names,
    find_places,
    num_layers,
    parameter_places,
    parameter_shapes,
    read_safetensors,
    require_possible,
    to_ours,
)
from rice_jax.convert.torch_files import read_torch
from rice_jax.models.text import TEXT_TOWERS
from rice_jax.models.weights import CheckpointError, save_weights

CHINESE_CLIP_CONTEXT = 52  # what its programs cut a text to, of BERT's 512 positions
_BERT_DEFAULTS: dict[str, Any] = dict(
    vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
) | dict(hidden_act="gelu", max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12)
_CLIP_DEFAULTS: dict[str, Any] = dict(
    vocab_size=49408, hidden_size=512, num_hidden_layers=12, num_attention_heads=8, intermediate_size=2048
) | dict(hidden_act="quick_gelu", max_position_embeddings=77, layer_norm_eps=1e-5)

_OPEN_CLIP = {"context_length", "vocab_size", "width", "heads", "layers"}  # its settings of a text tower


class Names(NamedTuple):
    """How a file names the tensors of a text tower."""

    what: str
    table: Table


def from_hugging_face_text(
    state: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[PyTree, TextTowerConfig, Names]:
    """Converts tensors with transformers' names.

    Args:
        state: the tensors, any float type; those of a vision tower are ignored.
        config: `config.json`, of a whole model or of its text tower alone.

    Returns:
        Parameters of the tower as a nested dict of float32 arrays, its settings, and the names.

    Raises:
        ConvertError: the config does not describe a text tower that rice_jax computes; or listing every unknown name,
            missing name and wrong shape.
    """
    kind = config.get("model_type")
    if kind not in ("chinese_clip", "chinese_clip_text_model", "clip", "clip_text_model", "bert"):
        raise ConvertError(
            f"config.json: found model_type {kind!r}, expected a text tower of one of chinese_clip, clip, bert"
        )
    is_clip = kind.startswith("clip")
    values = (_CLIP_DEFAULTS if is_clip else _BERT_DEFAULTS) | dict(config.get("text_config") or config)
    if str(values["hidden_act"]) not in ACTIVATIONS:
        raise ConvertError(
            f"config.json: found hidden_act {values['hidden_act']!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    if kind == "bert":
        prefix = next((name for name in ("bert.", "bert_model.") if any(key.startswith(name) for key in state)), "")
        names = Names("BERT", prefixed(BERT, "", prefix))
    else:
        names = (
            Names("a CLIP text tower", CLIP_TEXT) if is_clip else Names("a Chinese-CLIP text tower", CHINESE_CLIP_TEXT)
        )
    positions = values["max_position_embeddings"]
    embed_dim = config.get("projection_dim", values.get("projection_dim", 512))
    found: dict[str, Any] = dict(
        kind="clip" if is_clip else "bert",
        vocab_size=values["vocab_size"],
        positions=positions,
        context=min(positions, CHINESE_CLIP_CONTEXT) if kind.startswith("chinese") else positions,
        token_types=values.get("type_vocab_size", 1),
        width=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        mlp_width=values["intermediate_size"],
        activation=ACTIVATIONS[values["hidden_act"]],
        epsilon=values["layer_norm_eps"],
        head="pooler" if kind == "bert" else "projection",
        embed_dim=values["hidden_size"] if kind == "bert" else embed_dim,
    )
    require_possible(TextTowerSettings, found, names.what, "config.model.text_tower")
    tower = TextTowerConfig(**found)
    return convert_text(state, names, tower), tower, names


def from_original_text(
    state: Mapping[str, np.ndarray], activation: str, heads: int | None = None
) -> tuple[PyTree, TextTowerConfig, Names]:
    """Converts tensors with Chinese-CLIP's or OpenAI's own names, and reads the tower's sizes from them.

    Args:
        state: the tensors, any float type, with or without `module.` or open_clip's `text.` before their names.
        activation: as `TextTowerConfig.activation`; no tensor shows it.
        heads: None = one per 64 channels.

    Raises:
        ConvertError: listing every unknown name, missing name and wrong shape.
    """
    state = {name.removeprefix("module.").removeprefix("text."): value for name, value in state.items()}
    is_bert = any(name.startswith("bert.") for name in state)
    names = (
        Names("a Chinese-CLIP text tower", CHINESE_CLIP_TEXT_ORIGINAL)
        if is_bert
        else Names("a CLIP text tower", OPENAI_TEXT)
    )
    layers = num_layers(state, r"(?:bert\.encoder\.layer|transformer\.resblocks)\.(\d+)\.")
    check_names(state, find_places(names.table, {"blocks/": layers}), TEXT_IGNORED, f"{names.what} of {layers} blocks")
    tokens, positions, hidden, projection = (
        state[names.table[path][1][0].format(0)].shape
        for path in ("token_embedding/embedding", "position_embedding", "blocks/up/kernel", "projection/kernel")
    )
    if not all(len(shape) == 2 for shape in (tokens, positions, hidden, projection)):
        raise ConvertError(f"tensors that do not fit {names.what}: found {tokens}, {positions}, {hidden}, {projection}")
    width = tokens[1]
    if heads is None and width % 64:
        raise ConvertError(
            f"found a width of {width} in {names.what}, which is no multiple of 64; set --heads, which no tensor shows"
        )
    if heads is not None and (heads < 1 or width % heads):
        raise ConvertError(f"found --heads={heads}, expected a divisor of the width of {width} in {names.what}")
    tower = TextTowerConfig(
        kind="bert" if is_bert else "clip",
        vocab_size=tokens[0],
        positions=positions[0],
        context=min(positions[0], CHINESE_CLIP_CONTEXT) if is_bert else positions[0],
        token_types=len(state["bert.embeddings.token_type_embeddings.weight"]) if is_bert else 1,
        width=width,
        layers=layers,
        heads=heads or width // 64,
        mlp_width=hidden[0],
        activation=activation,
        epsilon=1e-12 if is_bert else 1e-5,
        embed_dim=projection[1],
    )
    return convert_text(state, names, tower), tower, names


def convert_text(state: Mapping[str, np.ndarray], names: Names, config: TextTowerConfig) -> PyTree:
    """Gathers the parameters of a tower; see `from_hugging_face_text`."""
    for problem in config.problems():
        raise ConvertError(f"not {names.what} that rice_jax computes: {problem}")
    where = text_places(names.table, config)
    check_names(state, where, TEXT_IGNORED, f"{names.what} of {config.layers} blocks")
    return to_ours(state, where, text_shapes(config), f"{names.what} of {config.own}")


def text_places(table: Table, config: TextTowerConfig) -> Places:
    """Their names of each parameter of a tower."""
    return parameter_places(table, text_shapes(config))


def text_shapes(config: TextTowerConfig) -> dict[str, tuple[int, ...]]:
    create: Any = TEXT_TOWERS[config.kind]
    return parameter_shapes(lambda: create(config, rngs=nnx.Rngs(0)))


def convert(
    source: Path,
    out: Path,
    tokenizer: Path | None = None,
    activation: str | None = None,
    heads: int | None = None,
) -> str:
    """Writes the directory `out` from another program's `source`; returns a line that describes it.

    Args:
        source: the model's file or directory.
        out: a new directory.
        tokenizer: folder with the tokenizer's files; None = that of `source`.
        activation: of a model whose files do not name it.
        heads: of a model whose files do not tell; None = one per 64 channels.

    Raises:
        ConvertError: `source` holds no text tower that rice_jax computes, or one of another activation or number of
            heads, or no tokenizer is beside it.
    """
    if not source.exists():
        raise ConvertError(f"{source}: not found")
    folder = tokenizer or (source if source.is_dir() else source.parent)
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not {file.name for file in files} & set(TOKENIZER_FILES[:4]):
        raise ConvertError(
            f"{folder}: found none of a tokenizer's files ({', '.join(TOKENIZER_FILES[:4])}); set --tokenizer to the "
            "folder that has them"
        )
    params, config, names = read_source(source, activation, heads)
    check_given(source, config, activation, heads)
    save_weights(out, {"text": params}, {"text": config.own})
    (out / TOKENIZER_FOLDER).mkdir()
    for file in files:
        shutil.copyfile(file, out / TOKENIZER_FOLDER / file.name)
    millions = sum(x.size for x in jax.tree.leaves(params)) / 1e6
    return (
        f"{out}: {names.what} of {millions:.1f} million parameters, width {config.width}, {config.layers} blocks of "
        f"{config.heads} heads, {config.activation}, vocabulary of {config.vocab_size}, texts of up to "
        f"{config.context} tokens, feature {config.embed_dim}"
    )


def read_source(
    source: Path, activation: str | None = None, heads: int | None = None
) -> tuple[PyTree, TextTowerConfig, Names]:
    """Reads a text tower of any family; see `convert`."""
    folder = source if source.is_dir() else source.parent
    if source.suffix in (".pt", ".pth") and not source.is_dir():
        state, classes = read_torch(source)
        return _from_file(source, state, found_activation(source, classes) or activation, heads)
    if source.is_dir() and (folder / OPEN_CLIP_CONFIG).is_file() and not (folder / "config.json").is_file():
        state, values = read_open_clip(folder)
        model = values.get("model_cfg") or values
        text = model.get("text_cfg") or {}
        if other := sorted(name for name, value in text.items() if value and name not in _OPEN_CLIP):
            listed = ", ".join(f"{name}={text[name]!r}" for name in other)
            raise ConvertError(
                f"{folder / OPEN_CLIP_CONFIG}: found text_cfg with {listed}, which rice_jax does not compute"
            )
        quick = "quick_gelu" if model.get("quick_gelu") else "gelu"
        return from_original_text(state, quick, text.get("heads"))
    if not source.is_dir() and not (folder / "config.json").is_file():
        return _from_file(source, read_safetensors(source), activation, heads)
    return from_hugging_face_text(*read_hugging_face(source))


def _from_file(
    source: Path, state: Mapping[str, np.ndarray], activation: str | None, heads: int | None
) -> tuple[PyTree, TextTowerConfig, Names]:
    if any(name.removeprefix("module.").startswith("bert.") for name in state):
        activation = activation or "gelu"  # of all of Chinese-CLIP's models
    return from_original_text(state, known_activation(source, None, activation), heads)


def main(arguments: list[str] | None = None, prog: str = "python -m rice_jax.convert.text") -> None:
    """Runs the command; the module's docstring is its help."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer's files (default: that of SOURCE)")
    parser.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu", "gelu_tanh"),
        help="what a CLIP's MLPs compute; needed if SOURCE is a state dict, which does not name it",
    )
    parser.add_argument(
        "--heads", type=int, help="number of heads, if SOURCE is a state dict (default: one per 64 channels)"
    )
    values = parser.parse_args(arguments)
    try:
        print(convert(values.source, values.out, values.tokenizer, values.activation, values.heads))
    except (ConvertError, CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
