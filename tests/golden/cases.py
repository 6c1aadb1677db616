"""Cases recorded from the reference implementation; `README.md` beside them in their source explains every array."""

from pathlib import Path

import numpy as np
import pytest

from scripts import check_parity

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "golden"  # the larger cases, where they are at hand
ENCODER = "image_encoder.model."


def find(name: str) -> Path:
    """A case's file; skips the test if it is one of the large ones and not there."""
    path = (HERE if (HERE / f"{name}.npz").exists() else SHARED) / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"golden case {name!r} is not beside this checkout")
    return path


class Case(check_parity.Case):
    def __init__(self, name: str):
        super().__init__(find(name))

    def pictures(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normalized image [B, S, S, 3], video [B, T, S, S, 3] and frame_mask [B, T]."""
        image = np.moveaxis(self.arrays["in/image"], -3, -1)
        video = np.moveaxis(self.arrays["in/video"], -3, -1)
        return image, video, self.arrays["in/video_temporal_mask"].astype(bool)

    def out(self, name: str) -> np.ndarray:
        return self.arrays[f"out/{name}"]


def assert_close(actual, expected, tolerance: float = 1e-4) -> None:
    """Largest difference within `tolerance` of the largest expected magnitude, as `golden/README.md` asks."""
    difference = np.abs(np.asarray(actual, np.float64) - expected).max()
    assert difference <= tolerance * np.abs(expected).max(), f"{difference / np.abs(expected).max():.2e} of the maximum"
