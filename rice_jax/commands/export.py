r"""Exports a trained model as a folder that other programs load.

    rice export hf RUN OUT [--dtype=float32]

RUN is a run's workdir, one of its checkpoints, or a converted model. OUT is a
new directory, ready to be a repository of Hugging Face's hub: transformers
loads its `model.safetensors`, `config.json` and `preprocessor_config.json`;
README.md is a model card with the results of RUN; `rice.json` holds what
transformers has no place for. `rice convert OUT MODEL` reads the folder back.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import rice_jax
from rice_jax.commands.errors import errors_in_one_line
from rice_jax.config import Config
from rice_jax.config.fields import build
from rice_jax.config.upgrade import upgrade
from rice_jax.convert import hub
from rice_jax.convert.hub_families import find_export, to_hugging_face
from rice_jax.convert.tensors import ConvertError
from rice_jax.eval.domains import DomainResult
from rice_jax.eval.metrics import Result
from rice_jax.eval.place import PREFIX
from rice_jax.eval.results import FILE, Row, read_about, read_results
from rice_jax.index.model import Model, load_model, read_settings
from rice_jax.logs import warnings_to_stderr
from rice_jax.models.encoders import VIDEO_ENCODERS
from rice_jax.models.rice import RiceConfig
from rice_jax.models.weights import (
    CHECKPOINTS,
    embedding_fingerprint,
    match_fingerprint,
    newest_step,
    read_config,
)
from rice_jax.pages.card import Card, KeptEvaluation, model_card

PRIVATE = "data_dir", "weights"  # of what results say about themselves: paths of the machine that made them


def export_hf(run: Path, out: Path, dtype: str = "float32") -> str:
    """Writes a model as a folder for Hugging Face's hub; returns a line that describes it.

    Args:
        run: a run's workdir, one of its checkpoints, or a converted model.
        out: a new or empty directory.
        dtype: of the weights, one of `hub.DTYPES`.

    Raises:
        CheckpointError: there is no checkpoint, or it holds a detector.
        ConvertError: `out` is not empty, or transformers has no place for the model.
        DataError: the run's results are damaged.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConvertError(f"{out}: exists and is not empty; choose another directory or delete it")
    parts = read_settings(run).model
    hub.require_exportable(parts, run)
    kind, _, alone = find_export(parts.encoder)
    workdir, step, config = _read_run(run)
    evaluations = [] if step is None else _read_evaluations(workdir, step)
    model = load_model(run)
    params = hub.round_params({name: model.params[name] for name in ("encoder", "pmd") if name in model.params}, dtype)
    encoder = model.config.encoder
    further = {hub.DECODER: params["pmd"]} if "pmd" in params else {}
    if alone != parts.encoder:
        further[hub.PROJECTION] = {"weight": params["encoder"]["projection"]["kernel"].T}
    rice = _describe(model, params, dtype) | {
        "class": kind.name,
        "feature": kind.feature,
        "projection": {"file": hub.PROJECTION} if hub.PROJECTION in further else None,
        "step": step,
        "score": config and config.eval.score,
        "evaluation": [_public(found, step) for found in evaluations],
    }
    count = sum(x.size for x in jax.tree.leaves(params["encoder"]))
    card = Card(out.absolute().name, rice, kind.name, kind.feature, count, encoder.embed_dim, config, evaluations)
    hub.write_hub(out, to_hugging_face(params["encoder"], encoder), further, rice, model_card(card))
    return f"{out}: {kind.name} of {count / 1e6:.1f} million parameters, {dtype}"


def main(arguments: list[str] | None = None, prog: str = "python -m rice_jax.commands.export") -> None:
    """Runs the command; the module's docstring is its help."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("form", choices=("hf",), help="hf: for Hugging Face's transformers and hub")
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument(
        "--dtype", choices=tuple(hub.DTYPES), default="float32", help="type of the weights (default: float32, exact)"
    )
    options = parser.parse_args(arguments)
    with errors_in_one_line(ConvertError), warnings_to_stderr():
        print(export_hf(options.run, options.out, options.dtype))


def _describe(model: Model, params: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """What `rice.json` says about the model itself; its fingerprints are those of the rounded weights."""
    about, config = model.about, model.config
    assert isinstance(config, RiceConfig)
    fingerprint = embedding_fingerprint(params, config, about.resize)
    decoder_fingerprint, calibration = match_fingerprint(params, config), about.calibration
    if calibration:
        fitted = calibration.match_fingerprint
        own = decoder_fingerprint if fitted == about.match_fingerprint else fitted
        calibration = dataclasses.replace(calibration, fingerprint=fingerprint, match_fingerprint=own)
    takes_videos = config.encoder.architecture in VIDEO_ENCODERS  # which recognition refuses
    has_frames = calibration is not None and calibration.scale_by_frames is not None
    decoder = config.pmd and {
        "file": hub.DECODER,
        "num_pairs": config.pmd.num_pairs,
        "num_heads": config.pmd.num_heads,
    }
    return {
        "rice_jax": rice_jax.__version__,
        "dtype": dtype,
        "image_size": config.encoder.image_size,
        "pixels": config.encoder.pixels,
        "resize": about.resize,
        "num_frames": about.num_frames,
        "ipd": about.ipd,
        "aggregation": None if takes_videos else config.aggregation.kind,
        "recognition_score": None if takes_videos else "frames" if has_frames else "mean",
        "fingerprint": fingerprint,
        "match_fingerprint": decoder_fingerprint,
        "decoder": decoder,
        "calibration": calibration and dataclasses.asdict(calibration),
    }


def _read_run(run: Path) -> tuple[Path, int | None, Config | None]:
    """The workdir, the step of its checkpoint, and the run's settings; no step and no settings of a converted model."""
    checkpoint = run.resolve()
    if not (run / "weights").is_dir():
        checkpoint = checkpoint / CHECKPOINTS / str(newest_step(run))
    if checkpoint.parent.name != CHECKPOINTS or not checkpoint.name.isdecimal():
        return run, None, None
    return checkpoint.parent.parent, int(checkpoint.name), build(Config, upgrade(read_config(checkpoint)))


def _read_evaluations(workdir: Path, step: int) -> list[KeptEvaluation]:
    """The results of a run's own weights at one step, with the baselines and the start beside them."""
    found = []
    for path in [workdir / FILE, *sorted(workdir.glob(f"{PREFIX}*/{FILE}"))]:
        if not path.exists():
            continue
        about = read_about(path)
        results: dict[Row, Any] = read_results(path, DomainResult if "domains" in about else Result)
        kept = {row: result for row, result in results.items() if not row.source and row.step in (None, 0, step)}
        if any(row.step == step for row in kept):
            found.append(KeptEvaluation(about, kept))
    return found


def _public(evaluation: KeptEvaluation, step: int | None) -> dict[str, Any]:
    """An evaluation of the exported weights, as `rice.json` holds it."""
    about = {name: value for name, value in evaluation.about.items() if name not in PRIVATE}
    if "evaluation" in about:
        about["evaluation"] = {name: value for name, value in about["evaluation"].items() if name not in PRIVATE}
    if "domains" not in about:
        about = {"score": "mean"} | about  # as in results, which leave out this default
    rows = [
        dataclasses.asdict(row) | result.to_dict() for row, result in evaluation.results.items() if row.step == step
    ]
    return json.loads(json.dumps({"about": about, "results": rows}))


if __name__ == "__main__":
    main()
