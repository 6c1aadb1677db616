"""A small COPE on a small ROPE: settings, batches, and runs inside the test's process."""

from pathlib import Path

import jax
import numpy as np

from rice_jax.config import Config
from tests.settings import small_config

DOMAINS = "rope/pages,rope/videos,rope/lives"
ALL_PAIRS = "page-video:1,page-live:0.5,video-live:1,page_visual-live:0.5,page_text-video:0.25"
NUM_CLASSES, FRAMES, TOKENS = 40, 3, 6


def cope_config(**overrides) -> Config:
    """A tiny COPE without texts."""
    return small_config(
        **{
            "task": "cope",
            "data__train": "",
            "data__query": "",
            "data__gallery": "",
            "data__domains": DOMAINS,
            "data__cut_tail": False,
            "model__architecture": "xclip",
            "model__num_frames": FRAMES,
            "model__integration_heads": 2,
            "model__cope__embed_dim": 8,
            "model__cope__num_classes": NUM_CLASSES,
            "loss__pmd_weight": 0.0,
            "optimizer__kind": "adamw",
            "optimizer__clip_norm": 5.0,
            "eval__num_frames": FRAMES,
        }
        | overrides
    )


def with_text(text_model: Path, **overrides) -> Config:
    """The same with titles, read by the tower of `tests.text_model`."""
    return cope_config(
        **{
            "model__text": "tower",
            "model__text_init_from": str(text_model),
            "model__cope__max_tokens": TOKENS,
            "loss__cope__pairs": ALL_PAIRS,
        }
        | overrides
    )


def batch(size: int, with_titles: bool = True) -> dict:
    """Random triplets, of which some lack an item or a title, and two are of one product."""
    rng = np.random.default_rng(0)

    def items(frames: int) -> dict:
        mask = np.arange(frames) < rng.integers(1, frames + 1, (size, 1))
        return {
            "video": rng.integers(0, 256, (size, frames, 16, 16, 3), np.uint8),
            "frame_mask": mask,
            "real": rng.random(size) > 0.2,
        }

    found = {"page": items(1), "video": items(FRAMES), "live": items(FRAMES)}
    if with_titles:
        found["page"] |= {
            "text_ids": rng.integers(1, 180, (size, TOKENS), np.int32),
            "text_token_mask": np.arange(TOKENS) < rng.integers(0, TOKENS, (size, 1)),
        }
    product = rng.permutation(NUM_CLASSES)[:size].astype(np.int32)
    product[1] = product[0]
    return found | {"product": product, "index": np.arange(size, dtype=np.int32)}


def moved(params: dict, amount: float = 0.1) -> dict:
    """Parameters of which none is a zero or a one by its initialization."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.asarray(x) + amount * rng.standard_normal(x.shape).astype(x.dtype), params)
