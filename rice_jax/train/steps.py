"""Training steps: functions of (state, batch) that the loop runs."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, PyTree

from rice_jax.config import Config, ConfigError, LossConfig
from rice_jax.losses.contrastive import contrastive_loss, different_images, similarity
from rice_jax.losses.matching import hardest_negatives, matching_loss, same_shard
from rice_jax.losses.reconstruction import reconstruction_loss
from rice_jax.models.resample import show
from rice_jax.parallel.mesh import BATCH, each_device, parameter_shardings, replicated
from rice_jax.train.state import TrainState
from rice_jax.types import Batch, Embeddings, Tokens

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EachPart = Callable[[Callable], Callable]


def retrieval_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh) -> Step:
    """The step that trains RICE on pairs of a video and its product's image.

    Returns:
        A pure function; metrics are scalars: loss, its parts icl, pmd and pfr before their weights, accuracy (share of
        videos nearest to their own image in the batch), match_accuracy (share of images that the decoder matches best
        with their own video), logit_scale, gradient_norm.

    Raises:
        ConfigError: a device holds too few pairs to find negatives among them, or has no equal part of every chunk.
    """
    num_shards = mesh.size if config.loss.negatives == "device" else 1
    if config.model.pmd and config.data.batch_size // num_shards <= config.loss.num_negatives:
        raise ConfigError(
            f"config.loss.negatives='device': found {config.data.batch_size} pairs on {mesh.size} devices, expected "
            f"more than config.loss.num_negatives ({config.loss.num_negatives}) on each; use a larger batch or 'batch'"
        )
    num_chunks = config.train.grad_cache_chunks
    if num_chunks > 1 and config.data.batch_size % (num_chunks * mesh.size):
        raise ConfigError(
            f"config.train.grad_cache_chunks: found {num_chunks} chunks of {config.data.batch_size} pairs, expected "
            f"chunks that divide over {mesh.size} devices"
        )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        dropout_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        loss = lambda params: retrieval_loss(  # noqa: E731
            graphdef, params, batch, config.loss, num_shards, dropout_key, num_chunks, each_device(mesh)
        )
        return update(state, optimizer, loss)

    return step


def update(
    state: TrainState, optimizer: optax.GradientTransformation, loss: Callable[[PyTree], tuple[Array, Metrics]]
) -> tuple[TrainState, Metrics]:
    """One step down a loss of the parameters; its metrics get the `gradient_norm`."""
    (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["gradient_norm"] = optax.global_norm(gradients)
    return TrainState(state.step + 1, params, optimizer_state), metrics


def retrieval_loss(
    graphdef: nnx.GraphDef,
    params: PyTree,
    batch: Batch,
    config: LossConfig,
    num_shards: int = 1,
    dropout_key: Array | None = None,
    num_chunks: int = 1,
    each_part: EachPart = lambda encode: encode,
) -> tuple[Float[Array, ""], Metrics]:
    """Total loss over the global batch, and what is reported of it.

    Args:
        graphdef: of a model whose decoder and head are there if their losses are asked for.
        params: of the model.
        batch: global.
        config: weights of the losses and choice of negatives.
        num_shards: equal parts of the batch; negatives come from an image's own part.
        dropout_key: for the decoder's attention; None = no dropout.
        num_chunks, each_part: see `encode_in_chunks`; the losses see the global batch, whatever they are.
    """
    model = nnx.merge(graphdef, params)
    frame_mask, patch_mask = batch["frame_mask"], batch.get("patch_mask")
    (image, video), tokens = encode_in_chunks(
        graphdef, params, batch, num_chunks, each_part, with_tokens=config.pmd_weight > 0
    )
    negative_mask = different_images(batch["image_key"]) if config.mask_same_image else None
    logit_scale = model.logit_scale[...]
    loss = icl = contrastive_loss(image, video, logit_scale, negative_mask)
    nearest = jnp.argmax(similarity(video, image), axis=1)
    metrics = {
        "icl": icl,
        "accuracy": jnp.mean(batch["image_key"][nearest] == batch["image_key"]),
        "logit_scale": logit_scale,
    }
    if config.pmd_weight:
        if num_shards > 1:
            shard_mask = same_shard(image.shape[0], num_shards)
            negative_mask = shard_mask if negative_mask is None else negative_mask & shard_mask
        negatives, kept = hardest_negatives(similarity(image, video), config.num_negatives, negative_mask)
        matches = model.match(
            tokens, frame_mask, negatives, patch_mask=patch_mask, num_shards=num_shards, dropout_key=dropout_key
        )
        pmd = matching_loss(matches.cosine, config.match_scale, kept)
        loss += config.pmd_weight * pmd
        hardest = jnp.where(kept, matches.cosine[:, 1:], -jnp.inf).max(axis=1)
        metrics |= {"pmd": pmd, "match_accuracy": jnp.mean(matches.cosine[:, 0] > hardest)}
        if config.pfr_weight:
            rebuilt = model.pfr(matches.attention, tokens.video, frame_mask, patch_mask)
            pfr = reconstruction_loss(rebuilt, tokens.image)
            loss += config.pfr_weight * pfr
            metrics["pfr"] = pfr
    return loss, {"loss": loss, **metrics}


def encode_in_chunks(
    graphdef: nnx.GraphDef,
    params: PyTree,
    batch: Batch,
    num_chunks: int,
    each_part: EachPart = lambda encode: encode,
    *,
    with_tokens: bool,
) -> tuple[Embeddings, Tokens | None]:
    """Encodes pairs in chunks, one after the other, which are encoded again when gradients are asked for.

    What is held at once are the activations of one chunk, and of the whole batch what is returned, which is a hundredth
    of them; so a loss over the global batch costs the memory of a chunk.

    Args:
        graphdef: of the model.
        params: of the model.
        batch: global.
        num_chunks: 1 = everything at once.
        each_part: makes of the function that encodes in chunks one that does so in each part of the batch, where a
            device mesh splits it; else a sum over the devices would be made of every chunk's gradients.
        with_tokens: return tokens too, which the decoder needs.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache).
    Differs: tokens are kept beside the embeddings, for the decoder's losses; the second pass is rematerialisation.
    """

    def encode(params: PyTree, rows: Mapping[str, Array]) -> tuple[Embeddings, Tokens | None]:
        model = nnx.merge(graphdef, params)
        embeddings, tokens = model(rows["image"], rows["video"], rows["frame_mask"], rows.get("patch_mask"))
        return embeddings, tokens if with_tokens else None

    def encode_chunks(params: PyTree, rows: Mapping[str, Array]) -> tuple[Embeddings, Tokens | None]:
        chunks = jax.tree.map(lambda x: x.reshape(num_chunks, -1, *x.shape[1:]), rows)
        # In a loop the compiler cannot merge the second pass with the first, so nothing has to prevent it.
        encoded = jax.lax.map(jax.checkpoint(partial(encode, params), prevent_cse=False), chunks)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), encoded)

    rows = {name: batch[name] for name in ("image", "video", "frame_mask", "patch_mask") if name in batch}
    return encode(params, rows) if num_chunks == 1 else each_part(encode_chunks)(params, rows)


def compile_step(step: Step, state: TrainState, mesh: Mesh) -> Step:
    """jit with the state's place on the mesh; the state that goes in is donated."""
    shardings = parameter_shardings(mesh, state)
    return jax.jit(
        lambda state, batch: step(state, show(batch)),
        in_shardings=(shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
