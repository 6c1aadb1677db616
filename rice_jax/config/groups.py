"""Settings of evaluation, index and mesh, and `Config`, which holds all groups."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rice_jax.config.aggregation import AggregationConfig
from rice_jax.config.data import DataConfig, InputConfig
from rice_jax.config.fields import group, setting
from rice_jax.config.loss import LossConfig
from rice_jax.config.model import INTEGRATION, OF_VIDEOS, ModelConfig
from rice_jax.config.text import TOKENIZER_FOLDER, TextEvalSettings
from rice_jax.config.train import OptimizerConfig, TrainConfig

MAX_SEED = 2**31 - 1  # of JAX without 64-bit numbers; Grain takes one bit more


@dataclasses.dataclass(frozen=True)
class EvalConfig(TextEvalSettings):
    batch_size: int = setting(
        128,
        "Global number of videos, or of images, in a batch; rounded up to a multiple of the number of devices.",
        minimum=1,
    )
    num_frames: int = setting(10, "Frames of a query, sampled evenly or padded.", unit="frames", minimum=1)
    score: str = setting(
        "mean",
        "What images are ranked by. \"mean\": the cosine of the image's and the video's embedding, as published. "
        '"frames": the largest over the frames of (cosine - the frame\'s mean cosine over the gallery), without '
        "`model.aggregation`. Recognition ranks by frames whichever of them is set.",
        choices=("mean", "frames"),
    )
    pixels: bool = setting(False, "Also rank by nearest raw pixels, once per run.")
    rerank: int = setting(
        0,
        "Match this many of each query's first products with PMD; re-order them by it, and by both scores; 0: off.",
        unit="products",
        minimum=0,
    )
    rerank_keep_tokens: bool = setting(
        True,
        "Keep PMD's side of every gallery image in memory (`width` bfloat16 numbers per image with one pair of blocks, "
        "`num_tokens` times as many with more). False: read and encode the candidates again for every query.",
    )
    min_score: float = setting(0.05, "`rice detect` writes boxes with at least this score.", minimum=0, maximum=1)
    draw_clips: int = setting(
        0, "`rice detect` also draws this many clips, spread evenly over the data set.", unit="clips", minimum=0
    )


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    images: str = setting(
        "",
        "Pictures for `--mode=index`: a directory with ID.jpg, GALLERY/ID.jpg, or GALLERY/PRODUCT/PICTURE.jpg, or a "
        "CSV with the columns path (relative to the CSV), and id or product or both, and optionally gallery and title.",
    )
    directory: str = setting("", "Directory of the index; empty: `index` in the workdir.")
    change: str = setting(
        "add",
        '"add": add new and changed images. "mirror": also remove images that are not in `images`. "remove": remove '
        "the images in `images`.",
        choices=("add", "mirror", "remove"),
    )
    mix: bool = setting(False, 'Whether "add" may add images from another directory or CSV than the index is made of.')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = setting(
        -1, "Groups of devices, each with all parameters; -1: as many as the number of devices and `fsdp` allow."
    )
    fsdp: int = setting(
        1, "Devices of a group, over which parameters and optimizer state are split; the batch is split over all."
    )

    def problems(self) -> Iterator[str]:
        sizes = self.data, self.fsdp
        if not all(size > 0 or size == -1 for size in sizes) or sizes == (-1, -1):
            yield (
                f"config.mesh.data and fsdp: found {self.data} and {self.fsdp}, expected 1 or more, or -1 for one of "
                "them"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    task: str = setting(
        "retrieval",
        'What the run trains and measures. "retrieval": RICE on pairs of a video and an image. "domains": RICE between '
        'sets of product items, as ROPE has them. "cope": COPE, which has a head for each of three such sets. '
        '"detection": a detector of the intended product.',
    )
    seed: int = setting(
        0, "Seed of the initial weights, the order of the data, and every random draw.", minimum=0, maximum=MAX_SEED
    )
    data: DataConfig = group(DataConfig, "Data sets, and how pictures become examples.")
    model: ModelConfig = group(ModelConfig, "The model.")
    loss: LossConfig = group(LossConfig, "The losses.")
    optimizer: OptimizerConfig = group(OptimizerConfig, "AdamW.")
    train: TrainConfig = group(TrainConfig, "The training loop.")
    eval: EvalConfig = group(EvalConfig, "Evaluation.", free=True)
    index: IndexConfig = group(IndexConfig, "The index of a shop.", free=True)
    mesh: MeshConfig = group(MeshConfig, "Devices.", free=True)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as written beside a checkpoint."""
        return dataclasses.asdict(self)

    @property
    def input(self) -> InputConfig:
        """What the input pipeline needs in training."""
        model = self.model
        return InputConfig(
            **vars(self.data),
            image_size=model.image_size,
            patch_size=model.patch_size,
            ipd=model.ipd,
            ipd_use=model.ipd_use,
            ipd_margin=model.ipd_margin,
            num_boxes=model.detector.num_boxes,
            seed=self.seed,
            text=model.text,
            text_dim=model.text_dim,
            tokenizer=str(Path(model.text_init_from) / TOKENIZER_FOLDER),
            text_context=model.cope.context(model.text_tower) if self.task == "cope" else model.text_tower.context,
            teacher_dim=self.loss.distill_dim if self.loss.distills else 0,
        )

    @property
    def eval_input(self) -> InputConfig:
        """What the input pipeline needs in evaluation."""
        return dataclasses.replace(self.input, num_frames=self.eval.num_frames)

    def problems(self) -> Iterator[str]:
        """Settings that exclude each other, whatever the task; a line for each."""
        data, model, train = self.data, self.model, self.train
        for part in (data, model, model.detector, train, self.mesh, self.loss):
            yield from part.problems()
        yield from self.loss.distill_problems(data.teacher, self.task)
        yield from self._aggregation_problems()
        yield from self._video_encoder_problems()
        yield from self._text_problems()
        if self.eval.score == "frames" and model.ipd != "off" and model.ipd_use == "mask":
            yield (
                "config.eval.score: found 'frames' with config.model.ipd_use='mask', but frames are compared whole: "
                "set the score to 'mean', or the use to 'crop'"
            )
        if self.eval.score == "frames" and self.task != "retrieval":
            yield (
                f"config.eval.score: found 'frames' with config.task={self.task!r}, expected 'mean': only clips are "
                "ranked by frames"
            )
        if data.resize < model.image_size:
            yield (f"config.data.resize: found {data.resize}, expected model.image_size ({model.image_size}) or more")
        sizes = data.device_resize_height, data.device_resize_width
        if sizes != (0, 0) and min(sizes) < model.image_size:
            yield (
                f"config.data.device_resize_height and device_resize_width: found {sizes[0]} and {sizes[1]}, expected "
                f"both 0, or both model.image_size ({model.image_size}) or more"
            )
        if train.total_steps <= self.optimizer.warmup_steps:
            yield (
                f"config.train.total_steps: found {train.total_steps}, expected more than "
                f"config.optimizer.warmup_steps ({self.optimizer.warmup_steps}); lower that, too, for a short run"
            )
        if data.batch_size % train.grad_cache_chunks:
            yield (
                f"config.train.grad_cache_chunks: found {train.grad_cache_chunks}, expected a divisor of "
                f"config.data.batch_size ({data.batch_size})"
            )
        if model.ipd == "detector" and not (data.train_boxes and data.query_boxes):
            yield (
                f"config.model.ipd='detector': found config.data.train_boxes={data.train_boxes!r} and "
                f"query_boxes={data.query_boxes!r}, expected the files that rice detect wrote for both data sets"
            )
        if model.ipd == "off" and (data.train_boxes or data.query_boxes):
            yield (
                f"config.data.train_boxes and query_boxes: found {data.train_boxes!r} and {data.query_boxes!r} with "
                "config.model.ipd='off', which does not read them; set it to 'boxes' or 'detector'"
            )

    def _text_problems(self) -> Iterator[str]:
        model, texts = self.model, self.data.texts
        if model.text == "embeddings" and not texts:
            yield "config.data.texts: found '' with config.model.text='embeddings', expected what rice embed-text wrote"
        if model.text != "embeddings" and texts:
            yield (
                f"config.data.texts: found {texts!r} with config.model.text={model.text!r}, which does not read it; "
                "set it to 'embeddings', or leave data.texts out"
            )
        if model.text == "tower" and not model.text_init_from:
            yield (
                "config.model.text_init_from: found '' with config.model.text='tower', expected a converted text tower "
                "(rice convert text SOURCE OUT)"
            )
        if model.text != "tower" and self.optimizer.text_learning_rate:
            yield (
                f"config.optimizer.text_learning_rate: found {self.optimizer.text_learning_rate} with "
                f"config.model.text={model.text!r}, which has no text tower; set it to 0"
            )
        trains = self.loss.pmd_weight or self.loss.contrasts_texts
        reads = {"retrieval": trains or self.eval.fuses, "domains": trains, "cope": True}
        if model.text != "off" and not reads.get(self.task):
            yield (
                f"config.model.text: found {model.text!r} with config.task={self.task!r} and config.loss.pmd_weight="
                f"{self.loss.pmd_weight}, expected 'off', since nothing reads texts: task 'cope' does, tasks "
                "'retrieval' and 'domains' with config.loss.pmd_weight or a weight of a contrast of texts, and "
                "'retrieval' with config.eval.text_weight"
            )
        yield from self.loss.text_loss_problems(self.loss.kind, model.text, model.encoder.embed_dim, model.texts)
        yield from self.eval.text_weight_problems(model.text, self.task)

    def _aggregation_problems(self) -> Iterator[str]:
        aggregation, data = self.model.aggregation, self.data
        yield from aggregation.problems(self.model.embed_dim)
        if aggregation.kind == "transformer" and not (
            self.eval.num_frames <= data.num_frames <= aggregation.transformer.num_frames
        ):
            yield (
                f"config.model.aggregation.transformer.num_frames: found {aggregation.transformer.num_frames} with "
                f"config.data.num_frames={data.num_frames} and config.eval.num_frames={self.eval.num_frames}, expected "
                "no more frames in evaluation than in training, and a position for each"
            )

    def _video_encoder_problems(self) -> Iterator[str]:
        """An encoder of whole videos has no tokens or features of frames, which other parts need."""
        model, data = self.model, self.data
        others = f"with config.model.architecture={model.architecture!r}, which"
        if model.architecture not in OF_VIDEOS:
            if model.num_frames != ModelConfig.num_frames:
                yield (
                    f"config.model.num_frames: found {model.num_frames} {others} has no positions of frames; set it "
                    f"to {' or '.join(map(repr, OF_VIDEOS))}, or leave num_frames out"
                )
            if self.optimizer.between_frames != "encoder":
                yield (
                    f"config.optimizer.between_frames: found {self.optimizer.between_frames!r} {others} has no layers "
                    "between frames; leave it out"
                )
        if model.architecture != "xclip":
            for name in INTEGRATION:
                if (value := getattr(model, name)) != getattr(ModelConfig, name):
                    yield f"config.model.{name}: found {value} {others} has no blocks over the frames; leave it out"
        if model.architecture not in OF_VIDEOS:
            return
        found = f"{others} encodes a video as a whole"
        if self.task == "detection":
            yield f"config.task: found 'detection' {found}; a detector needs an encoder of frames"
        elif self.loss.pmd_weight:
            yield (
                f"config.loss.pmd_weight: found {self.loss.pmd_weight} {found}; PMD and PFR need the tokens of frames, "
                "so set it to 0"
            )
        if self.eval.score == "frames":
            yield f"config.eval.score: found 'frames' {found}; set it to 'mean'"
        if model.aggregation != AggregationConfig():
            yield (
                f"config.model.aggregation: found other than its defaults (kind={model.aggregation.kind!r}) {found}; "
                "leave it out"
            )
        if model.ipd != "off" and model.ipd_use == "mask":
            yield f"config.model.ipd_use: found 'mask' {found} and cannot leave out patches; set it to 'crop'"
        if max(data.num_frames, self.eval.num_frames) > model.num_frames:
            yield (
                f"config.data.num_frames and config.eval.num_frames: found {data.num_frames} and "
                f"{self.eval.num_frames}, expected at most config.model.num_frames ({model.num_frames}), the frames "
                "that have a learned position"
            )
