"""Compares aggregations and losses with recorded results, number by number; `check_parity.py` is the command.

A recording holds several cases, of which the `cases` of its JSON file say what they compute.
"""

import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from rice_jax.config import AggregationConfig, AttentionConfig, FrameTransformerConfig
from rice_jax.losses.sigmoid import Rows, pair_losses, sigmoid_loss
from rice_jax.losses.triplet import triplet_loss
from rice_jax.models.aggregation import AGGREGATIONS
from rice_jax.models.aggregation.mean import embed
from scripts.parity import EPSILON, GRADIENT_TOLERANCE, Case, Line, of_maximum, relative_l2

Arrays = Mapping[str, np.ndarray]

# Recorded, but not part of rice_jax.
NOT_BUILT = {
    "difference_transformer": "padding changes its result; difference_transformer_masked is built",
    "seam_match": "a score of pairs, in place of a cosine",
    "text_score": "there is no text",
}
# The kind of each case, and whether its result is of unit length.
CASES: dict[str, tuple[AggregationConfig, bool]] = {
    "mean_of_features": (AggregationConfig("features"), True),
    "mean_of_embeddings": (AggregationConfig("embeddings"), True),
    "seam": (AggregationConfig("attention", AttentionConfig("relu", "score")), False),
    "nvan_mean": (AggregationConfig("attention", AttentionConfig("softmax", "mean")), False),
    "seq_transformer": (AggregationConfig("transformer"), True),
    "difference_transformer_masked": (
        AggregationConfig("transformer", transformer=FrameTransformerConfig(differences=True)),
        True,
    ),
}
TRIPLET = "batch_hard_triplet"
# Recorded names of layers, of which some are called otherwise here.
NAMES = {"attn.qkv": "qkv", "attn.out": "out", "mlp.up": "up", "mlp.down": "down", "W": "out"}
BLOCK = {"theta", "phi", "g", "W", "pair"}  # of a non-local block


def compare_parts(case: Case) -> Iterator[Line]:
    """Compares outputs and gradients; those of `NOT_BUILT` and of unknown cases have no lines."""
    for key, found in part_results(case.recorded, case.facts).items():
        expected, name = case.recorded[key], key.split("/")[0]
        if "/out/" in key:
            yield Line(key, (of_maximum(found, expected),))
        else:
            norms = [np.linalg.norm(gradient) for gradient in case.under(f"{name}/grad/").values()]
            rounding = EPSILON * float(np.linalg.norm(norms))  # as `gradient_rounding` says
            yield Line(key, (relative_l2(found, expected, GRADIENT_TOLERANCE, rounding),))


def aggregation_results(arrays: Arrays, facts: Mapping) -> dict[str, np.ndarray]:
    """Results and gradients of the aggregations and of the triplet loss.

    Args:
        arrays: of the file, by key.
        facts: of the JSON file.

    Returns:
        Arrays by the recording's keys; those of `NOT_BUILT` and of unknown cases are missing.
    """
    results: dict[str, np.ndarray] = {}
    for case in facts["cases"].keys() & CASES.keys():
        config, unit = CASES[case]
        recorded = _under(arrays, f"{case}/params/")
        config, params = _aggregation(config, recorded, facts)
        inputs = arrays["in/frames"], arrays["in/frame_mask"], arrays[f"{case}/in/cotangent"]
        out, (by_params, by_frames) = _differentiate(config, unit, params, *inputs)
        results |= {f"{case}/out/video": np.asarray(out), f"{case}/grad/frames": np.asarray(by_frames)}
        ours = flatten_dict(by_params, sep="/")
        for name in recorded:
            place, row = _place(name)
            value = np.asarray(ours[place] if row is None else ours[place][row])
            value = value.T if name.endswith(".weight") and value.ndim == 2 else value
            results[f"{case}/grad/{name}"] = value.reshape(recorded[name].shape)
    return results | (_triplet_results(arrays) if TRIPLET in facts["cases"] else {})


def siglip_results(arrays: Arrays, facts: Mapping) -> dict[str, np.ndarray]:
    """Losses, sums over blocks, and gradients of SigLIP's loss; see `aggregation_results`."""
    results: dict[str, np.ndarray] = {}
    for case, about in facts["cases"].items():
        given = {key: jnp.asarray(value, _dtype(value)) for key, value in _under(arrays, f"{case}/in/").items()}
        same_image = {"plain": "negative", "mask_same": "mask", "multi_positive": "positive"}[about["mode"]]
        value, losses, gradients = _sigmoid(same_image, given)
        size = len(losses) // about["devices"]
        blocks = np.asarray(losses).reshape(about["devices"], size, about["devices"], size).sum(axis=(1, 3))
        results |= {f"{case}/out/loss": np.asarray(value), f"{case}/out/block_sums": blocks}
        results |= {f"{case}/grad/{name}": np.asarray(gradient) for name, gradient in gradients.items()}
    return results


def part_results(arrays: Arrays, facts: Mapping) -> dict[str, np.ndarray]:
    """The results of either recording, which its JSON file tells apart; see `aggregation_results`."""
    return (aggregation_results if "heads" in facts else siglip_results)(arrays, facts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _differentiate(config: AggregationConfig, unit: bool, params: PyTree, frames, frame_mask, cotangent):
    kind, embed_dim = AGGREGATIONS[config.kind], frames.shape[-1]
    graphdef = nnx.split(nnx.eval_shape(lambda: kind(config, embed_dim, rngs=nnx.Rngs(0))))[0]

    def video(params, frames):
        feature = nnx.merge(graphdef, params)(frames, frame_mask)
        return embed(feature) if unit else feature

    out, pull = jax.vjp(video, params, frames)
    return out, pull(cotangent)


@functools.partial(jax.jit, static_argnums=0)
def _sigmoid(same_image: str, given: dict[str, jax.Array]):
    """The loss, that of each pair, and the gradients."""
    features = given["image_feature"], given["video_feature"]
    scales, units = (given["log_scale"], given["bias"]), tuple(map(embed, features))

    def loss(*embeddings_and_scales):
        return sigmoid_loss(*embeddings_and_scales, given["image_key"], same_image, given["real"])

    value, by_units = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(*units, *scales)
    by_features = jax.grad(lambda features: loss(*map(embed, features), *scales))(features)
    sides = (Rows(x, given["image_key"], jnp.arange(len(x)), given["real"]) for x in units)
    names = "image_embedding", "video_embedding", "log_scale", "bias", "image_feature", "video_feature"
    gradients = dict(zip(names, (*by_units, *by_features), strict=True))
    return value, pair_losses(*sides, *scales, same_image), gradients


def _triplet_results(arrays: Arrays) -> dict[str, np.ndarray]:
    product = jnp.asarray(arrays[f"{TRIPLET}/in/product"])
    same = product[:, None] == product
    feature = jnp.asarray(arrays[f"{TRIPLET}/in/feature"])
    loss, gradient = jax.jit(jax.value_and_grad(triplet_loss))(feature, same, ~same)
    keys = f"{TRIPLET}/out/loss", f"{TRIPLET}/grad/feature"
    return dict(zip(keys, (np.asarray(loss), np.asarray(gradient)), strict=True))


def _aggregation(config: AggregationConfig, recorded: Arrays, facts: Mapping) -> tuple[AggregationConfig, dict]:
    """The settings of a case with its sizes, and its parameters under our names."""
    if config.kind == "transformer":
        layers = len({name.split(".")[1] for name in recorded if name.startswith("blocks.")})
        sizes = {"layers": layers, "heads": facts["heads"], "num_frames": len(recorded["position"])}
        transformer = FrameTransformerConfig(**sizes, differences=config.transformer.differences)
        config = AggregationConfig(config.kind, transformer=transformer)
    params: dict[str, np.ndarray] = {}
    for name, value in recorded.items():
        place, row = _place(name)
        value = value.T if name.endswith(".weight") and value.ndim == 2 else value
        if row is None:
            params[place] = value
        else:
            params[place] = np.concatenate([params[place], value[None]]) if row else value[None]
    return config, unflatten_dict(params, sep="/")


def _place(name: str) -> tuple[str, int | None]:
    """Our name of a recorded parameter, and its row among those of all blocks."""
    if "." not in name:
        return name, None
    parts = name.split(".")
    row = int(parts.pop(1)) if parts[0] == "blocks" else None
    last = parts.pop()
    layer = ".".join(parts[1:]) if parts[0] in ("blocks", "difference") else parts[0]
    kind = last if last == "bias" else "scale" if layer.startswith("ln_") else "kernel"
    outer = parts[0] + "/" if parts[0] in ("blocks", "difference") else "block/" if layer in BLOCK else ""
    return f"{outer}{NAMES.get(layer, layer)}/{kind}", row


def _under(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}


def _dtype(value: np.ndarray) -> np.dtype:
    return np.dtype(np.float32) if value.dtype == np.float64 else value.dtype
