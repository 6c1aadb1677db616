"""Compares models with what other implementations computed, number by number.

    python scripts/check_parity.py CASE.npz|DIR [CASE.npz|DIR ...]

DIR stands for all cases in it. A case holds weights, inputs, outputs, gradients and optimizer steps of any sizes;
CASE.json beside it describes them, and `recipe.py` beside it makes weights or inputs that are not stored. Prints a line
for every recorded array, and PASS or FAIL last; the exit code is 1 if anything differs, or if a recorded array is not
compared. Arrays of parts that rice_jax leaves out are named with the reason, and do not count. A case whose JSON names
a `class` is of an encoder (`scripts/parity_encoders.py`), one whose JSON lists `cases` is of aggregations or losses
(`scripts/parity_parts.py`), one whose JSON names a `case` is of a text tower (`scripts/parity_text.py`), of X-CLIP
(`scripts/parity_xclip.py`), of COPE (`scripts/parity_cope.py`) or of its losses (`scripts/parity_losses.py`), one with
`in/key_value` is of the decoder's layers (`scripts/parity_decoder.py`), all others are of the reference's RICE.

For cases of the reference's RICE, losses, gradients and updates are computed as in training, by `retrieval_loss` and
`create_optimizer`; intermediate values that these do not return are computed from the model's parts.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rice_jax.config import PIXEL_STATISTICS, LossConfig, OptimizerConfig, PfrConfig, PmdConfig
from rice_jax.convert.names import REFERENCE_IGNORED
from rice_jax.convert.reference import from_reference, to_reference
from rice_jax.convert.vit import config_of
from rice_jax.losses.matching import hardest_negatives
from rice_jax.models.rice import Rice, RiceConfig
from rice_jax.tasks.retrieval import retrieval_loss
from rice_jax.train.optimizer import create_optimizer
from scripts.parity import (
    GRADIENT_TOLERANCE,
    INPUTS,
    PROJECTED,
    Case,
    Line,
    gradient_norms,
    gradient_rounding,
    of_maximum,
    ratio,
    relative_l2,
)
from scripts.parity_cope import UNUSED, compare_cope
from scripts.parity_decoder import MASK_AS_GIVEN, compare_layers, decode
from scripts.parity_encoders import compare_encoder
from scripts.parity_losses import NOT_USED, compare_losses
from scripts.parity_parts import NOT_BUILT, compare_parts
from scripts.parity_text import TEXT_CASES
from scripts.parity_xclip import compare_xclip

MOVE_TOLERANCE = 1e-2  # of the L2 norm of what the updates changed in an array

# Settings of the recording that its JSON file describes only in words.
LOSS = LossConfig(
    mask_same_image=False, pmd_weight=1.0, pfr_weight=1.0, num_negatives=3, negatives="batch", match_scale=10.0
)
OPTIMIZER = OptimizerConfig(
    encoder_learning_rate=1e-6,
    new_learning_rate=1e-4,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-6,
    weight_decay=0.2,
    clip_norm=0.0,
    warmup_steps=0,
)
TOTAL_STEPS = 10**9  # so long that the cosine's first values are 1 in float32

# By the `case` of its JSON file.
NAMED: dict[str, Callable[[Case], Iterator[Line]]] = {
    **TEXT_CASES,
    "visual": compare_xclip,
    "losses": compare_losses,
    "cope_tiny": compare_cope,
    "cope_all_text": compare_cope,
}
# Recordings of a model that rice_jax does not have, by the same name.
OTHER_MODELS = {
    "rice_text": "its decoder is that of an earlier revision of the reference, without an output projection; "
    "rice_text_head holds the decoder that rice_jax has, with texts"
}
LOSSES = {"vic_loss": "icl", "vim_loss": "pmd", "rec_loss": "pfr", "total_loss": "loss", "total": "loss"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE.npz|DIR")
    named = parser.parse_args(argv).cases
    paths = [path for one in named for path in (sorted(one.glob("*.npz")) if one.is_dir() else [one])]
    if missing := [str(path) for path in paths or named if not path.with_suffix(".npz").is_file()]:
        parser.error(f"found no recording {', '.join(missing)}")
    jax.config.update("jax_default_matmul_precision", "highest")  # accelerators would multiply fewer bits
    sys.exit(check(paths))


def check(paths: Sequence[Path]) -> bool:
    """Compares recordings and prints the lines; returns whether anything differs or is not compared."""
    compared = beyond = missed = skipped = 0
    left_out = NOT_BUILT | NOT_USED | UNUSED | MASK_AS_GIVEN
    for path in paths:
        print(path)
        case = Case(path)
        left = {key for key in case.recorded if not key.startswith(given(case))}
        if reason := OTHER_MODELS.get(case.facts.get("case", "")):
            print(f"--- {len(left)} arrays: not compared: {reason}")
            skipped += len(left)
            continue
        for line in comparison(case)(case):
            print(line, flush=True)
            compared += 1
            beyond += not line.holds
            left -= {line.name, *line.keys}
        for key in sorted(left):
            reason = left_out.get(key, left_out.get(key.split("/")[0]))
            print(f"--- {key}: not compared: {reason}" if reason else f"BAD {key}: recorded, but nothing computes it")
            skipped += bool(reason)
            missed += not reason
    failed = bool(beyond or missed)
    print(
        f"{'FAIL' if failed else 'PASS'}: {compared} compared, {beyond} of them beyond tolerance, "
        f"{missed} recorded arrays not compared"
        + (f"; {skipped} more of parts that rice_jax leaves out" if skipped else "")
    )
    return failed


def given(case: Case) -> tuple[str, ...]:
    """Prefixes of the arrays that are no results."""
    cases = (*case.facts.get("cases", {}), *case.facts.get("doc", {}))
    owners = ("", *(f"{name}/" for name in cases))
    return tuple(f"{owner}{kind}/" for owner in owners for kind in ("in", "params", "cotangent"))


def comparison(case: Case) -> Callable[[Case], Iterator[Line]]:
    """What compares a recording of this kind; a kind that nothing compares has no lines."""
    if "class" in case.facts:
        return compare_encoder
    if "cases" in case.facts:
        return compare_parts
    if case.facts.get("case") in NAMED:
        return NAMED[case.facts["case"]]
    if "in/key_value" in case.recorded:
        return compare_layers
    return compare if set(INPUTS) <= case.arrays.keys() else lambda case: iter(())


def compare(case: Case) -> Iterator[Line]:
    """Compares every recorded array with the model's result for the same weights and inputs."""
    subject = Subject(case)
    losses, gradients = subject.losses_and_gradients(subject.params)
    yield from compare_outputs(case, forward(subject.graphdef, subject.params, subject.batch) | losses)
    yield from compare_gradients(case, subject.named(gradients))
    for recording, settings in case.facts.get("optimizer", {}).items():
        if recording != "note":
            yield from compare_updates(case, subject, recording, settings)


class Subject:
    """Our model with a recording's weights, inputs and settings."""

    def __init__(self, case: Case):
        config = case.facts["config"]
        params, self.sizes = from_reference(case.under("params/"), config["clip_heads"], config["pmd_heads"])
        self.params = jax.tree.map(jnp.asarray, params)
        model = RiceConfig(
            config_of(self.sizes),
            pmd=PmdConfig(**self.sizes["pmd"], attention_dropout=0.0),
            pfr=PfrConfig(mask_padding=False, init="ones"),
        )
        self.graphdef = structure(model)
        image, video, frame_mask = (case.arrays[key] for key in INPUTS)
        self.batch = {
            "image": to_bytes(image),
            "video": to_bytes(video),
            "frame_mask": frame_mask.astype(bool),
            "image_key": np.arange(len(image)),
        }

    def losses_and_gradients(self, params) -> tuple[dict, dict]:
        """The losses under the reference's names, and the gradient of their total."""
        (_, metrics), gradients = differentiate(self.graphdef, params, self.batch)
        return {name: metrics[ours] for name, ours in LOSSES.items()}, gradients

    def named(self, tree) -> dict[str, np.ndarray]:
        """Parameters or gradients under the reference's names, without those that only the reference has."""
        state = to_reference(jax.tree.map(np.asarray, tree), self.sizes)
        return {name: value for name, value in state.items() if not REFERENCE_IGNORED.fullmatch(name)}


@functools.cache
def structure(model: RiceConfig) -> nnx.GraphDef:
    """A model without weights, traced once for all recordings of its sizes."""
    return nnx.split(nnx.eval_shape(lambda: Rice(model, rngs=nnx.Rngs(0))))[0]


def to_bytes(pictures: np.ndarray) -> np.ndarray:
    """The inverse of `normalize`, for normalized pictures [..., 3, S, S]; 0 to 255, but not whole numbers."""
    mean, std = map(np.array, PIXEL_STATISTICS["clip"])
    return ((np.moveaxis(pictures, -3, -1) * std + mean) * 255).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def differentiate(graphdef, params, batch):
    return jax.value_and_grad(lambda params: retrieval_loss(graphdef, params, batch, LOSS), has_aux=True)(params)


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, batch) -> dict[str, jax.Array]:
    """The intermediate values before the losses, under the recording's names."""
    model, frame_mask = nnx.merge(graphdef, params), batch["frame_mask"]
    (image, video), tokens = model(batch)
    token_mask = jnp.repeat(frame_mask, tokens.video.shape[2], axis=1)
    features = lambda tokens: model.encoder.projection(model.encoder.ln_post(tokens[..., 0, :]))  # noqa: E731
    correlations = image @ video.T
    negatives, _ = hardest_negatives(correlations, LOSS.num_negatives)
    matches = model.match_batch(batch, tokens, negatives)
    candidates = jnp.concatenate([jnp.arange(len(image))[:, None], negatives], axis=1)
    decode_all = jax.vmap(lambda video, mask: decode(model.pmd, tokens.image, video, mask), in_axes=1, out_axes=1)
    hidden, self_attention = decode_all(tokens.video[candidates], token_mask[candidates])  # [B, K, L, D], [B, K, ...]
    # The reference divides its probabilities by head_dim^-1/2.
    cross_attention = matches.attention * (tokens.image.shape[-1] / model.pmd.config.num_heads) ** 0.5
    scores = model.pfr.scores(matches.attention)
    weights = model.pfr.weights(scores, token_mask)
    return {
        "image_patch": tokens.image,
        "video_patch": tokens.video,
        "image_features": features(tokens.image),
        "frame_features": features(tokens.video),
        "image_embeddings": image,
        "video_embeddings": video,
        "correlations": correlations,
        "hard_neg_index": negatives,
        "vim_pooled": model.pmd.pooled(hidden[:, :, 0]),
        "vim_logits": LOSS.match_scale * matches.cosine,
        "pos_cross_attn": cross_attention,
        "pos_self_attn_mean": self_attention[:, 0],
        "rec_cross_attn": cross_attention,
        "pmd_last_hidden_pos": hidden[:, 0],
        "rec_conv_out": scores,
        "rec_attention_map": weights,
        "rec_pad_mass": jnp.where(token_mask[:, None], 0, weights).sum(axis=-1).mean(axis=-1),
        "reconstruction": model.reconstruct(batch, tokens, matches),
    }


def compare_outputs(case: Case, outputs: Mapping) -> Iterator[Line]:
    for name, expected in case.under("out/").items():
        if name in outputs:
            yield Line(f"out/{name}", (of_maximum(outputs[name], expected),))


def compare_gradients(case: Case, gradients: Mapping) -> Iterator[Line]:
    """Compares whole gradients if they are recorded, otherwise their norms and projections on a random direction."""
    rounding = gradient_rounding(case)
    for name, expected in case.under("grad/").items():
        if name in gradients:
            yield Line(f"grad/{name}", (relative_l2(gradients[name], expected, GRADIENT_TOLERANCE, rounding),))
    if not set(PROJECTED) <= case.recorded.keys():
        return
    numbers = {name: number for number, name in enumerate(sorted(case.under("params/")))}
    for name, norm, projection in zip(*(case.recorded[key] for key in PROJECTED), strict=True):
        gradient = gradients[name].astype(np.float64)
        rng = np.random.default_rng([case.facts["config"]["seed"], numbers[name], 7])
        # Both differences are bounded by the L2 norm of the gradients' difference; the second is about as large.
        differences = {
            "norm": np.linalg.norm(gradient) - norm,
            "projection": np.sum(gradient * rng.standard_normal(gradient.shape)) - projection,
        }
        scale = max(norm, rounding / GRADIENT_TOLERANCE)
        measures = [(measure, ratio(abs(x), scale), GRADIENT_TOLERANCE) for measure, x in differences.items()]
        yield Line(f"grad_proj/{name}", tuple(measures), PROJECTED)


def compare_updates(case: Case, subject: Subject, recording: str, settings: Mapping) -> Iterator[Line]:
    """Compares the losses before each update and after the last one, and every parameter after the last one."""
    beta1, beta2 = settings["betas"]
    optimizer = create_optimizer(
        dataclasses.replace(OPTIMIZER, beta1=beta1, beta2=beta2, epsilon=settings["eps"]), TOTAL_STEPS, Rice.PRETRAINED
    )
    update = jax.jit(optimizer.update)
    params, state = subject.params, optimizer.init(subject.params)
    num_updates = len(settings["losses"]) - 1
    for step, recorded in enumerate(settings["losses"]):
        losses, gradients = subject.losses_and_gradients(params)
        for name, expected in recorded.items():
            yield Line(f"{recording} {name} after {step} updates", (of_maximum(losses[name], expected),))
        if step < num_updates:
            updates, state = update(gradients, state, params)
            params = optax.apply_updates(params, updates)
    before, after = case.under("params/"), subject.named(params)
    # Adam divides a gradient by its own size: from one that is all rounding it makes a step of any direction.
    undetermined = {
        name for name, norm in gradient_norms(case).items() if norm * GRADIENT_TOLERANCE < gradient_rounding(case)
    }
    for name, expected in case.under(f"{recording}/").items():
        if name in after and name in undetermined:
            difference = np.abs(after[name].astype(np.float64) - expected).max()
            stride = 2 * num_updates * OPTIMIZER.new_learning_rate  # how far from each other two such may end
            yield Line(f"{recording}/{name}", (("of an undetermined step", difference / stride, 1.0),))
        elif name in after:
            moved = (x.astype(np.float64) - before[name] for x in (after[name], expected))
            # In each update theirs rounds after the step and after the decay, ours once, by half a unit at most.
            rounding = 1.5 * num_updates * np.linalg.norm(np.spacing(np.abs(expected)))
            _, *measure = relative_l2(*moved, MOVE_TOLERANCE, rounding)
            yield Line(f"{recording}/{name}", (of_maximum(after[name], expected), ("moved", *measure)))
        elif REFERENCE_IGNORED.fullmatch(name):
            # No parameter of ours, which is right as long as the reference does not train it.
            yield Line(f"{recording}/{name}", (of_maximum(before[name], expected, tolerance=0.0),))


if __name__ == "__main__":
    main()
