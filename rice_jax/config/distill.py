"""Settings of distillation: the encoder learns from a teacher's embeddings of the same pictures."""

import dataclasses
from collections.abc import Iterator

from rice_jax.config.fields import setting


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """The settings of `config.loss` that concern `config.data.teacher`."""

    distill_weight: float = setting(
        0.0,
        "Weight of the distillation of relations: within a batch, each image and each video should be as similar to "
        "the others as their teacher's embeddings are. 0: off.",
        minimum=0,
    )
    distill_direct_weight: float = setting(
        0.0,
        "Weight of the direct distillation: a linear layer, which only training has, maps an embedding to the "
        "teacher's. 0: off.",
        minimum=0,
    )
    distill_temperature: float = setting(
        0.1,
        "Temperature of the distillation of relations, for the teacher's cosines and for the embeddings'.",
        above=0,
    )
    distill_dim: int = setting(512, "Size of the embeddings in `data.teacher`.", minimum=1)

    @property
    def distills(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.distill_weight or self.distill_direct_weight)

    def distill_problems(self, teacher: str, task: str) -> Iterator[str]:
        """Settings that exclude each other.

        Args:
            teacher: `config.data.teacher`.
            task: `config.task`.
        """
        weights = (
            f"config.loss.distill_weight={self.distill_weight} and distill_direct_weight={self.distill_direct_weight}"
        )
        if self.distills and task != "retrieval":
            yield f"config.task: found {task!r} with {weights}, expected 'retrieval', which alone reads a teacher"
        elif self.distills and not teacher:
            yield f"config.data.teacher: found '' with {weights}, expected a folder of the teacher's embeddings"
        if teacher and not self.distills:
            yield f"config.data.teacher: found {teacher!r} with {weights}, which do not read it; set one of them"
