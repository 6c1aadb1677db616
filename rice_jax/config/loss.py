"""Settings of the losses."""

import dataclasses
from collections.abc import Iterator

from rice_jax.config.cope import CopeLossConfig
from rice_jax.config.distill import DistillSettings
from rice_jax.config.fields import group, setting
from rice_jax.config.text import TextLossSettings

KINDS = "softmax", "sigmoid", "triplet"  # of the loss that contrasts embeddings


@dataclasses.dataclass(frozen=True)
class DetectionLossConfig:
    no_object_weight: float = setting(
        0.1, "Weight of queries without a box in the classification; a query with a box has 1.", minimum=0
    )
    l1_weight: float = setting(5.0, "Weight of the boxes' L1 distance; the classification has 1.", minimum=0)
    giou_weight: float = setting(2.0, "Weight of the boxes' generalized IoU.", minimum=0)


@dataclasses.dataclass(frozen=True)
class LossConfig(DistillSettings, TextLossSettings):
    kind: str = setting(
        "softmax",
        'Loss that contrasts the embeddings of a batch. "softmax": ICL. "sigmoid": SigLIP\'s, which judges every pair '
        'by itself, with a learned scale and bias. "triplet": the furthest of the same product against the nearest '
        "other, by distance.",
        choices=KINDS,
    )
    multi_positive: bool = setting(
        False,
        'Pairs of the batch that share a shop image are each other\'s positives; for `kind` "sigmoid" and "triplet".',
    )
    mask_same_image: bool = setting(True, "Pairs of the batch that share a shop image are not each other's negatives.")
    pmd_weight: float = setting(
        1.0, "Weight of PMD; the loss of `kind` has 1. 0: the model has no decoder, and PFR is off too.", minimum=0
    )
    pfr_weight: float = setting(1.0, "Weight of PFR; 0: off.", minimum=0)
    num_negatives: int = setting(3, "Hardest other videos that PMD matches each image with.", minimum=1)
    negatives: str = setting(
        "batch",
        'Where PMD\'s negatives come from: the global "batch", or the pairs on the same "device", for very large '
        "batches.",
        choices=("batch", "device"),
    )
    match_scale: float = setting(10.0, "Inverse temperature of PMD's softmax over cosines.", above=0)
    detection: DetectionLossConfig = group(DetectionLossConfig, 'Task "detection".')
    cope: CopeLossConfig = group(CopeLossConfig, 'Task "cope".')

    def problems(self) -> Iterator[str]:
        """A line for each pair of settings that exclude each other."""
        if self.multi_positive and self.kind not in ("sigmoid", "triplet"):
            yield (
                f"config.loss.multi_positive: found True with config.loss.kind={self.kind!r}, which has one positive "
                "for each row; set the kind to 'sigmoid' or 'triplet'"
            )
        if self.multi_positive and not self.mask_same_image:
            yield (
                "config.loss.multi_positive: found True with config.loss.mask_same_image=False, which makes the same "
                "pairs negatives; set one of the two"
            )


# The names of the losses in `metrics.jsonl`: those of `kind`, and all of a retrieval run.
CONTRAST_METRICS = tuple("icl" if kind == "softmax" else kind for kind in KINDS)
LOSS_METRICS = (
    *("loss", *CONTRAST_METRICS),
    *(field.name.removesuffix("_weight") for field in dataclasses.fields(LossConfig) if field.name.endswith("_weight")),
)
