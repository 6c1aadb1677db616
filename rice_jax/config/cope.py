"""Settings of COPE: its model and its loss."""

import dataclasses
from collections.abc import Iterator

from rice_jax.config.fields import setting
from rice_jax.config.text import TextTowerSettings

DOMAINS = PAGE, VIDEO, LIVE = "page", "video", "live"


@dataclasses.dataclass(frozen=True)
class CopeSettings:
    """Settings of the model of task "cope", beside those of its encoders."""

    embed_dim: int = setting(
        128, "Size of an embedding; `config.model.embed_dim` is that of a visual feature.", minimum=1
    )
    text_domains: str = setting(
        "page",
        'Domains whose items have a text with `config.model.text` "tower": some of "page", "video", and "live", '
        "separated by commas.",
    )
    max_tokens: int = setting(32, "Longest text, with its two special tokens; longer ones are cut.", minimum=3)
    num_classes: int = setting(
        0,
        "Products that the class matrix has a row for. Training counts those of its data, whatever is set; "
        "`scripts/compile_for_tpu.py`, which reads no data, needs it.",
        minimum=0,
        free=True,
    )

    @property
    def text_domain_names(self) -> tuple[str, ...]:
        """The names in `text_domains`."""
        return tuple(name.strip() for name in self.text_domains.split(",")) if self.text_domains else ()

    def context(self, tower: TextTowerSettings) -> int:
        """Tokens of the longest text."""
        return min(self.max_tokens, tower.context)

    def problems(self) -> Iterator[str]:
        """A line for what is wrong with the names of domains."""
        names = self.text_domain_names
        if not names or not set(names) <= set(DOMAINS) or len(set(names)) < len(names):
            yield (
                f"config.model.cope.text_domains: found {self.text_domains!r}, expected some of {', '.join(DOMAINS)}, "
                "each once, separated by commas; config.model.text='off' leaves texts out"
            )


@dataclasses.dataclass(frozen=True)
class CopeLossConfig:
    """The losses of task "cope"."""

    pairs: str = setting(
        "page-video:1,page-live:1,video-live:1",
        'Pairs of views that are contrasted, each with its weight. A view is a domain, "page", "video", or "live", '
        'or a part of one with a text, such as "page_visual" and "page_text".',
    )
    class_weight: float = setting(
        1.0, "Weight of the classification of each domain's items by product; 0: there is no class matrix.", minimum=0
    )
    sampled_classes: int = setting(
        0,
        "Classes that a step compares its items with: the batch's own, and others drawn anew. At least the batch size; "
        "0: all classes.",
        minimum=0,
    )

    @property
    def weighted_pairs(self) -> tuple[tuple[str, str, float], ...]:
        """The two views and the weight of each pair.

        Raises:
            ValueError: `pairs` has another form.
        """
        found = []
        for text in self.pairs.split(",") if self.pairs else ():
            names, _, weight = text.strip().partition(":")
            first, second = names.split("-")
            found.append((first, second, float(weight)))
        return tuple(found)

    def problems(self, text_domains: tuple[str, ...]) -> Iterator[str]:
        """Settings that exclude each other.

        Args:
            text_domains: domains whose items have a text.
        """
        expected = 'expected pairs and weights above 0, such as "page-video:1,page-live:0.5"'
        try:
            pairs = self.weighted_pairs
        except ValueError:
            yield f"config.loss.cope.pairs: found {self.pairs!r}, {expected}"
            return
        views = {*DOMAINS, *(f"{name}_{part}" for name in text_domains for part in ("visual", "text"))}
        for first, second, weight in pairs:
            if unknown := sorted({first, second} - views):
                yield f"config.loss.cope.pairs: found {unknown[0]!r}, expected some of {', '.join(sorted(views))}"
            elif first == second or not 0 < weight < float("inf"):
                yield f"config.loss.cope.pairs: found '{first}-{second}:{weight:g}', {expected}"
        if len({frozenset(pair[:2]) for pair in pairs}) < len(pairs):
            yield f"config.loss.cope.pairs: found {self.pairs!r}, expected each pair once"
        if not pairs and not self.class_weight:
            yield "config.loss.cope.pairs and class_weight: found neither, expected one of them"
        if self.sampled_classes and not self.class_weight:
            yield (
                f"config.loss.cope.sampled_classes: found {self.sampled_classes} with config.loss.cope.class_weight=0, "
                "which has no classes; set it to 0"
            )
