"""A small text tower on disk, with random weights and the recorded vocabulary."""

import json
import shutil
from pathlib import Path

import safetensors.numpy

from rice_jax.convert.text import convert
from scripts.parity import Case
from tests.golden.cases import HERE

SIZES = dict(vocab_size=187, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=48)
EMBED_DIM = 16


def write_text_model(directory: Path, shift: float = 0.0) -> Path:
    """Converts the recorded Chinese-CLIP; returns the converted tower's directory.

    Args:
        directory: for the source and the result.
        shift: added to a weight, for another model.
    """
    case, source = Case(HERE / "text" / "chinese_clip.npz"), directory / "source"
    source.mkdir(parents=True)
    state = case.under("params/")
    state["text_projection.weight"] = state["text_projection.weight"] + shift
    safetensors.numpy.save_file(state, source / "model.safetensors")
    config = SIZES | dict(max_position_embeddings=56)
    values = {"model_type": "chinese_clip", "projection_dim": EMBED_DIM, "text_config": config}
    (source / "config.json").write_text(json.dumps(values))
    shutil.copy(HERE / "text" / "vocab.txt", source)
    convert(source, directory / "text")
    return directory / "text"
