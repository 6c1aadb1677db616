"""Cases recorded from the reference implementation; `README.md` beside them in their source explains every array."""

import json
from pathlib import Path

import numpy as np
import pytest

from rice_jax.config import ModelConfig
from rice_jax.convert.clip import Sizes, from_openai

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "golden"  # the larger cases, where they are at hand
ENCODER = "image_encoder.model."


class Case:
    """Inputs, weights and truth of one golden file."""

    def __init__(self, name: str):
        """Reads a case; skips the test if it is one of the large ones and not there."""
        folder = HERE if (HERE / f"{name}.npz").exists() else SHARED
        if not (folder / f"{name}.npz").exists():
            pytest.skip(f"golden case {name!r} is not beside this checkout")
        self.facts = json.loads((folder / f"{name}.json").read_text())
        self.arrays = dict(np.load(folder / f"{name}.npz"))
        if not any(key.startswith("params/") for key in self.arrays):
            self.arrays |= _by_recipe(folder, self.facts)

    def params(self, prefix: str = "params/") -> tuple[dict, ModelConfig]:
        """Our parameters from the reference's, recorded under a prefix: "params/", "grad/", "after3/" …"""
        start = prefix + ENCODER
        visual = {f"visual.{key[len(start) :]}": value for key, value in self.arrays.items() if key.startswith(start)}
        encoder, sizes = from_openai(visual)
        logit_scale = self.arrays[f"{prefix}transformer.logit_scale"].reshape(()).astype(np.float32)
        return {"encoder": encoder, "logit_scale": logit_scale}, self.model_config(sizes)

    def model_config(self, sizes: Sizes) -> ModelConfig:
        return ModelConfig(
            **{name: getattr(sizes, name) for name in ("image_size", "patch_size", "width", "layers", "embed_dim")},
            heads=self.facts["config"]["clip_heads"],
            logit_scale=self.facts["config"]["logit_scale"],
            dtype="float32",
            remat=False,
            init_from="",
        )

    def pictures(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normalised image [B, S, S, 3], video [B, T, S, S, 3] and frame_mask [B, T]."""
        image = np.moveaxis(self.arrays["in/image"], -3, -1)
        video = np.moveaxis(self.arrays["in/video"], -3, -1)
        return image, video, self.arrays["in/video_temporal_mask"].astype(bool)

    def out(self, name: str) -> np.ndarray:
        return self.arrays[f"out/{name}"]


def _by_recipe(folder: Path, facts: dict) -> dict[str, np.ndarray]:
    recipe = {}
    exec((folder / "recipe.py").read_text(), recipe)
    weights = recipe["weights"](facts["param_shapes"], facts["config"])
    inputs = recipe["inputs"](facts["config"])
    names = ("in/image", "in/video", "in/video_temporal_mask")
    return {f"params/{key}": value for key, value in weights.items()} | dict(zip(names, inputs, strict=True))


def assert_close(actual, expected, tolerance: float = 1e-4) -> None:
    """Largest difference within `tolerance` of the largest expected magnitude, as `golden/README.md` asks."""
    difference = np.abs(np.asarray(actual, np.float64) - expected).max()
    assert difference <= tolerance * np.abs(expected).max(), f"{difference / np.abs(expected).max():.2e} of the maximum"


def relative_l2(actual, expected) -> float:
    return float(np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected))
