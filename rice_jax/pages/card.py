"""The model card of an exported model: Markdown with the front matter of Hugging Face's hub."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import jinja2

from rice_jax.config import Config
from rice_jax.eval.domains import DomainResult
from rice_jax.eval.metrics import MIN_GALLERIES, Galleries, Result, Score
from rice_jax.eval.results import Row

# What the makers of data sets say about their pictures, by the first part of a set's name; see data/NAME/README.md.
TERMS = {
    "lpr4m": "LPR4M's pictures belong to streamers, shops, and buyers. No license of them is known. Ask the authors "
    "before any use beyond research. A set that the simulator wrote in LPR4M's layout has the licenses of its own "
    "pictures instead, which its `attribution.csv` names.",
    "movingfashion": "MovingFashion is provided for academic purposes, and its videos show people. Read the authors' "
    "terms.",
    "rope": "The agreement that ROPE's authors send with the files says what may be done with them. A set that the "
    "simulator wrote in ROPE's layout has the licenses of its own pictures instead, which its `attribution.csv` names.",
}


class KeptEvaluation(NamedTuple):
    """The results in one `results.json`, as `eval.results` reads them."""

    about: Mapping[str, Any]
    results: Mapping[Row, Result] | Mapping[Row, DomainResult]


@dataclasses.dataclass(frozen=True)
class Card:
    """What a model card tells.

    Attributes:
        name: of the exported folder.
        rice: content of its `rice.json`.
        class_name: of transformers.
        feature: the output of the class that is the feature.
        num_parameters: of the encoder.
        embed_dim: size of an embedding.
        config: settings of the run; None for weights that no run trained.
        evaluations: of the weights.
    """

    name: str
    rice: Mapping[str, Any]
    class_name: str
    feature: str
    num_parameters: int
    embed_dim: int
    config: Config | None
    evaluations: list[KeptEvaluation]


class Line(NamedTuple):
    """A line of a table of results; without a score it is what chance gives."""

    label: str
    score: Score
    galleries: Galleries
    is_chance: bool = False

    def cells(self) -> list[str]:
        """Rank-k in percent, with its confidence interval if there is one."""
        if self.is_chance:
            return [f"{100 * share:.1f}" for share in self.score.chance.values()]
        ends = self.score.interval or {}
        return [
            f"{100 * share:.1f}" + (f" ({100 * ends[k][0]:.1f}–{100 * ends[k][1]:.1f})" if k in ends else "")
            for k, share in self.score.rank.items()
        ]


def model_card(card: Card) -> str:
    """Renders the card."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rice_jax.pages"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    config = card.config
    tables = [(_title(found.about), list(_lines(found.results)), _is_by_frames(found)) for found in card.evaluations]
    return environment.get_template("card.md.jinja").render(
        card=card,
        rice=card.rice,
        encodes_clips=card.rice["aggregation"] is None,
        config=config,
        tables=tables,
        train_sets=_train_sets(config) if config else [],
        start=PurePath(config.model.init_from).name if config else "",
        terms={name: text for name, text in TERMS.items() if config and _trained_on(config, name)},
        min_galleries=MIN_GALLERIES,
    )


def _train_sets(config: Config) -> list[str]:
    return list(config.data.domain_names) if config.task == "domains" else [config.data.train]


def _trained_on(config: Config, name: str) -> bool:
    return any(data.partition("/")[0] == name for data in _train_sets(config))


def _title(about: Mapping[str, Any]) -> str:
    if "domains" in about:
        return f"Items of one domain among all items of another ({about['domains']})"
    return f"Clips of {about['query']} among the images of their own gallery in {about['gallery']}"


def _is_by_frames(evaluation: KeptEvaluation) -> bool:
    return evaluation.about.get("score") == "frames"


def _lines(results: Mapping[Row, Any]) -> Iterator[Line]:
    """The lines of a table: chance, then each row of the results; of domains, each pair of them."""
    chance = None
    for row, result in results.items():
        if isinstance(result, DomainResult):
            for pair, found in result.retrieval.items():
                yield Line(f"{pair}, chance", found.score, found.galleries, is_chance=True)
                yield Line(f"{pair}, {row.label}", found.score, found.galleries)
            continue
        if chance is None:
            yield (chance := Line("chance", result.score, result.galleries, is_chance=True))
        yield Line(row.label, result.score, result.galleries)
