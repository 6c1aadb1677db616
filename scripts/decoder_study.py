"""Trains the decoder alone, on the tokens of a frozen encoder, and measures what it tells of products it has not seen.

    scripts/demo.sh --seed=0   # makes weights/sample_encoder and data/built/sample-0
    python data/sample/simulate.py --products data/sample --galleries validation --train_products 1 \
        --test_clips_per_product 12 --seed 7 --out data/raw/validation
    python data/build.py lpr4m --raw_dir data/raw/validation --data_dir data/built/validation --configs query,gallery
    python scripts/decoder_study.py --validation=data/built/validation [--config.data.data_dir=… --config.x.y=z …]

The settings are those of configs/sample_icl.py with two frames a clip. Training pairs are encoded once, a few epochs of
them with their augmentation. Then a decoder is trained for each number of products, choice of negatives, and seed. It
ranks the validation gallery by its cosines alone for the validation products' clips, which it has not seen, and for
comparison as many images of training products for the training pairs. "Both" adds the cosine of the embeddings, with a
weight fitted on the other half of the products (`rice_jax.eval.weight`). Prints rank-1 in percent at several steps, the
mean over the seeds, and the final differences from the embedding with 95 % intervals over the products.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Float16, Float32, Int, PyTree

from rice_jax.commands.errors import errors_in_one_line
from rice_jax.config import Config, MeshConfig, load_config
from rice_jax.config.command_line import override
from rice_jax.eval.weight import cross_fit, fit
from rice_jax.input.ground_truth import read_gallery_index, read_query_index
from rice_jax.input.pipeline import eval_batches, train_batches
from rice_jax.input.source import Source
from rice_jax.losses.contrastive import similarity
from rice_jax.losses.matching import hardest_negatives, matching_loss
from rice_jax.models.aggregation.mean import embed
from rice_jax.models.create import create_model, create_params
from rice_jax.models.start import start_from
from rice_jax.parallel.mesh import create_mesh
from rice_jax.tasks import TASKS, resolve
from rice_jax.tasks.contrast import negative_mask
from rice_jax.train.optimizer import create_optimizer
from rice_jax.types import Tokens
from scripts.paired import differences

SETTINGS = (
    "--config.model.init_from=weights/sample_encoder",
    "--config.loss.pmd_weight=1",
    "--config.loss.pfr_weight=0",
    "--config.data.num_frames=2",
    "--config.eval.num_frames=5",
)
TOGETHER = 16  # clips that are matched with a gallery at a time


class Encoded(NamedTuple):
    """Images and clips as the encoder gives them."""

    images: Float32[np.ndarray, "N E"]  # embeddings
    image_tokens: Float16[np.ndarray, "N L D"]
    clips: Float32[np.ndarray, "M E"]  # embeddings
    clip_tokens: Float16[np.ndarray, "M T L D"]
    frame_mask: Bool[np.ndarray, "M T"]
    products: Int[np.ndarray, " M"]  # of the clips: the place of its image, or in pairs, where N = M, a key


class Ranked(NamedTuple):
    """The scores of all images of a gallery for each clip."""

    cosines: Float32[np.ndarray, "M N"]  # the decoder's
    scores: Float32[np.ndarray, "M N"]  # the embeddings'
    truths: Int[np.ndarray, " M"]  # the place of the product's image

    def hits(self, scores: Float[np.ndarray, "M N"]) -> Bool[np.ndarray, " M"]:
        """Whether the product's image, and no other, has the highest score."""
        own = scores[np.arange(len(scores)), self.truths]
        return np.count_nonzero(scores >= own[:, None], axis=1) == 1

    def both(self) -> Float[np.ndarray, "M N"]:
        """score + weight · cosine, with a weight that is fitted on other products."""
        pairs = np.stack([self.scores, self.cosines], axis=-1)
        is_truth = np.arange(pairs.shape[1]) == self.truths[:, None]
        weights = cross_fit([*map(str, self.truths)], lambda among: fit([*pairs[among]], [*is_truth[among]]))
        return self.scores + weights[:, None] * self.cosines


class Study:
    """A frozen encoder, and decoders that are trained on its tokens."""

    def __init__(self, config: Config):
        self.config, self._mesh = config, create_mesh(MeshConfig(), jax.devices()[:1])
        self._settings = TASKS[config.task].model(config)
        self._graphdef = create_model(self._settings, self._mesh)
        self._params = self._start(0)
        self._encode = jax.jit(self._encode_pictures)  # weights are arguments: as constants they take long to compile
        self._match = jax.jit(self._match_gallery)

    def encode_pairs(self, epochs: int) -> Encoded:
        """Training pairs, each `epochs` times with other augmentation."""
        data, found = self.config.data, []
        num_batches = epochs * len(Source(data.data_dir, data.train, ["image_id"])) // data.batch_size
        for batch in itertools.islice(train_batches(self.config.input), num_batches):
            found.append(Encoded(*self._images(batch), *self._clips(batch), batch["image_key"].copy()))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    def encode_gallery(self, data_dir: str) -> Encoded:
        """The images and clips of a data set with one gallery."""
        config, size = dataclasses.replace(self.config.eval_input, data_dir=data_dir), self.config.eval.batch_size
        rows, queries = read_gallery_index(data_dir, config.gallery).rows, read_query_index(config)
        images = [(self._images(batch), batch["mask"].copy()) for batch in eval_batches(config, "gallery", size)]
        clips = [(self._clips(batch), batch["mask"].copy()) for batch in eval_batches(config, "query", size)]
        products = [rows[query.gallery_id, query.image_ids[0]] for query in queries]
        return Encoded(*_real(images), *_real(clips), np.array(products))

    def train(self, pairs: Encoded, negatives: str, seed: int) -> Iterator[PyTree]:
        """Yields a decoder's parameters after each step of training."""
        number, which = negatives.split()
        num_steps = self.config.train.total_steps
        optimizer = create_optimizer(self.config.optimizer, num_steps, (), self._mesh)

        def loss(params: PyTree, rows: Encoded, key: Array) -> Float[Array, ""]:
            order = similarity(rows.images, rows.clips)
            order = order if which == "hardest" else jax.random.uniform(key, order.shape)
            others, kept = hardest_negatives(order, int(number), negative_mask(rows.products, self.config.loss))
            tokens = Tokens(*(x.astype(jnp.float32) for x in (rows.image_tokens, rows.clip_tokens)))
            model = nnx.merge(self._graphdef, self._params | params)
            matches = model.match_batch({"frame_mask": rows.frame_mask}, tokens, others, dropout_key=key)
            return matching_loss(matches.cosine, self.config.loss.match_scale, kept)

        @jax.jit
        def update(params: PyTree, state: PyTree, rows: Encoded, key: Array) -> tuple[PyTree, PyTree]:
            changes, state = optimizer.update(jax.grad(loss)(params, rows, key), state, params)
            return optax.apply_updates(params, changes), state

        params = {"pmd": self._start(seed)["pmd"]}
        state, generator = optimizer.init(params), np.random.default_rng(seed)
        for step in range(num_steps):
            rows = generator.choice(len(pairs.products), self.config.data.batch_size, replace=False)
            key = jax.random.fold_in(jax.random.key(seed), step)
            params, state = update(params, state, _take(pairs, rows), key)
            yield params

    def rank(self, params: PyTree, test: Encoded) -> Ranked:
        """Ranks the images for each clip."""
        parts = range(0, len(test.products), TOGETHER)
        clips = [
            (test.clip_tokens[start : start + TOGETHER], test.frame_mask[start : start + TOGETHER]) for start in parts
        ]
        cosines = [self._match(params, test.image_tokens, *clip) for clip in clips]
        return Ranked(np.concatenate(cosines), test.clips @ test.images.T, test.products)

    def _start(self, seed: int) -> PyTree:
        params = create_params(self._settings, self._mesh, seed)
        return start_from(self.config.model.init_from, params, self._settings)

    def _encode_pictures(self, params: PyTree, pictures: Array) -> tuple[Array, Array]:
        features, tokens = nnx.merge(self._graphdef, params).encode_frames(pictures)
        return features, tokens.astype(jnp.float16)

    def _images(self, batch: dict) -> tuple[np.ndarray, np.ndarray]:
        features, tokens = self._encode(self._params, batch["image"])
        return jax.device_get((embed(features), tokens))

    def _clips(self, batch: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        video, mask = batch["video"], batch["frame_mask"].copy()
        found = self._encode(self._params, video.reshape(-1, *video.shape[2:]))
        features, tokens = (x.reshape(*mask.shape, *x.shape[1:]) for x in found)
        model = nnx.merge(self._graphdef, self._params)
        return *jax.device_get((model.aggregate(features, jnp.asarray(mask)), tokens)), mask

    def _match_gallery(self, params: PyTree, image_tokens: Array, clip_tokens: Array, frame_mask: Array) -> Array:
        model = nnx.merge(self._graphdef, self._params | params)
        queries = model.pmd.image_queries(image_tokens.astype(jnp.float32))
        queries = jnp.broadcast_to(queries, (len(clip_tokens), *queries.shape))
        return model.match(queries, clip_tokens.astype(jnp.float32), frame_mask)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validation", required=True, help="directory of data sets with one gallery of other products")
    parser.add_argument("--products", default="60,240,491", help="numbers of training products")
    parser.add_argument(
        "--negatives",
        default="3 hardest,3 random,15 hardest,15 random",
        help="numbers of an image's negatives, and which of the batch they are (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--every", type=int, default=200, help="steps between evaluations")
    parser.add_argument("--epochs", type=int, default=4, help="of training pairs to encode")
    parser.add_argument("--seeds", default="0,1")
    flags, overrides = parser.parse_known_args(arguments)
    settings = [*SETTINGS, f"--config.train.total_steps={flags.steps}", *overrides]
    with errors_in_one_line():
        study = Study(resolve(override(load_config("sample_icl").to_dict(), settings)))
        pairs, test = study.encode_pairs(flags.epochs), study.encode_gallery(flags.validation)
    order = np.random.default_rng(0).permutation(np.unique(pairs.products))
    names = [*map(str, test.products)]
    steps = range(flags.every, flags.steps + 1, flags.every)
    print(f"{len(test.products)} clips of {len(test.images)} products; {len(order)} training products")
    print(_line("products", "negatives", "rank-1 of", *steps, "both"), _line(*["---"] * (len(steps) + 4)), sep="\n")
    leads = []
    for number, negatives in itertools.product(map(int, flags.products.split(",")), flags.negatives.split(",")):
        own = _take(pairs, np.isin(pairs.products, order[:number]))
        known, curves, ends = gallery_of(own, len(test.images)), [], []
        for seed in map(int, flags.seeds.split(",")):
            trained = itertools.islice(study.train(own, negatives, seed), flags.every - 1, None, flags.every)
            found = [[study.rank(params, some) for some in (known, test)] for params in trained]
            curves.append([[ranked.hits(ranked.cosines).mean() for ranked in pair] for pair in found])
            ends.append(found[-1][1])
        of_known, of_test = 100 * np.mean(curves, axis=0).T
        both = [ranked.hits(ranked.both()) for ranked in ends]
        print(_line(number, negatives, "training", *map(_percent, of_known), ""))
        print(
            _line(number, negatives, "validation", *map(_percent, of_test), _percent(100 * np.mean(both))), flush=True
        )
        base = ends[0].hits(ends[0].scores)
        hits = np.mean([ranked.hits(ranked.cosines) for ranked in ends], axis=0), np.mean(both, axis=0)
        leads.append(_line(number, negatives, *differences(np.stack(hits, axis=1) - base[:, None], names)))
    print(f"\nrank-1 by the embedding: {_percent(100 * base.mean())}; chance: {_percent(100 / len(test.images))}\n")
    print(_line("products", "negatives", "decoder − embedding", "both − embedding"), _line(*["---"] * 4), sep="\n")
    print(*leads, sep="\n")


def gallery_of(pairs: Encoded, num: int) -> Encoded:
    """A gallery of the first images of `num` products, and all pairs' clips of these."""
    keys, first = np.unique(pairs.products, return_index=True)
    own = _take(pairs, np.isin(pairs.products, keys[:num]))
    images = _take(pairs, first[:num])
    return own._replace(
        images=images.images, image_tokens=images.image_tokens, products=np.searchsorted(keys, own.products)
    )


def _take(pairs: Encoded, rows: np.ndarray) -> Encoded:
    return jax.tree.map(lambda values: values[rows], pairs)


def _real(batches: Sequence[tuple[tuple[np.ndarray, ...], np.ndarray]]) -> list[np.ndarray]:
    """The arrays of all batches without the rows that fill the last one."""
    return [
        np.concatenate([array[mask] for array, (_, mask) in zip(own, batches, strict=True)])
        for own in zip(*(found for found, _ in batches), strict=True)
    ]


def _percent(value: float) -> str:
    return f"{value:.1f}"


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
