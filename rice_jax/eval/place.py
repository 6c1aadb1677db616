"""Where an evaluation writes: a directory holds only results that can be compared.

The first evaluation in a workdir, usually that of its training, writes into the workdir itself. An evaluation of other
data, with other settings, or of other weights has the directory `eval-NAME` in it.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rice_jax.config import Config, resolve
from rice_jax.config.upgrade import upgrade
from rice_jax.eval.results import FILE, read_about
from rice_jax.input.digest import data_digest
from rice_jax.input.text_embeddings import read_embeddings
from rice_jax.input.texts import KINDS
from rice_jax.models.weights import CHECKPOINTS, newest_step, read_config

PREFIX = "eval-"  # of the directories of further evaluations
SETTINGS = ("num_frames", "resize", "image_size", "num_boxes", "ipd", "ipd_use", "ipd_margin", "aggregation")
DIGESTS = ("data", "query_boxes", "texts")  # what a digest stands for

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of an evaluation.

    Attributes:
        directory: for its files.
        evaluation: what is evaluated, and how; results with equal ones can be compared. It goes into `results.json`.
        source: name of the evaluated weights, for `Row`; "" = the run's own.
        is_own: whether the directory is the workdir itself.
    """

    directory: Path
    evaluation: dict[str, Any]
    source: str
    is_own: bool

    @property
    def results(self) -> Path:
        """The file of results."""
        return self.directory / FILE

    def run_name(self, workdir: Path) -> str:
        """The name of a run on pages; with that of the evaluation if it is not the run's own."""
        return workdir.name if self.is_own else f"{workdir.name}/{self.directory.name}"

    def name(self, name: str) -> str:
        """The name of its scores in the run's log: `name`, unless other evaluations have it."""
        return name if self.is_own else self.directory.name


def find_place(config: Config, workdir: Path, source: Path | None) -> Place:
    """Finds the place of an evaluation.

    Args:
        config: settings of the run.
        workdir: of the run.
        source: checkpoint to evaluate; None = the run trains.

    Raises:
        FileNotFoundError: a data set or a file of boxes is missing.
        DataError: `results.json` in the workdir is damaged.
    """
    weights = "" if source is None or source.absolute() == workdir.absolute() else _describe_weights(source)
    evaluation = describe(config) | {"weights": weights}
    path, different = workdir / FILE, []
    if path.exists():
        known = _read_evaluation(path, evaluation)
        # The row tells the run's own weights from those that were evaluated before the training.
        names = sorted((known.keys() | evaluation.keys()) - (set() if weights else {"weights"}))
        # A ranking by pictures is the same without texts, so embeddings of texts may come or go, but not change.
        evaluation = {**{name: known[name] for name in known.keys() & {"texts"}}, **evaluation}
        different = [
            name for name in names if known.get(name) != evaluation.get(name) and (name != "texts" or name in known)
        ]
    short = "/".join(Path(weights).parts[-2:])
    if not different:
        return Place(workdir, evaluation, short, is_own=True)
    digest = hashlib.sha256(json.dumps(evaluation, sort_keys=True).encode()).hexdigest()[:8]
    name = config.data.query.replace("/", "-") or "domains"
    directory = workdir / f"{PREFIX}{name}-{digest}"
    if (directory / FILE).exists():
        read_about(directory / FILE)  # it is found damaged before the work rather than after it
    changes = [
        f"{key} is {evaluation.get(key)!r} instead of {known.get(key)!r}" if key not in DIGESTS else f"other {key}"
        for key in different
    ]
    logger.info("%s: has the results of this evaluation, since %s has others: %s", directory, path, ", ".join(changes))
    return Place(directory, evaluation, short, is_own=False)


def describe(config: Config) -> dict[str, Any]:
    """What an evaluation measures, and how; settings that only change speed or rounding are left out.

    Raises:
        FileNotFoundError: a data set or the file of boxes is missing.
    """
    data = config.eval_input
    about: dict[str, Any] = {"task": config.task}
    if data.domains:
        about |= {"domains": data.domains, "data": _digests(data.data_dir, data.domain_names, "test")}
    else:
        names = {"query": data.query} | ({"gallery": data.gallery} if config.task != "detection" else {})
        about |= names | {"data": _digests(data.data_dir, names.values())}
    about |= _settings(config)
    if data.query_boxes:
        with open(data.query_boxes, "rb") as file:
            about["query_boxes"] = hashlib.file_digest(file, "sha256").hexdigest()
        about["box_min_score"] = data.box_min_score
    if data.texts:
        embeddings = [read_embeddings(data.texts, kind) for kind in KINDS]
        about["texts"] = [own.digest if own else "" for own in embeddings]
    return about


def _settings(config: Config) -> dict[str, Any]:
    """How pictures are seen, and videos are compared."""
    data, model = config.eval_input, config.model
    about: dict[str, Any] = {"num_frames": data.num_frames, "resize": data.resize, "image_size": model.image_size}
    if config.task == "detection":
        about["num_boxes"] = model.detector.num_boxes
    if model.ipd != "off":
        about |= {"ipd": model.ipd, "ipd_use": model.ipd_use, "ipd_margin": model.ipd_margin}
    if model.aggregation.kind != "features":  # version 0.2 knew no other
        own = getattr(model.aggregation, model.aggregation.kind, None)
        about["aggregation"] = {"kind": model.aggregation.kind} | (dataclasses.asdict(own) if own else {})
    if config.eval.score != "mean":  # nor this
        about["score"] = config.eval.score
    return about


def _digests(data_dir: str, names: Iterable[str], split: str = "*") -> list[str]:
    """Of the data sets; the same data may lie elsewhere, and other data may have come to their place."""
    return [data_digest(data_dir, name, split) for name in names]


def _read_evaluation(path: Path, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What the results in a file are of.

    Files of version 0.2 and before tell less. The rest is taken from the run's checkpoint, or else to be equal.
    """
    about = read_about(path)
    if "evaluation" in about:
        return about["evaluation"]
    evaluation = {name: value for name, value in evaluation.items() if name != "score"}  # they know only the mean
    saved = {}
    if step := newest_step(path.parent):
        saved = _settings(resolve(upgrade(read_config(path.parent / CHECKPOINTS / str(step)))))
        evaluation = {name: value for name, value in evaluation.items() if name not in SETTINGS}
    names = {"query": "query", "gallery": "gallery", "domains": "domains", "data_set": "query"}
    known = {new: about[old] for old, new in (names | {"num_frames": "num_frames"}).items() if old in about}
    with contextlib.suppress(KeyError, FileNotFoundError):  # it tells no place, or the data have been moved
        known["data"] = _digests(about["data_dir"], [known[name] for name in ("query", "gallery") if name in known])
    return {**evaluation, "weights": "", **saved, **known}


def _describe_weights(source: Path) -> str:
    """Path and steps of weights that do not come from the run."""
    source = source.absolute()
    if source.parent.name == CHECKPOINTS and source.name.isdecimal():
        return f"{source.parent.parent} after {int(source.name):,} steps"
    step = newest_step(source)
    return f"{source} after {step:,} steps" if step else str(source)
