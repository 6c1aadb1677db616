"""Task "cope": trains COPE on a page, a short video, and a live clip of each product, and compares the domains."""

from collections.abc import Iterator

from rice_jax.config import Config, ConfigError
from rice_jax.models.cope import CopeConfig
from rice_jax.tasks.domains import Domains, domain_problems

CLASS_ROWS = 1024  # the class matrix has a multiple of them, so that it divides over any usual number of devices


class CopeTask(Domains):
    """COPE, trained and evaluated between pages, short videos, and live clips."""

    def check(self, config: Config) -> None:
        for problem in (*domain_problems(config), *_problems(config)):
            raise ConfigError(problem)

    def model(self, config: Config) -> CopeConfig:
        model = config.model
        has_classes = config.loss.cope.class_weight > 0
        return CopeConfig(
            model.encoder,
            model.texts.tower if model.texts else None,
            model.cope.text_domain_names if model.texts else (),
            model.cope.embed_dim,
            class_rows(model.cope.num_classes) if has_classes else 0,
        )


def class_rows(num_classes: int) -> int:
    """Rows of the class matrix, with those that pad it."""
    return -(-num_classes // CLASS_ROWS) * CLASS_ROWS


def _problems(config: Config) -> Iterator[str]:
    """Settings of a COPE run that exclude each other."""
    data, model, loss = config.data, config.model, config.loss
    if len(data.domain_names) != 3:
        yield (
            f"config.data.domains: found {data.domains!r}, expected three sets with config.task='cope': pages, short "
            "videos, and live clips, in this order"
        )
    if data.batch_size < 2:
        yield f"config.data.batch_size: found {data.batch_size}, expected 2 or more: products are contrasted"
    if loss.pmd_weight:
        yield (
            f"config.loss.pmd_weight: found {loss.pmd_weight} with config.task='cope', expected 0: COPE has no decoder"
        )
    if loss.kind != "softmax":
        yield (
            f"config.loss.kind: found {loss.kind!r} with config.task='cope', which does not read it; leave it out, and "
            "see config.loss.cope"
        )
    if model.text == "embeddings":
        yield "config.model.text: found 'embeddings' with config.task='cope', expected 'off' or 'tower'"
    if model.text != "off":
        yield from model.cope.problems()
    yield from loss.cope.problems(model.cope.text_domain_names if model.text != "off" else ())
    if 0 < loss.cope.sampled_classes < data.batch_size:
        yield (
            f"config.loss.cope.sampled_classes: found {loss.cope.sampled_classes}, expected config.data.batch_size "
            f"({data.batch_size}) or more, or 0"
        )
