"""A model as a folder for Hugging Face's hub: files that transformers reads, and `rice.json` with the rest.

`model.safetensors` and `config.json` hold the encoder, `preprocessor_config.json` how a picture is shown to it,
`projection.safetensors` the projection if the class has no place for it, `decoder.safetensors` the decoder if there is
one, and `rice.json` what else transformers has no place for. docs/export.md describes them. `rice convert` reads the
folder back.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from rice_jax.config import PIXEL_STATISTICS
from rice_jax.convert.tensors import ConvertError, read_safetensors, write_safetensors
from rice_jax.files import write_lines
from rice_jax.models.cope import CopeConfig
from rice_jax.models.rice import RiceConfig

RICE, DECODER, PROJECTION = "rice.json", "decoder.safetensors", "projection.safetensors"
CALIBRATION = "calibration.json"  # where `eval.calibration` looks for it, beside the weights
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# Aggregations without parameters, for which a class of transformers would have no place.
AGGREGATIONS = "features", "embeddings"
BICUBIC = 3  # Pillow's number


@dataclasses.dataclass(frozen=True)
class Rest:
    """What an exported folder holds beside the encoder.

    Attributes:
        projection: kernel `[D, E]` of the projection for which the encoder's class has no place; None = none.
        params: of the decoder, by the names of the model's parts.
        config: settings, by group.
        calibration: content of `calibration.json`; None = none.
    """

    projection: np.ndarray | None = None
    params: PyTree = dataclasses.field(default_factory=dict)
    config: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    calibration: dict[str, Any] | None = None


def require_exportable(model: RiceConfig | CopeConfig, source: Path) -> None:
    """Refuses a model whose clips no class of transformers can be told to embed.

    Raises:
        ConvertError: its aggregation has parameters, or it reads texts or has heads for domains.
    """
    if isinstance(model, CopeConfig):
        raise ConvertError(f"{source}: holds COPE, expected RICE: {RICE} has no place for the heads of its domains")
    if model.text:
        raise ConvertError(
            f"{source}: found a decoder that reads texts, expected config.model.text='off': {RICE} has no place for "
            "its layers"
        )
    if model.aggregation.kind not in AGGREGATIONS:
        raise ConvertError(
            f"{source}: found config.model.aggregation.kind={model.aggregation.kind!r}, expected one of "
            f"{', '.join(map(repr, AGGREGATIONS))}: a class of transformers for pictures has no place for the "
            "parameters of another"
        )


def round_params(params: PyTree, dtype: str) -> PyTree:
    """Parameters in float32 with the values that they have in another type.

    Raises:
        ConvertError: a value is beyond the range of the type.
    """

    def rounded(path: tuple, value: jax.Array | np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            found = np.asarray(value, np.float32).astype(DTYPES[dtype]).astype(np.float32)
        if not np.isfinite(found).all():
            name = "/".join(str(key.key) for key in path)
            raise ConvertError(
                f"{name}: found a value beyond {dtype}, up to {np.abs(value).max()}; use --dtype=float32"
            )
        return found

    return jax.tree_util.tree_map_with_path(rounded, params)


def preprocessor(resize: int, size: int, pixels: str) -> dict[str, Any]:
    """The content of `preprocessor_config.json`: a picture squashed to a square, then cropped in its center.

    Args:
        resize: side of the square, pixels.
        size: side of the crop, pixels.
        pixels: name of pixel statistics, `VitConfig.pixels`.
    """
    mean, std = PIXEL_STATISTICS[pixels]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": resize, "width": resize},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def write_hub(
    out: Path,
    encoder: tuple[Mapping[str, np.ndarray], Mapping[str, Any]],
    further: Mapping[str, PyTree],
    rice: Mapping[str, Any],
    card: str,
) -> None:
    """Writes the folder.

    Args:
        out: a new or empty directory.
        encoder: tensors by their names in transformers, and the content of `config.json`.
        further: parameters in files of their own, by the file's name.
        rice: content of `rice.json`; its `dtype` is that of all tensors.
        card: content of `README.md`.
    """
    dtype = DTYPES[rice["dtype"]]
    state, config = encoder
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / "model.safetensors", {name: x.astype(dtype) for name, x in state.items()})
    _write_json(out / "config.json", {**config, "dtype": rice["dtype"]})
    _write_json(out / "preprocessor_config.json", preprocessor(rice["resize"], rice["image_size"], rice["pixels"]))
    for name, params in further.items():
        flat = traverse_util.flatten_dict(params, sep="/")
        write_safetensors(out / name, {path: np.ascontiguousarray(x, dtype) for path, x in flat.items()})
    _write_json(out / RICE, rice)
    write_lines(out / "README.md", [card])


def read_rest(folder: Path) -> Rest:
    """Reads what an exported folder holds beside the encoder; nothing from a folder without `rice.json`.

    Raises:
        ConvertError: a file is damaged or missing.
    """
    path = folder / RICE
    if not path.is_file():
        return Rest()
    try:
        rice = json.loads(path.read_text(encoding="utf-8"))
        model: dict[str, Any] = {"ipd": rice["ipd"]}
        if rice["aggregation"]:
            model["aggregation"] = {"kind": rice["aggregation"]}
        config = {"model": model, "data": {"resize": rice["resize"]}, "eval": {"num_frames": rice["num_frames"]}}
        calibration, decoder, projection = rice["calibration"], rice["decoder"], rice.get("projection")
        if decoder:
            model["pmd"] = {name: decoder[name] for name in ("num_pairs", "num_heads")}
    except (ValueError, KeyError, TypeError) as error:
        raise ConvertError(f"{path}: is damaged, expected what `rice export hf` writes ({error!r})") from error
    params = {"pmd": _read_further(folder, DECODER, "a decoder")} if decoder else {}
    kernel = _read_further(folder, PROJECTION, "a projection").get("weight") if projection else None
    if projection and (kernel is None or kernel.ndim != 2):
        raise ConvertError(f"{folder / PROJECTION}: found no matrix `weight`, expected what `rice export hf` writes")
    return Rest(None if kernel is None else kernel.T, params, config, calibration)


def _read_further(folder: Path, name: str, what: str) -> PyTree:
    if not (folder / name).is_file():
        raise ConvertError(f"{folder / name}: not found, though {RICE} names {what}; copy the whole folder")
    tensors = {path: x.astype(np.float32) for path, x in read_safetensors(folder / name).items()}
    return traverse_util.unflatten_dict(tensors, sep="/")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_lines(path, [json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)])
