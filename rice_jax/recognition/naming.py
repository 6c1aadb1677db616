"""When a product is named, and what it is ranked by."""

import dataclasses
import shlex

from rice_jax.eval.calibration import NONE_PRIOR, Calibration
from rice_jax.types import DataError

SCORES = ("mean", "frames")


@dataclasses.dataclass(frozen=True)
class Naming:
    """When a product is named, and what it is ranked by.

    Attributes:
        min_confidence: a product is named if the probability that it is shown is at least this, 0 to 1; 0 = always.
            None = if it is likelier than not that any product is shown.
        none_prior: probability that a clip shows none of the products, before it is seen, 0 to 1. A calibration takes
            both cases to be as frequent.
        score: "mean" ranks by the cosines of clips, "frames" by frames (`eval.scores`); None = by frames if the index
            has a calibration for it.
    """

    min_confidence: float | None = None
    none_prior: float = NONE_PRIOR
    score: str | None = None

    def __post_init__(self) -> None:
        for name in ("min_confidence", "none_prior"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise DataError(f"{name}: found {value}, expected 0 to 1")
        if self.score not in (None, *SCORES):
            raise DataError(f"score: found {self.score!r}, expected one of {', '.join(map(repr, SCORES))}")

    @property
    def always(self) -> bool:
        """Whether some product is always named."""
        return self.min_confidence == 0

    def require(self, calibration: Calibration | None, index: object) -> None:
        """Checks that an index has what the settings need.

        Raises:
            DataError: it has no calibration, or none for ranking by frames.
        """
        advice = f"label some clips and run rice eval CLIPS.csv --index={shlex.quote(str(index))}"
        if calibration is None and (self.min_confidence or self.none_prior != NONE_PRIOR):
            raise DataError(
                f"{index}: has no calibration, so there are no confidences, which min_confidence and none_prior need; "
                f"{advice}"
            )
        if calibration and self.score == "frames" and calibration.scale_by_frames is None:
            raise DataError(f"{index}: its calibration has no scale for score='frames'; {advice}")

    def by_frames(self, calibration: Calibration | None) -> bool:
        """Whether products are ranked by frames."""
        if self.score is None:
            return calibration is not None and calibration.scale_by_frames is not None
        return self.score == "frames"

    def names(self, confidence: float | None, none: float | None) -> bool:
        """Whether the best product of a clip is named.

        Args:
            confidence: probability that it is shown; None = the index has no calibration.
            none: probability that no product is.
        """
        if self.always or confidence is None or none is None:
            return True
        return none <= 0.5 if self.min_confidence is None else confidence >= self.min_confidence

    def none_cosine(self, calibration: Calibration | None) -> float | None:
        """The largest cosine at which no product is named; None = some product is always named."""
        if calibration is None or self.always:
            return None
        least = 0.5 if self.min_confidence is None else self.min_confidence
        return calibration.cosine_at(least, self.none_prior)

    def best_cosine(self, calibration: Calibration | None, none: float | None) -> float | None:
        """The largest cosine of a clip's products, from the probability `none` that it shows none of them.

        None = it is unknown, since there is no calibration, or one that all cosines have the same probability with.
        """
        if calibration is None or none is None or not calibration.slope or not 0 < none < 1:
            return None
        return calibration.cosine_at(1 - none, self.none_prior)
