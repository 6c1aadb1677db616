"""Settings of the model's parts."""

import dataclasses
from collections.abc import Iterator

from rice_jax.config.aggregation import AggregationConfig
from rice_jax.config.cope import CopeSettings
from rice_jax.config.fields import group, setting
from rice_jax.config.swin import SwinConfig, SwinSettings
from rice_jax.config.text import TextConfig, TextTowerConfig, TextTowerSettings

# Architectures that encode a video as a whole, and have learned positions of frames.
OF_VIDEOS = "timesformer", "xclip"
# Architectures whose patches are a grid that PMD and a detector attend to, and of which a mask leaves out any.
OF_PATCHES = ("vit",)
# {name: (mean, standard deviation)} of the RGB values in 0..1 of the pictures that an encoder was trained on.
PIXEL_STATISTICS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "kinetics": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
}


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Settings of a vision transformer; the defaults of its parts are those of OpenAI's CLIP."""

    image_size: int = setting(224, "Side of the square picture that the encoder takes.", unit="pixels", minimum=1)
    patch_size: int = setting(32, "Side of a patch.", unit="pixels", minimum=1)
    width: int = setting(768, "Width of the encoder's tokens.", minimum=1)
    layers: int = setting(12, "Blocks of the encoder.", minimum=1)
    heads: int = setting(12, "Attention heads of a block.", minimum=1)
    embed_dim: int = setting(512, "Size of an embedding.", minimum=1)
    dtype: str = setting(
        "bfloat16",
        'Compute type, "float32" or "bfloat16"; parameters, losses, and similarities are float32.',
        choices=("float32", "bfloat16"),
    )
    remat: str = setting(
        "none",
        'What is recomputed in the backward pass, to save memory. "none": activation functions. "dots": all but the '
        'outputs of linear layers. "full": all activations, for about a third more compute.',
        choices=("none", "dots", "full"),
        free=True,
    )
    architecture: str = setting(
        "vit",
        'Encoder. "vit": a vision transformer, which encodes each frame. "swin": a Swin transformer, with '
        '`config.model.swin`. "timesformer": a vision transformer whose patches also attend to the same place in the '
        'other frames. "xclip": one whose frames send each other messages, and a small transformer over the frames. '
        "These two encode a video as a whole.",
    )
    stem: str = setting(
        "patches",
        'What makes a vision transformer\'s patches. "patches": a linear layer, of their pixels. "mobilenet": '
        "MobileNetV2, whose last feature map has a place for each patch, of 16 or 32 pixels.",
        choices=("patches", "mobilenet"),
    )
    frozen_stages: int = setting(
        0,
        'First stages of the `stem` "mobilenet" that are not trained. It has 9: a convolution, '
        "seven stages of bottlenecks, a convolution.",
        minimum=0,
        maximum=9,
    )
    num_frames: int = setting(
        10,
        'Frames that have a learned position with `architecture` "timesformer" or "xclip".',
        unit="frames",
        minimum=1,
    )
    integration_layers: int = setting(1, 'Blocks over the frames with `architecture` "xclip".', minimum=1)
    integration_heads: int = setting(8, "Attention heads of these blocks.", minimum=1)
    integration_mlp_ratio: float = setting(
        4.0, "Width of their MLPs' hidden layer, rounded.", unit="times `embed_dim`", above=0
    )
    pixels: str = setting(
        "clip",
        'Mean and standard deviation by which pixels are normalized. "clip": CLIP\'s. "imagenet": ImageNet\'s. "half": '
        '0.5 and 0.5. "kinetics": 0.45 and 0.225, as TimeSformer has.',
        choices=tuple(PIXEL_STATISTICS),
    )
    activation: str = setting(
        "quick_gelu",
        'Activation of the MLPs: "quick_gelu", "gelu", "gelu_tanh" (GELU approximated by a hyperbolic tangent), or '
        '"silu".',
        choices=("quick_gelu", "gelu", "gelu_tanh", "silu"),
    )
    mlp_ratio: float = setting(4.0, "Width of an MLP's hidden layer, rounded.", unit="times `width`", above=0)
    gated_mlp: bool = setting(False, "Multiply the activations by a second projection, as SwiGLU does.")
    patch_bias: bool = setting(False, "The patch embedding has a bias.")
    positions: str = setting(
        "learned",
        '"learned": a vector for each token. "rotary": queries and keys of patches are rotated by their place.',
        choices=("learned", "rotary"),
    )
    class_token: bool = setting(True, "A CLS token is encoded with the patches.")
    registers: int = setting(0, "Further tokens that are encoded with the patches and then dropped.", minimum=0)
    ln_pre: bool = setting(True, "A layer norm before the blocks.")
    key_bias: bool = setting(True, "The keys of attention have a bias.")
    layer_scale: bool = setting(False, "The output of each half of a block is multiplied by a learned vector.")
    epsilon: float = setting(1e-5, "Epsilon of the layer norms.", above=0)
    pooling: str = setting(
        "cls",
        'How a picture\'s feature is made of its tokens. "cls": the CLS token. "attention": a learned query attends to '
        'the patches. "mean": the mean of the patches.',
        choices=("cls", "attention", "mean"),
    )
    projection: bool = setting(True, "A linear layer maps the pooled token to `embed_dim`; without it they are equal.")
    unroll: bool = setting(
        False,
        "Unroll the loop over the blocks: compiles longer; slower on CPUs, may be faster elsewhere.",
        free=True,
    )

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """Tokens of an encoded picture: its summary and the patches."""
        return self.num_patches + 1

    @property
    def mlp_width(self) -> int:
        return round(self.width * self.mlp_ratio)

    @property
    def switches(self) -> dict[str, str | int | float | bool]:
        """The settings in `SWITCHES` that differ from their defaults, which are those of CLIP."""
        return {name: value for name in SWITCHES if (value := getattr(self, name)) != getattr(VitConfig, name)}

    def problems(self) -> Iterator[str]:
        if self.image_size % self.patch_size:
            yield (
                f"config.model.image_size: found {self.image_size}, expected a multiple of patch_size "
                f"({self.patch_size})"
            )
        if self.width % self.heads:
            yield f"config.model.width: found {self.width}, expected a multiple of heads ({self.heads})"
        if self.positions == "rotary" and self.width % (4 * self.heads):
            yield (
                f"config.model.positions='rotary': found {self.width} channels in {self.heads} heads, expected a "
                "multiple of 4 in each head"
            )
        if self.pooling == "cls" and not self.class_token:
            yield "config.model.pooling: found 'cls' with class_token=False, expected 'attention' or 'mean'"
        if self.stem == "mobilenet" and self.patch_size not in (16, 32):
            yield f"config.model.patch_size: found {self.patch_size} with stem='mobilenet', expected 16 or 32"
        if self.architecture == "xclip" and self.embed_dim % self.integration_heads:
            yield (
                f"config.model.integration_heads: found {self.integration_heads}, expected a divisor of embed_dim "
                f"({self.embed_dim})"
            )
        if not self.projection and self.embed_dim != self.width:
            yield (
                f"config.model.embed_dim: found {self.embed_dim} with projection=False, expected width ({self.width})"
            )


# Of the transformer over the frames.
INTEGRATION = "integration_layers", "integration_heads", "integration_mlp_ratio"
# What a vision transformer is made of, beside its sizes. Weights fit only one value of each.
SWITCHES = (
    *("architecture", "pixels", "activation", "mlp_ratio", "gated_mlp", "patch_bias", "positions", "class_token"),
    *("registers", "ln_pre", "key_bias", "layer_scale", "epsilon", "pooling", "projection", "num_frames", "stem"),
    *INTEGRATION,
)
# Sizes that weights fix; an encoder's positions are interpolated to any `image_size`.
SIZES = "patch_size", "width", "layers", "heads", "embed_dim"
# Settings of a Swin transformer that are not in a group of its own.
SHARED = "image_size", "embed_dim", "dtype", "remat", "architecture", "pixels", "unroll"
EncoderConfig = VitConfig | SwinConfig


@dataclasses.dataclass(frozen=True)
class PmdConfig:
    """Settings of the pairwise matching decoder."""

    num_pairs: int = setting(
        1,
        "Pairs of a self-attention and a cross-attention block; they start from the encoder's last 2 · `num_pairs` "
        "blocks.",
        minimum=1,
    )
    num_heads: int = setting(
        12,
        "Attention heads. The encoder's number keeps its heads whole; the reference's checkpoints have 8.",
        minimum=1,
    )
    attention_dropout: float = setting(
        0.1, "Dropout of the cross attention in training.", unit="share", minimum=0, below=1
    )


@dataclasses.dataclass(frozen=True)
class PfrConfig:
    """Settings of patch feature reconstruction."""

    mask_padding: bool = setting(True, "Give padding frames no weight; the reference gives them some.")
    init: str = setting(
        "random",
        '"random": around 1, so that the hidden maps can become different. "ones": all 1, as in the reference.',
        choices=("random", "ones"),
    )


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """Settings of the box decoder."""

    kind: str = setting(
        "clip", '"frame": each frame by itself. "clip": all frames of a clip together.', choices=("frame", "clip")
    )
    num_queries: int = setting(10, "Boxes proposed in each frame, each with a score.", minimum=1)
    num_boxes: int = setting(
        1, "Number of true boxes of a frame. 1: only the intended product's; more: other products' too.", minimum=1
    )
    width: int = setting(256, "Width of the decoder; a multiple of 8.", minimum=8)
    layers: int = setting(6, "Layers of the decoder.", minimum=1)
    heads: int = setting(8, "Attention heads of a layer.", minimum=1)
    temporal_layers: int = setting(
        2, 'Blocks of kind "clip" in which a patch attends to the same place in the other frames.', minimum=0
    )

    def problems(self) -> Iterator[str]:
        if self.num_boxes > self.num_queries:
            yield (
                f"config.model.detector.num_boxes: found {self.num_boxes}, expected at most num_queries "
                f"({self.num_queries}): every box needs a query of its own"
            )
        if self.width % self.heads or self.width % 8:
            yield (
                f"config.model.detector.width: found {self.width}, expected a multiple of heads ({self.heads}) and of "
                "8, as positions are sines and cosines of four numbers"
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig(VitConfig):
    logit_scale: float = setting(
        4.0,
        'Initial value of the learned logit scale, with `loss.kind` "softmax"; similarities are multiplied by its '
        "square.",
    )
    init_from: str = setting(
        "",
        "Converted model or run from whose weights training starts; empty: random weights. The encoder's settings that "
        "are at their default, all but `image_size`, are then those of the weights.",
        free=True,
    )
    ipd: str = setting(
        "off",
        'Source of the intended product\'s boxes in a video\'s frames. "off": none. "boxes": the data set, or '
        '`data.train_boxes` and `data.query_boxes`. "detector": these two files, which must cover every frame.',
        choices=("off", "boxes", "detector"),
    )
    ipd_use: str = setting(
        "mask",
        '"mask": other patches are left out of attention. "crop": the frame is cropped to the product.',
        choices=("mask", "crop"),
    )
    ipd_margin: float = setting(
        0.2,
        "Margin on each side of the box to which a frame is cropped.",
        unit="share of the longer side",
        minimum=0,
    )
    text: str = setting(
        "off",
        'What the model reads of an image\'s title and a video\'s speech. "off": nothing. "embeddings": those in '
        '`data.texts`. "tower": the texts themselves, with a text tower that is trained.',
        choices=("off", "embeddings", "tower"),
    )
    text_dim: int = setting(512, 'Size of the embeddings in `data.texts`, with `text` "embeddings".', minimum=1)
    text_init_from: str = setting(
        "",
        "Converted text tower (`rice convert text`) from whose weights training starts, and whose tokenizer the run "
        'uses, with `text` "tower".',
        free=True,
    )
    swin: SwinSettings = group(
        SwinSettings,
        'Architecture "swin", in place of the sizes and parts of a ViT. A linear layer maps the pooled patches to '
        "`embed_dim`, unless this is the last stage's width.",
    )
    aggregation: AggregationConfig = group(AggregationConfig, "How frames become a video's embedding.")
    pmd: PmdConfig = group(PmdConfig, "The pairwise matching decoder; built if `loss.pmd_weight` is above 0.")
    pfr: PfrConfig = group(
        PfrConfig, "Patch feature reconstruction; built with the decoder if `loss.pfr_weight` is above 0."
    )
    text_tower: TextTowerSettings = group(
        TextTowerSettings, 'The text tower of `text` "tower"; at their defaults the settings are those of its weights.'
    )
    detector: DetectorConfig = group(DetectorConfig, 'The box decoder of task "detection".')
    cope: CopeSettings = group(CopeSettings, 'The model of task "cope".')

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder's settings alone."""
        if self.architecture == "swin":
            return SwinConfig(**vars(self.swin), **{name: getattr(self, name) for name in SHARED})
        return VitConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(VitConfig)})

    @property
    def texts(self) -> TextConfig | None:
        """What the model reads of texts; None = nothing."""
        if self.text == "tower":
            tower = TextTowerConfig(**vars(self.text_tower), dtype=self.dtype, remat=self.remat, unroll=self.unroll)
            return TextConfig(tower.embed_dim, tower)
        return TextConfig(self.text_dim) if self.text == "embeddings" else None

    def problems(self) -> Iterator[str]:
        if self.text == "tower":
            for problem in TextTowerConfig(**vars(self.text_tower)).problems():
                yield f"config.model.text_tower.{problem}"
        if self.architecture not in (*OF_PATCHES, *OF_VIDEOS) and self.ipd != "off" and self.ipd_use == "mask":
            yield (
                f"config.model.ipd_use: found 'mask' with config.model.architecture={self.architecture!r}, which "
                "cannot leave out patches; set it to 'crop'"
            )
        if self.architecture != "swin":
            yield from super().problems()
            return
        swin = self.encoder
        yield from swin.problems()
        for name in (*SIZES, *SWITCHES, "frozen_stages"):
            if name not in SHARED and (value := getattr(self, name)) != (default := getattr(VitConfig, name)):
                yield (
                    f"config.model.{name}: found {value!r} with config.model.architecture='swin', which does not read "
                    f"it; leave it at its default ({default!r}), and see config.model.swin"
                )
