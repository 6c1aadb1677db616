"""What clips are named at a threshold: right, wrong, or nothing."""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Bool, Float

from rice_jax.eval.metrics import LEVEL


@dataclasses.dataclass(frozen=True)
class Counts:
    """What clips are named.

    Attributes:
        right: number of clips that are named by their product.
        wrong: number of clips that are named by another product, or although they show none.
        silent: number of clips that are not named, although they show a product.
        none: number of clips that are not named and show none.
        min_confidence: the least confidence of a name; None = another rule.
    """

    right: int
    wrong: int
    silent: int
    none: int
    min_confidence: float | None = None

    @property
    def wrong_share(self) -> float:
        """Share of the names that are wrong; 0 if there are none."""
        return self.wrong / (self.right + self.wrong) if self.right + self.wrong else 0.0

    @property
    def wrong_interval(self) -> tuple[float, float] | None:
        """Ends of its 95 % confidence interval; None = there are no names.

        Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).
        """
        from scipy.stats import binomtest  # slow to import

        if not self.right + self.wrong:
            return None
        ends = binomtest(self.wrong, self.right + self.wrong).proportion_ci(LEVEL)
        return float(ends.low), float(ends.high)


@dataclasses.dataclass(frozen=True)
class Decisions:
    """What is known about the best product of each of Q clips.

    Attributes:
        right: whether it is the clip's own.
        shows: whether the clip shows a product of the shop.
        confidence: probability that it is shown, 0 to 1; 1 where there is no calibration.
    """

    right: Bool[np.ndarray, " Q"]
    shows: Bool[np.ndarray, " Q"]
    confidence: Float[np.ndarray, " Q"]

    def count(self, named: Bool[np.ndarray, " Q"], min_confidence: float | None = None) -> Counts:
        """Counts the clips that are named and those that are not."""
        silent = ~named & self.shows
        return Counts(
            int((named & self.right).sum()),
            int((named & ~self.right).sum()),
            int(silent.sum()),
            int((~named & ~self.shows).sum()),
            min_confidence,
        )

    def curve(self) -> list[Counts]:
        """The counts at each least confidence that changes them, from 0 on."""
        thresholds = [0.0, *_between(self.confidence)]
        return [self.count(self.confidence >= least, least) for least in thresholds]

    def suggest(self, max_wrong: float) -> Counts | None:
        """The least confidence that names most clips rightly, if no more than this share of the names may be wrong.

        Args:
            max_wrong: share of the names, 0 to 1.

        Returns:
            The counts at it; None if there is none that names any clip.
        """
        fitting = (point for point in self.curve() if point.right and point.wrong_share <= max_wrong)
        return next(fitting, None)


def _between(values: Float[np.ndarray, " Q"]) -> list[float]:
    """A short number between any two neighboring values: above the lower one, and not above the higher one."""
    ordered = np.unique(values).tolist()
    found = []
    for low, high in itertools.pairwise(ordered):
        rounded = (round((low + high) / 2, digits) for digits in range(2, 17))
        found.append(next((number for number in rounded if low < number <= high), high))
    return found
