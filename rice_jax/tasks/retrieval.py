"""Task "retrieval": trains RICE on pairs of a video and its product's image, and ranks a shop's images."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, PyTree

from rice_jax.config import Config, ConfigError, LossConfig
from rice_jax.config.model import OF_PATCHES, OF_VIDEOS
from rice_jax.eval.results import labeled, read_results
from rice_jax.input.pipeline import train_batches
from rice_jax.losses.contrastive import similarity
from rice_jax.losses.matching import hardest_negatives, matching_loss, same_shard
from rice_jax.losses.reconstruction import reconstruction_loss
from rice_jax.losses.sigmoid import one_block
from rice_jax.models.rice import RiceConfig
from rice_jax.models.weights import require_trained_embedding
from rice_jax.pages import tables
from rice_jax.parallel.blocks import fold_pairs
from rice_jax.parallel.mesh import each_device
from rice_jax.tasks.contrast import CONTRASTS, negative_mask
from rice_jax.tasks.distill import distill
from rice_jax.tasks.retrieval_evaluation import (
    RetrievalEvaluator,
    embedding_row,
    fused_row,
    match_row,
    weighted_match_row,
)
from rice_jax.tasks.task import Evaluator, Run, require_data_sets
from rice_jax.tasks.texts import PairedTexts, contrast_texts
from rice_jax.train.chunks import in_chunks
from rice_jax.train.steps import Batch, Loss, Metrics
from rice_jax.types import Embeddings, Tokens


class Retrieval:
    """RICE with ICL, and with PMD and PFR if their weights are above 0."""

    def check(self, config: Config) -> None:
        for problem in retrieval_problems(config):
            raise ConfigError(problem)
        if config.data.domains:
            raise ConfigError(
                f"config.data.domains: found {config.data.domains!r} with config.task={config.task!r}, which does not "
                "read it; set config.task='domains'"
            )

    def prepare(self, config: Config, workdir: Path) -> Config:
        require_data_sets(config, "train", "query", "gallery")
        return config

    def model(self, config: Config) -> RiceConfig:
        loss, model = config.loss, config.model
        pmd = model.pmd if loss.pmd_weight else None
        pfr = model.pfr if pmd and loss.pfr_weight else None
        teacher_dim = loss.distill_dim if loss.distill_direct_weight else 0
        return RiceConfig(
            model.encoder, model.logit_scale, pmd, pfr, model.aggregation, loss.kind, model.texts, teacher_dim
        )

    def batches(self, config: Config, start: int, process_index: int, process_count: int) -> grain.DatasetIterator:
        return train_batches(config.input, start, process_index, process_count)

    def loss(self, config: Config, mesh: Mesh) -> Loss:
        num_shards = mesh.size if config.loss.negatives == "device" else 1
        if config.loss.pmd_weight and config.data.batch_size // num_shards <= config.loss.num_negatives:
            raise ConfigError(
                f"config.loss.negatives='device': found {config.data.batch_size} pairs on {mesh.size} devices, "
                f"expected more than config.loss.num_negatives ({config.loss.num_negatives}) on each; use a larger "
                "batch or 'batch'"
            )
        num_chunks = config.train.grad_cache_chunks
        require_even_chunks(config, mesh)

        def loss(
            graphdef: nnx.GraphDef, params: PyTree, batch: Batch, step: Int32[Array, ""]
        ) -> tuple[Float[Array, ""], Metrics]:
            dropout_key = jax.random.fold_in(jax.random.key(config.seed), step)
            return retrieval_loss(graphdef, params, batch, config.loss, num_shards, dropout_key, num_chunks, mesh)

        return loss

    def evaluators(self, run: Run) -> Mapping[str, Evaluator]:
        require_data_sets(run.config, "query", "gallery")
        if run.source:
            require_trained_embedding(run.source, run.params)
        return {run.place.name("retrieval"): RetrievalEvaluator(run).evaluate}

    def summary(self, run: Run, step: int) -> str:
        results, source = read_results(run.place.results), run.place.source
        num_matched = run.config.eval.rerank
        rows = (
            weighted_match_row(step, num_matched, source),
            match_row(step, num_matched, source),
            fused_row(step, source),
            embedding_row(step, source),
        )
        newest = [row for row in rows if row in results]
        if not newest:
            return ""
        subsets = tables.subset_table(results[newest[0]])
        scores = tables.table(labeled(results))
        return f"{scores}\n\nSubsets {newest[0].label}:\n{subsets}" if subsets else scores


def require_even_chunks(config: Config, mesh: Mesh) -> None:
    """Refuses chunks that do not divide over the devices.

    Raises:
        ConfigError: naming both numbers.
    """
    num_chunks = config.train.grad_cache_chunks
    if num_chunks > 1 and config.data.batch_size % (num_chunks * mesh.size):
        raise ConfigError(
            f"config.train.grad_cache_chunks: found {num_chunks} chunks of {config.data.batch_size} pairs, "
            f"expected chunks that divide over {mesh.size} devices"
        )


def retrieval_loss(
    graphdef: nnx.GraphDef,
    params: PyTree,
    batch: Batch,
    config: LossConfig,
    num_shards: int = 1,
    dropout_key: Array | None = None,
    num_chunks: int = 1,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Total loss over the global batch.

    Args:
        graphdef: of a model with a part for every loss that has a weight.
        params: of the model.
        batch: global, a `types.Batch`.
        config: weights of the losses, and the choice of negatives.
        num_shards: number of equal parts of the batch; negatives come from the part of the image.
        dropout_key: for dropout in the decoder's attention; None = no dropout.
        num_chunks: of the encoding, as in `in_chunks`; the losses always get the global batch.
        mesh: the devices that share the batch; None = one device.

    Returns:
        The loss, and the metrics: `loss`; those of the loss that contrasts embeddings (`Contrast`; `icl` for ICL), and
        of `tasks.distill` and `tasks.texts`; the unweighted `pmd` and `pfr`; `match_accuracy`, the share of images, of
        those with a negative, that the decoder matches best with their own video.
    """
    model = nnx.merge(graphdef, params)
    each_part = each_device(mesh) if mesh else lambda function: function
    needed = partial(_encode, graphdef, with_tokens=config.pmd_weight > 0, with_texts=config.contrasts_texts)
    encode = in_chunks(needed, num_chunks, each_part)
    embeddings, tokens, texts = encode(params, batch)
    fold = fold_pairs(mesh) if mesh else one_block
    loss, metrics = CONTRASTS[config.kind](model, embeddings, batch["image_key"], config, fold)
    if config.distills:
        distilled, found = distill(model, embeddings, batch, config)
        loss, metrics = loss + distilled, metrics | found
    if config.contrasts_texts:
        contrasted, found = contrast_texts(model, embeddings, texts, batch["image_key"], config)
        loss, metrics = loss + contrasted, metrics | found
    if config.pmd_weight:
        mask = negative_mask(batch["image_key"], config)
        if num_shards > 1:
            shard_mask = same_shard(len(embeddings.image), num_shards)
            mask = shard_mask if mask is None else mask & shard_mask
        negatives, kept = hardest_negatives(similarity(*embeddings), config.num_negatives, mask)
        matches = model.match_batch(batch, tokens, negatives, num_shards=num_shards, dropout_key=dropout_key)
        pmd = matching_loss(matches.cosine, config.match_scale, kept)
        loss += config.pmd_weight * pmd
        hardest = jnp.where(kept, matches.cosine[:, 1:], -jnp.inf).max(axis=1)
        judged = kept.any(axis=1)
        right = (judged & (matches.cosine[:, 0] > hardest)).sum() / jnp.maximum(judged.sum(), 1)
        metrics |= {"pmd": pmd, "match_accuracy": right}
        if config.pfr_weight:
            pfr = reconstruction_loss(model.reconstruct(batch, tokens, matches), tokens.image)
            loss += config.pfr_weight * pfr
            metrics["pfr"] = pfr
    return loss, {"loss": loss, **metrics}


def _encode(
    graphdef: nnx.GraphDef, params: PyTree, rows: Batch, *, with_tokens: bool, with_texts: bool
) -> tuple[Embeddings, Tokens | None, PairedTexts | None]:
    embeddings, tokens = nnx.merge(graphdef, params)(rows)
    texts = PairedTexts(tokens.title, tokens.speech) if with_texts else None
    return embeddings, tokens if with_tokens else None, texts


def retrieval_problems(config: Config) -> Iterator[str]:
    """Settings of a retrieval run that exclude each other."""
    data, model, loss = config.data, config.model, config.loss
    if data.batch_size < 2:
        yield f"config.data.batch_size: found {data.batch_size}, expected 2 or more: pairs are contrasted"
    if model.architecture in OF_VIDEOS and model.text != "off":
        yield (
            f"config.model.text: found {model.text!r} with config.model.architecture={model.architecture!r}, expected "
            "'off': in this task, an encoder of videos reads no texts"
        )
    if loss.pmd_weight and model.architecture not in OF_PATCHES:
        yield (
            f"config.loss.pmd_weight: found {loss.pmd_weight} with config.model.architecture={model.architecture!r}, "
            "expected 0: PMD and PFR attend to patches of a single grid, which this encoder does not have"
        )
    elif loss.pmd_weight:
        pmd = model.pmd
        if data.batch_size <= loss.num_negatives:
            yield (
                f"config.data.batch_size: found {data.batch_size}, expected {loss.num_negatives + 1} or more: every "
                f"image is matched with its own and {loss.num_negatives} other videos (config.loss.num_negatives)"
            )
        if model.width % pmd.num_heads:
            yield f"config.model.pmd.num_heads: found {pmd.num_heads}, expected a divisor of width {model.width}"
        if 2 * pmd.num_pairs > model.layers:
            yield (
                f"config.model.pmd.num_pairs: found {pmd.num_pairs}, expected 1 to {model.layers // 2}: each starts "
                f"from two of the encoder's {model.layers} blocks"
            )
        if loss.pfr_weight and pmd.num_pairs * pmd.num_heads < 2:
            yield "config.model.pmd.num_heads: found 1, expected 2 or more: PFR halves the number of attention maps"
    elif config.eval.rerank:
        yield (
            f"config.eval.rerank: found {config.eval.rerank}, expected 0 with config.loss.pmd_weight=0: without a "
            "decoder nothing can be matched"
        )
