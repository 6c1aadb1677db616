"""Task "cope": trains COPE on a page, a short video, and a live clip of each product, and compares the domains."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from rice_jax.config import Config, ConfigError
from rice_jax.config.cope import DOMAINS, LIVE, PAGE
from rice_jax.config.model import OF_VIDEOS
from rice_jax.files import write_lines
from rice_jax.input.items import ProductItems, list_classes
from rice_jax.input.triplets import triplet_batches
from rice_jax.losses.contrastive import similarity
from rice_jax.losses.cope import Centers, Pair, cope_loss
from rice_jax.losses.cosface import sample_classes
from rice_jax.models.cope import CLASSES, CopeConfig, Fused
from rice_jax.models.create import create_model
from rice_jax.parallel.blocks import split_classes, take_classes
from rice_jax.parallel.mesh import each_device
from rice_jax.tasks.domains import BetweenDomains, domain_problems
from rice_jax.tasks.retrieval import require_even_chunks
from rice_jax.train.chunks import in_chunks
from rice_jax.train.steps import Batch, Loss, Metrics

CLASS_ROWS = 1024  # the class matrix has a multiple of them, so that it divides over any usual number of devices
PRODUCTS = "products.txt"  # of a workdir

logger = logging.getLogger(__name__)


class CopeTask(BetweenDomains):
    """COPE, trained and evaluated between pages, short videos, and live clips."""

    def check(self, config: Config) -> None:
        for problem in (*domain_problems(config), *_problems(config)):
            raise ConfigError(problem)

    def prepare(self, config: Config, workdir: Path) -> Config:
        """Numbers the products for the classification, those that the run knows as before."""
        items = ProductItems(config.input)
        logger.info(
            "%d products have items in two domains or more; %d with items in only one are left out",
            *(len(items), items.num_left_out),
        )
        if not config.loss.cope.class_weight:
            return config
        path, products = config.data.products or str(workdir / PRODUCTS), items.product_ids
        classes = list_classes(path, products)
        if lost := len(set(classes) - set(products)):
            logger.warning(
                "%s: %d of its %d products have no items in the data any more; their centers stay, so that the others' "
                "numbers do not change",
                *(path, lost, len(classes)),
            )
        if jax.process_index() == 0:
            write_lines(path, classes)
        multihost_utils.sync_global_devices("the products are listed")  # before another process reads the list
        cope = dataclasses.replace(config.model.cope, num_classes=len(classes))
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, products=path),
            model=dataclasses.replace(config.model, cope=cope),
        )

    def model(self, config: Config) -> CopeConfig:
        has_classes = config.loss.cope.class_weight > 0
        return CopeConfig.of(config.model, class_rows(config.model.cope.num_classes) if has_classes else 0)

    def batches(self, config: Config, start: int, process_index: int, process_count: int) -> grain.DatasetIterator:
        return triplet_batches(config.input, self.model(config).text_domains, start, process_index, process_count)

    def loss(self, config: Config, mesh: Mesh) -> Loss:
        require_even_chunks(config, mesh)
        cope, num_classes = config.loss.cope, config.model.cope.num_classes
        if cope.sampled_classes > num_classes:
            raise ConfigError(
                f"config.loss.cope.sampled_classes: found {cope.sampled_classes}, expected at most the {num_classes} "
                "products of the data"
            )
        # Encoding needs no centers, which chunks would gather on each device.
        graphdef = create_model(dataclasses.replace(self.model(config), num_classes=0), mesh)
        encode = in_chunks(partial(_encode, graphdef), config.train.grad_cache_chunks, each_device(mesh))

        def centers(params: PyTree, product: Int[Array, " B"], step: Int32[Array, ""]) -> Centers:
            rows, number = params[CLASSES]["embedding"], None
            if cope.sampled_classes:
                key = jax.random.fold_in(jax.random.key(config.seed), step)
                number = sample_classes(product, num_classes, cope.sampled_classes, key)
                rows = take_classes(mesh)(rows, number)
            return Centers(rows, number, num_classes, split_classes(mesh))

        def loss(
            _: nnx.GraphDef, params: PyTree, batch: Batch, step: Int32[Array, ""]
        ) -> tuple[Float[Array, ""], Metrics]:
            views, real = batch_views(encode, params, batch)
            product, pairs = batch["product"], [Pair(*pair) for pair in cope.weighted_pairs]
            found, classified = None, {}
            if cope.class_weight:
                found, classified = centers(params, product, step), dict.fromkeys(DOMAINS, cope.class_weight)
            losses = cope_loss(views, product, real, pairs, found, classified)
            return losses["loss"], losses | {"accuracy": _accuracy(views, real, product)}

        return loss


def batch_views(
    encode: Callable[[PyTree, PyTree], dict[str, Fused]], params: PyTree, batch: Batch
) -> tuple[dict[str, Float[Array, "B E"]], dict[str, Bool[Array, " B"]]]:
    """The embeddings of a batch by the names of `losses.cope`, and which rows are real.

    Args:
        encode: the model, a function of (parameters without the centers of classes, items of each domain).
        params: of the model.
        batch: global, of `input.triplets`.
    """
    parts = {part: values for part, values in params.items() if part != CLASSES}
    items = {domain: {name: x for name, x in batch[domain].items() if name != "real"} for domain in DOMAINS}
    views: dict[str, Array] = {}
    real: dict[str, Array] = {}
    for domain, fused in encode(parts, items).items():
        found, has_text = fused.views(domain)
        views |= found
        real |= {name: batch[domain]["real"] & has_text.get(name, True) for name in found}
    return views, real


def class_rows(num_classes: int) -> int:
    """Rows of the class matrix, with those that pad it."""
    return -(-num_classes // CLASS_ROWS) * CLASS_ROWS


def _encode(graphdef: nnx.GraphDef, params: PyTree, items: Mapping[str, Batch]) -> dict[str, Fused]:
    return nnx.merge(graphdef, params)(items)


def _accuracy(views: Mapping[str, Array], real: Mapping[str, Array], product: Int[Array, " B"]) -> Float[Array, ""]:
    """The share of live clips whose nearest page in the batch is of their product, where there is one."""
    cosines = jnp.where(real[PAGE], similarity(views[LIVE], views[PAGE]), -jnp.inf)
    hit, both = product[jnp.argmax(cosines, axis=1)] == product, real[PAGE] & real[LIVE]
    return (hit & both).sum() / jnp.maximum(both.sum(), 1)


def _problems(config: Config) -> Iterator[str]:
    """Settings of a COPE run that exclude each other."""
    data, model, loss = config.data, config.model, config.loss
    if len(data.domain_names) != len(DOMAINS):
        yield (
            f"config.data.domains: found {data.domains!r}, expected three sets with config.task='cope': pages, short "
            "videos, and live clips, in this order"
        )
    if model.architecture not in OF_VIDEOS:
        yield (
            f"config.model.architecture: found {model.architecture!r} with config.task='cope', expected "
            f"{' or '.join(map(repr, OF_VIDEOS))}: COPE encodes a video as a whole"
        )
    if data.batch_size < 2:
        yield f"config.data.batch_size: found {data.batch_size}, expected 2 or more: products are contrasted"
    if data.random_frames:
        yield (
            "config.data.random_frames: found True with config.task='cope', expected False: a page's first picture is "
            "its main one, and a video's frames are spread evenly"
        )
    if not loss.mask_same_image:
        yield ("config.loss.mask_same_image: found False with config.task='cope', which does not read it; leave it out")
    if loss.pmd_weight:
        yield (
            f"config.loss.pmd_weight: found {loss.pmd_weight} with config.task='cope', expected 0: COPE has no decoder"
        )
    if loss.kind != "softmax":
        yield (
            f"config.loss.kind: found {loss.kind!r} with config.task='cope', which does not read it; leave it out, and "
            "see config.loss.cope"
        )
    if loss.contrasts_texts:
        weights = loss.image_title_weight, loss.video_speech_weight, loss.title_speech_weight
        yield (
            f"config.loss.image_title_weight, video_speech_weight, and title_speech_weight: found {weights} with "
            "config.task='cope', expected 0; add pairs of texts to config.loss.cope.pairs, such as "
            "page_visual-page_text:1"
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
