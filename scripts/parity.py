"""Recorded cases, and how results are compared with them; `check_parity.py` is the command."""

import json
import runpy
from pathlib import Path
from typing import NamedTuple

import numpy as np

OUTPUT_TOLERANCE = 1e-4  # of an array's largest value
GRADIENT_TOLERANCE = 1e-3  # of an array's L2 norm
EPSILON = float(np.finfo(np.float32).eps)

INPUTS = ("in/image", "in/video", "in/video_temporal_mask")
PROJECTED = ("grad_norm/names", "grad_norm/values", "grad_proj/values")


class Case:
    """A recording: `facts` of the JSON file, the `recorded` arrays, and all `arrays`, including the recipe's."""

    def __init__(self, path: Path):
        self.facts = json.loads(path.with_suffix(".json").read_text())
        self.recorded = dict(np.load(path))
        self.arrays = self.recorded
        stored = set(INPUTS) <= self.recorded.keys() and self.under("params/")
        if not stored and "param_shapes" in self.facts and path.with_name("recipe.py").exists():
            recipe, config = runpy.run_path(str(path.with_name("recipe.py"))), self.facts["config"]
            weights = recipe["weights"](self.facts["param_shapes"], config)
            made = {f"params/{name}": value for name, value in weights.items()}
            if "inputs" in recipe:
                made |= dict(zip(INPUTS, recipe["inputs"](config), strict=True))
            self.arrays = made | self.recorded

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose key starts with a prefix, by the rest of their key."""
        return {key[len(prefix) :]: value for key, value in self.arrays.items() if key.startswith(prefix)}


class Line(NamedTuple):
    """One comparison: its (measure, error, tolerance) triples, and further recorded arrays that it covers."""

    name: str
    measures: tuple[tuple[str, float, float], ...]
    keys: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return all(error <= tolerance for _, error, tolerance in self.measures)  # NaN is not

    def __str__(self) -> str:
        measures = "  ".join(f"{measure} {error:.1e}" for measure, error, _ in self.measures)
        return f"{'ok ' if self.holds else 'BAD'} {self.name:<92} {measures}"


def gradient_norms(case: Case) -> dict[str, float]:
    norms = {name: float(np.linalg.norm(gradient)) for name, gradient in case.under("grad/").items()}
    if set(PROJECTED) <= case.recorded.keys():
        norms |= dict(zip(*(case.recorded[key].tolist() for key in PROJECTED[:2]), strict=True))
    return norms


def gradient_rounding(case: Case) -> float:
    """The rounding error of a parameter's gradient in float32.

    In some gradients, terms of the size of the whole gradient cancel: the gradient of a bias in front of a softmax is
    exactly zero, and in float32 only rounding errors remain, theirs and ours. A difference is therefore ignored if it
    is below float32's resolution at the norm of the whole gradient.
    """
    return EPSILON * float(np.linalg.norm(list(gradient_norms(case).values())))


def of_maximum(actual, expected, tolerance: float = OUTPUT_TOLERANCE) -> tuple[str, float, float]:
    """Largest difference as a share of the largest expected magnitude; integers must be equal."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return f"shape {actual.shape}, not {expected.shape}", np.inf, 0.0
    if np.issubdtype(expected.dtype, np.integer):
        return "different", float(np.sum(actual != expected)), 0.0
    difference = np.abs(actual.astype(np.float64) - expected).max()
    return "of maximum", ratio(difference, np.abs(expected).max()), tolerance


def relative_l2(actual, expected, tolerance: float, rounding: float) -> tuple[str, float, float]:
    """L2 norm of the difference as a share of the expected one, so that `rounding` is within the tolerance."""
    if actual.shape != expected.shape:
        return f"shape {actual.shape}, not {expected.shape}", np.inf, 0.0
    difference = np.linalg.norm(actual.astype(np.float64) - expected)
    return "relative L2", ratio(difference, max(np.linalg.norm(expected), rounding / tolerance)), tolerance


def ratio(difference: float, scale: float) -> float:
    return float(difference / scale) if scale else 0.0 if difference == 0 else np.inf
