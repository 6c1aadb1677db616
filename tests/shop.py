"""A shop on disk whose pictures a fresh model has embedded, and videos that show them."""

import dataclasses
import io
from pathlib import Path
from typing import Any, NamedTuple

import av
import jax
import numpy as np
from flax import nnx
from PIL import Image

from rice_jax.config import MeshConfig
from rice_jax.eval.calibration import Calibration
from rice_jax.eval.embed import model_embedder
from rice_jax.index.store import About, Index, write_index
from rice_jax.input.transforms import center_crop, render
from rice_jax.models.create import create_model, create_params
from rice_jax.models.rice import Rice
from rice_jax.models.weights import embedding_fingerprint, save_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.tasks import TASKS
from tests.settings import small_config

SIDE = 48  # of the pictures
NUM_FRAMES = 4  # of a clip
SCALE, SLOPE, THRESHOLD = 4000.0, 3000.0, 0.9975  # a fresh model's embeddings are all alike


class Shop(NamedTuple):
    directory: Path  # of the index
    model: Rice
    index: Index
    pictures: list[np.ndarray]  # RGB, of the index's rows; some more are in no index
    config: object


def make_shop(directory: Path, *, decoder: bool = True, calibrated: bool = True, ipd: str = "off") -> Shop:
    """Two galleries, "a" of six images and "b" of two."""
    config = small_config(loss__pmd_weight=float(decoder), loss__pfr_weight=0.0, model__ipd=ipd)
    parts = TASKS[config.task].model(config)
    mesh = create_mesh(MeshConfig(1, 1), jax.devices()[:1])
    params = create_params(parts, mesh, seed=3)
    model, weights = nnx.merge(create_model(parts, mesh), params), directory / "weights"
    save_weights(weights, params, config.to_dict())
    pictures = [draw(seed) for seed in range(12)]
    shown = np.stack([show(png(picture), config) for picture in pictures[:8]])
    embedder = model_embedder(nnx.split(model)[0], with_queries=decoder)
    images = jax.jit(embedder.image)(nnx.split(model)[1], {"image": shown})
    fingerprint = embedding_fingerprint(params, parts, config.data.resize)
    calibration = Calibration(SCALE, SLOPE, THRESHOLD, 10, NUM_FRAMES, fingerprint) if calibrated else None
    about = About(parts, config.data.resize, NUM_FRAMES, fingerprint, str(weights), calibration, ipd)
    names = [f"p{row}" for row in range(8)]
    index = Index(
        gallery_ids=["a"] * 6 + ["b"] * 2,
        image_ids=names,
        product_ids=names,
        titles=[f"title {name}" for name in names],
        paths=[str(directory / f"{name}.png") for name in names],
        digests=[""] * 8,
        fields=[{}] * 8,
        vectors=np.asarray(images.embedding),
        queries=np.asarray(images.queries) if decoder else None,
        about=about,
    )
    for path, picture in zip(index.paths, pictures, strict=False):
        Path(path).write_bytes(png(picture))
    write_index(directory / "index", index)
    return Shop(directory / "index", model, index, pictures, config)


def write_products(shop: Shop, directory: Path, product_ids: list[str], **changes: Any) -> Path:
    """Writes the shop's index with other products; returns its directory."""
    index = dataclasses.replace(shop.index, product_ids=product_ids, **changes)
    write_index(directory / "index", index)
    return directory / "index"


def draw(seed: int) -> np.ndarray:
    """A picture of large colored squares."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((SIDE // 4, SIDE // 4, 1))).astype(np.uint8)


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def show(encoded: bytes, config) -> np.ndarray:
    """A picture as evaluation shows it to the model."""
    side = config.model.image_size
    return render(encoded, center_crop(config.data.resize, side), side)


def write_mp4(path: Path, pictures: list[np.ndarray], seconds: float, rate: int = 10, codec: str = "mpeg4") -> Path:
    """Writes a video that shows each picture for `seconds`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.bit_rate = 2_000_000
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            for _ in range(round(seconds * rate)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
