"""Compares COPE with what its own modules computed, number by number; `check_parity.py` is the command."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree

from rice_jax.config import PIXEL_STATISTICS, OptimizerConfig, TextTowerConfig
from rice_jax.convert.names import COPE, COPE_IGNORED
from rice_jax.convert.tensors import Places, check_names, find_places, parameter_shapes, to_ours, to_theirs
from rice_jax.losses.cope import Centers, Pair, cope_loss
from rice_jax.models.cope import DOMAINS, PAGE, Cope, CopeConfig
from rice_jax.train.optimizer import create_optimizer
from scripts.parity import GRADIENT_TOLERANCE, Case, Line, gradient_rounding, of_maximum, relative_l2
from scripts.parity_xclip import encoder_config, summaries

WHAT = "a COPE model"
# The recording of its own modules names its pairs only in words.
PAIRS = {
    "loss_ivpvc": ("page_visual", "video"),
    "loss_ivlvc": ("page_visual", "live"),
    "loss_pvlvc": ("video", "live"),
    "loss_ipvc": ("page", "video"),
    "loss_ilvc": ("page", "live"),
    "loss_itpvc": ("page_text", "video"),
    "loss_itlvc": ("page_text", "live"),
}
NAMES = {"feature": "video"}  # of an encoder's output
_UNUSED = "fc2", "attention_pooling.projection"
_HEADS = [f"{head}_fusion_model.{part}" for head in ("item", "photo", "live") for part in _UNUSED]
UNUSED = {f"delta3/{head}.{kind}": "no forward pass uses it" for head in _HEADS for kind in ("weight", "bias")}
TOTAL_STEPS = 10**9  # so long that the cosine's first values are 1 in float32
STEP_TOLERANCE = 0.07  # learning rates, of each of the three updates together
SMALL = 1e-5  # of a parameter's largest gradient: what Adam does with smaller ones is rounding
NOISE = 1e-6  # a gradient of exactly zero is up to this


def compare_cope(case: Case) -> Iterator[Line]:
    """Compares outputs, losses, gradients and, where they are recorded, updates."""
    subject = Subject(case)
    outputs, gradients = subject.differentiate(subject.params)
    outputs = outputs | subject.encoded()
    for name, expected in case.under("out/").items():
        if name in outputs:
            yield Line(f"out/{name}", (of_maximum(outputs[name], expected),))
    found, rounding = subject.named(gradients), gradient_rounding(case)
    for name, expected in case.under("grad/").items():
        if name in found:
            yield Line(f"grad/{name}", (relative_l2(found[name], expected, GRADIENT_TOLERANCE, rounding),))
    if "optimizer" in case.facts:
        yield from compare_updates(case, subject)


class Subject:
    """Our model with a recording's weights, inputs and losses."""

    def __init__(self, case: Case):
        self.case, facts = case, case.facts["config"]
        self.all_text = "pairs" in case.facts
        self.config = CopeConfig(
            encoder_config(case, pixels="imagenet"),
            text=text_config(facts["text"]),
            text_domains=DOMAINS if self.all_text else (PAGE,),
            embed_dim=facts["emb_dim"],
            num_classes=facts["classes"],
        )
        self.shapes = parameter_shapes(lambda: Cope(self.config, rngs=nnx.Rngs(0)))
        self.places = cope_places(self.shapes, self.config)
        state = case.under("params/")
        check_names(state, self.places, COPE_IGNORED, WHAT)
        self.params = jax.tree.map(jnp.asarray, to_ours(state, self.places, self.shapes, WHAT))
        self.graphdef = nnx.split(nnx.eval_shape(lambda: Cope(self.config, rngs=nnx.Rngs(0))))[0]
        self.pairs = {name: Pair(*views) for name, views in case.facts.get("pairs", PAIRS).items()}
        self.batch = {domain: self.items(domain) for domain in DOMAINS}

    def items(self, domain: str) -> dict[str, jax.Array]:
        """The recorded inputs of a domain, as the model takes them."""
        arrays = self.case.arrays
        video = to_bytes(arrays[f"in/{domain}"])
        items: dict[str, Any] = {"video": video, "frame_mask": np.ones(video.shape[:2], bool)}
        keys = (f"in/{domain}_ids", f"in/{domain}_mask") if self.all_text else ("in/input_ids", "in/attention_mask")
        if domain in self.config.text_domains:
            ids, mask = (arrays[key] for key in keys)
            items |= {"text_ids": ids.astype(np.int32), "text_token_mask": mask.astype(bool)}
        return jax.tree.map(jnp.asarray, items)

    def loss(self, params: PyTree, batch: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The total loss, and every output under the recording's names."""
        model = nnx.merge(self.graphdef, params)
        views: dict[str, jax.Array] = {}
        outputs: dict[str, jax.Array] = {}
        for domain, fused in model(batch).items():
            found, _ = fused.views(domain)
            views |= found
            outputs |= {f"{domain}_logit": fused.fused, f"{domain}_embedding": found[domain]}
            if fused.text is not None:
                outputs |= {f"{domain}_text_logit": fused.text, f"{domain}_visual_logit": fused.visual}
        labels = jnp.asarray(self.case.arrays["in/labels"], jnp.int32)
        centers = Centers(model.classes.embedding[...])
        losses = cope_loss(views, labels, {}, tuple(self.pairs.values()), centers, dict.fromkeys(DOMAINS, 1.0))
        outputs |= {name: losses[str(pair)] for name, pair in self.pairs.items()}
        outputs |= {f"loss_classify_{domain}": losses[f"class-{domain}"] for domain in DOMAINS}
        return losses["loss"], outputs | {"total_loss": losses["loss"]}

    def differentiate(self, params: PyTree) -> tuple[dict[str, jax.Array], PyTree]:
        """The outputs and the gradients of the total loss."""
        (_, outputs), gradients = self._differentiate(params, self.batch)
        return outputs, gradients

    @functools.cached_property
    def _differentiate(self):
        return jax.jit(jax.value_and_grad(self.loss, has_aux=True))

    def encoded(self) -> dict[str, jax.Array]:
        """The encoders' outputs under the recording's names; those of texts in all domains are not recorded."""
        if self.all_text:
            return {}

        @jax.jit
        def encode(params: PyTree, batch: Mapping[str, Any], pixels: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            model = nnx.merge(self.graphdef, params)
            text = model.text(batch[PAGE]["text_ids"], batch[PAGE]["text_token_mask"])
            outputs = {"text_pooled": text.features, "text_tokens": text.tokens}
            for domain in DOMAINS:
                found = summaries(model.encoder, pixels[domain])
                outputs |= {f"{domain}_{NAMES.get(name, name)}": x for name, x in found.items()}
            return outputs

        return encode(self.params, self.batch, {domain: self.case.arrays[f"in/{domain}"] for domain in DOMAINS})

    def named(self, tree: PyTree) -> dict[str, np.ndarray]:
        """Parameters or gradients under the reference's names."""
        return to_theirs(jax.tree.map(np.asarray, tree), self.places, self.shapes, WHAT)


def compare_updates(case: Case, subject: Subject) -> Iterator[Line]:
    """Compares the losses before each update and after the last one, and what three updates change."""
    facts = case.facts["optimizer"]
    text, encoder, new = (facts["groups"][number] for number in range(3))
    config = OptimizerConfig(
        kind="adamw",
        text_learning_rate=text["lr"],
        encoder_learning_rate=encoder["lr"],
        new_learning_rate=new["lr"],
        beta1=new["betas"][0],
        beta2=new["betas"][1],
        epsilon=new["eps"],
        weight_decay=new["weight_decay"],
        clip_norm=5.0,
        warmup_steps=0,
    )
    optimizer = create_optimizer(config, TOTAL_STEPS, Cope.PRETRAINED)
    update = jax.jit(optimizer.update)
    params, state = subject.params, optimizer.init(subject.params)
    recorded = facts["losses_before_each_step_and_after"]
    for step, expected in enumerate(recorded):
        outputs, gradients = subject.differentiate(params)
        for name, value in expected.items():
            yield Line(f"{name} after {step} updates", (of_maximum(outputs[name], value),))
        if step < len(recorded) - 1:
            updates, state = update(gradients, state, params)
            params = optax.apply_updates(params, updates)
    before, after, by_name = subject.named(subject.params), subject.named(params), case.under("grad/")
    for name, expected in case.under("delta3/").items():
        if name in after:
            part = name.split(".")[0]
            rate = {"text_encoder": text["lr"], "visual_encoder": encoder["lr"]}.get(part, new["lr"])
            off = np.abs(after[name].astype(np.float64) - before[name] - expected) / rate
            size = np.abs(by_name[name])
            known = size > max(SMALL * size.max(), NOISE)
            # From a gradient that is all rounding Adam makes steps of any direction.
            measures = [("learning rates", float(off.max(where=known, initial=0)), STEP_TOLERANCE)]
            measures += [("of an undetermined step", float(off.max(where=~known, initial=0)) / (2 * 3), 1.0)]
            yield Line(f"delta3/{name}", tuple(measures))


def cope_places(shapes: Mapping[str, Any], config: CopeConfig) -> Places:
    """The reference's names of each parameter."""
    assert config.text is not None
    num_blocks = {
        "encoder/blocks/": config.encoder.layers,
        "encoder/integration/blocks/": config.encoder.integration_layers,
        "text/blocks/": config.text.layers,
    }
    return find_places({path: COPE[path] for path in shapes}, num_blocks)


def text_config(sizes: Mapping[str, int]) -> TextTowerConfig:
    """A recording's text tower."""
    return TextTowerConfig(
        vocab_size=sizes["vocab"],
        positions=sizes["max_position"],
        context=sizes["max_position"],
        width=sizes["hidden"],
        layers=sizes["layers"],
        heads=sizes["heads"],
        mlp_width=sizes["intermediate"],
        head="pooler",
        embed_dim=sizes["hidden"],
    )


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """The inverse of `normalize`, for normalized frames [B, T, 3, S, S]; 0 to 255, but not whole numbers."""
    mean, std = map(np.array, PIXEL_STATISTICS["imagenet"])
    return ((np.moveaxis(pixels, 2, -1) * std + mean) * 255).astype(np.float32)
