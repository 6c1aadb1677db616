"""All settings, in groups. `docs/settings.md` is generated from this file (`python -m rice_jax.config.document`)."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from rice_jax.config.fields import group, setting


@dataclasses.dataclass(frozen=True)
class DataConfig:
    data_dir: str = setting("data/built", "Directory that `rice build --data_dir` wrote.", free=True)
    train: str = setting("", 'Data set to train on, below `data_dir`, e.g. "lpr4m/train".')
    query: str = setting("", "Data set of clips to evaluate on.", free=True)
    gallery: str = setting("", "Data set of the images that queries may match.", free=True)
    domains: str = setting(
        "",
        'For task "domains": two or more sets of product items, separated by commas, e.g. "rope/pages,rope/videos". '
        "They take the place of `train`, `query` and `gallery`: each training pair takes its image and its video from "
        "two items of one product, drawn anew in every epoch, and evaluation covers every ordered pair of sets.",
    )
    detect: str = setting("", "Data set whose frames `--mode=detect` searches.", free=True)
    batch_size: int = setting(96, "Global number of (video, image) pairs in a training batch.", unit="pairs", minimum=1)
    num_frames: int = setting(
        10, "Frames of a video in training: more are sampled evenly, fewer are padded.", unit="frames", minimum=1
    )
    resize: int = setting(256, "Side to which a picture is resized before the crop.", unit="pixels", minimum=1)
    crop: str = setting(
        "frame",
        '"frame": every frame has a crop and flip of its own, as in the reference. "video": one for all frames.',
        choices=("frame", "video"),
    )
    image_crop_min_area: float = setting(
        1.0,
        "1: crops of `model.image_size` out of `resize`, as in the reference. Below 1: windows of shop images that "
        "cover a random share of the area, between this and 1.",
        unit="share",
        above=0,
        maximum=1,
    )
    frame_crop_min_area: float = setting(
        1.0, "The same for frames: the smallest share of the area.", unit="share", above=0, maximum=1
    )
    frame_crop_max_area: float = setting(
        1.0, "The same for frames: the largest share of the area.", unit="share", above=0, maximum=1
    )
    color_jitter: float = setting(
        0.0, "Strength of random changes of brightness, contrast and channel gains; 0: off.", minimum=0
    )
    pair_hue: float = setting(
        0.0,
        "Largest turn of the hues that a video and its image share in training; 0: off.",
        unit="share of 180°",
        minimum=0,
        maximum=1,
    )
    cut_tail: bool = setting(
        True, "In training, keep with probability 1/2 only the first n frames, n drawn from 1 to `num_frames`."
    )
    crop_around_box: bool = setting(
        False, "In training, a frame's window contains the product's box; needs `frame_crop_min_area` below 1."
    )
    boxed_frames: bool = setting(False, "In training, choose only frames with a box of the product, if a clip has any.")
    random_frames: bool = setting(False, "In training, choose frames at random instead of evenly.")
    train_boxes: str = setting(
        "", "File of boxes for the training frames, as `--mode=detect` writes; empty: the data set's boxes."
    )
    query_boxes: str = setting("", "The same for the queries' frames.", free=True)
    box_min_score: float = setting(0.5, "Boxes of these files with a lower score are ignored.", minimum=0, maximum=1)
    device_resize_height: int = setting(
        0,
        "The device crops and resizes pictures up to this height and `device_resize_width`, so that the host only "
        "decodes; the host resizes larger pictures, and all pictures if both are 0.",
        unit="pixels",
        minimum=0,
        free=True,
    )
    device_resize_width: int = setting(0, "See `device_resize_height`.", unit="pixels", minimum=0, free=True)
    num_threads: int = setting(
        16,
        "Decoding threads of a process, which share each batch. About 8 are useful where the device resizes, 24 where "
        "the host does.",
        unit="threads",
        minimum=0,
        free=True,
    )
    num_workers: int = setting(
        0,
        "Worker processes of Grain, for hosts whose threads cannot keep up; each batch is then copied once more.",
        unit="processes",
        minimum=0,
        free=True,
    )

    @property
    def changes_color(self) -> bool:
        """Whether training pictures change color."""
        return bool(self.color_jitter or self.pair_hue)

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The sets of `domains`."""
        return tuple(name.strip() for name in self.domains.split(",")) if self.domains else ()

    def problems(self) -> Iterator[str]:
        if self.frame_crop_min_area > self.frame_crop_max_area:
            yield (
                f"config.data.frame_crop_min_area and frame_crop_max_area: found {self.frame_crop_min_area} and "
                f"{self.frame_crop_max_area}, expected 0 < minimum <= maximum <= 1"
            )
        if self.crop_around_box and (self.crop != "frame" or self.frame_crop_min_area == 1):
            yield (
                "config.data.crop_around_box: expected with crop='frame' and frame_crop_min_area below 1, found "
                f"{self.crop!r} and {self.frame_crop_min_area}"
            )


@dataclasses.dataclass(frozen=True)
class InputConfig(DataConfig):
    """The data settings, and what the model and the run decide about pictures (`Config.input`)."""

    image_size: int = 224  # pixels
    patch_size: int = 32  # pixels
    ipd: str = "off"
    ipd_use: str = "mask"
    ipd_margin: float = 0.2  # share of a box's longer side
    num_boxes: int = 1  # of a frame
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Settings of a vision transformer."""

    image_size: int = setting(224, "Side of the square picture that the encoder takes.", unit="pixels", minimum=1)
    patch_size: int = setting(32, "Side of a patch.", unit="pixels", minimum=1)
    width: int = setting(768, "Width of the encoder's tokens.", minimum=1)
    layers: int = setting(12, "Blocks of the encoder.", minimum=1)
    heads: int = setting(12, "Attention heads of a block.", minimum=1)
    embed_dim: int = setting(512, "Size of an embedding.", minimum=1)
    dtype: str = setting(
        "bfloat16",
        "Compute type; parameters, losses and similarities are float32.",
        choices=("float32", "bfloat16"),
    )
    remat: str = setting(
        "none",
        'Activations that the backward pass computes again, to save memory: "none"; "dots": all but the outputs of '
        'linear layers; "full": all, for about a third more compute.',
        choices=("none", "dots", "full"),
        free=True,
    )
    unroll: bool = setting(
        False,
        "Lay out the blocks one after the other instead of in a loop: compiles longer, may run faster.",
        free=True,
    )

    @property
    def num_tokens(self) -> int:
        """Tokens of a picture, CLS included."""
        return (self.image_size // self.patch_size) ** 2 + 1

    def problems(self) -> Iterator[str]:
        if self.image_size % self.patch_size:
            yield (
                f"config.model.image_size: found {self.image_size}, expected a multiple of patch_size "
                f"({self.patch_size})"
            )
        if self.width % self.heads:
            yield f"config.model.width: found {self.width}, expected a multiple of heads ({self.heads})"


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
        '"random": around the reference\'s ones, so that hidden maps can become different. "ones": all ones.',
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
        1, "True boxes of a frame that count: 1: the intended product's; more: other products' too.", minimum=1
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
    logit_scale: float = setting(4.0, "Initial value; similarities are multiplied by its square.")
    init_from: str = setting(
        "", "A converted model or a run whose weights to start from; empty: random weights.", free=True
    )
    ipd: str = setting(
        "off",
        'Where the intended product is in a video\'s frames. "off": unknown. "boxes": the data set\'s boxes, or those '
        'of `data.train_boxes` and `data.query_boxes`. "detector": the latter, which must cover every frame.',
        choices=("off", "boxes", "detector"),
    )
    ipd_use: str = setting(
        "mask",
        '"mask": other patches are left out of attention. "crop": the frame is cropped to the product.',
        choices=("mask", "crop"),
    )
    ipd_margin: float = setting(
        0.2,
        "Margin around the box that a frame is cropped to, on each side.",
        unit="share of the longer side",
        minimum=0,
    )
    pmd: PmdConfig = group(PmdConfig, "The pairwise matching decoder; built if `loss.pmd_weight` is above 0.")
    pfr: PfrConfig = group(
        PfrConfig, "Patch feature reconstruction; built with the decoder if `loss.pfr_weight` is above 0."
    )
    detector: DetectorConfig = group(DetectorConfig, 'The box decoder of task "detection".')

    @property
    def encoder(self) -> VitConfig:
        """The encoder's settings alone."""
        return VitConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(VitConfig)})


@dataclasses.dataclass(frozen=True)
class DetectionLossConfig:
    no_object_weight: float = setting(
        0.1, "Weight of queries without a box in the classification; a query with a box has 1.", minimum=0
    )
    l1_weight: float = setting(5.0, "Weight of the boxes' L1 distance; the classification has 1.", minimum=0)
    giou_weight: float = setting(2.0, "Weight of the boxes' generalized IoU.", minimum=0)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    mask_same_image: bool = setting(True, "Pairs of the batch that share a shop image are not each other's negatives.")
    pmd_weight: float = setting(
        1.0, "Weight of PMD; ICL has 1. 0: the model has no decoder, and PFR is off too.", minimum=0
    )
    pfr_weight: float = setting(1.0, "Weight of PFR; 0: off.", minimum=0)
    num_negatives: int = setting(3, "Hardest other videos that PMD matches each image with.", minimum=1)
    negatives: str = setting(
        "batch",
        'Where PMD\'s negatives come from: the global "batch", or the pairs on the same "device", for very large '
        "batches.",
        choices=("batch", "device"),
    )
    match_scale: float = setting(10.0, "Inverse temperature of PMD's softmax over cosines.", above=0)
    detection: DetectionLossConfig = group(DetectionLossConfig, 'Task "detection".')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    encoder_learning_rate: float = setting(1e-6, "Peak learning rate of pretrained parts.", minimum=0)
    new_learning_rate: float = setting(1e-4, "Peak learning rate of parts that start from random weights.", minimum=0)
    beta1: float = setting(0.9, "Decay of Adam's first moment.", minimum=0, below=1)
    beta2: float = setting(0.999, "Decay of Adam's second moment.", minimum=0, below=1)
    epsilon: float = setting(1e-6, "Adam's epsilon, added before the bias correction.", above=0)
    weight_decay: float = setting(0.2, "Decoupled weight decay; biases have none.", minimum=0)
    clip_norm: float = setting(0.0, "Largest global gradient norm; 0: no clipping.", minimum=0)
    warmup_steps: int = setting(500, "Linear warm-up from 0; a cosine to 0 follows.", unit="steps", minimum=0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    total_steps: int = setting(5_000, "Length of the training.", unit="steps", minimum=1)
    log_interval_steps: int = setting(50, "Between log lines.", unit="steps", minimum=1, free=True)
    checkpoint_interval_steps: int = setting(500, "Between checkpoints.", unit="steps", minimum=1, free=True)
    eval_interval_steps: int = setting(
        0, "Between evaluations; 0: only before the first and after the last step.", unit="steps", minimum=0, free=True
    )
    keep_checkpoints: int = setting(2, "Newest checkpoints to keep.", minimum=1, free=True)
    grad_cache_chunks: int = setting(
        1,
        "Encode a batch in this many chunks, each a second time for its gradients: the same losses and gradients from "
        "less memory and about a third more compute.",
        unit="chunks",
        minimum=1,
        free=True,
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    batch_size: int = setting(
        128,
        "Global number of videos, or of images, in a batch; rounded up to a multiple of the number of devices.",
        minimum=1,
    )
    num_frames: int = setting(10, "Frames of a query, sampled evenly or padded.", unit="frames", minimum=1)
    pixels: bool = setting(False, "Also rank by nearest raw pixels, once per run.")
    rerank: int = setting(
        0, "Match this many of each query's first images with PMD and re-order them; 0: off.", unit="images", minimum=0
    )
    rerank_keep_tokens: bool = setting(
        True,
        "Keep PMD's side of every gallery image in memory (`width` bfloat16 numbers per image with one pair of blocks, "
        "`num_tokens` times as many with more). False: read and encode the candidates again for every query.",
    )
    min_score: float = setting(0.05, "`--mode=detect` writes boxes with at least this score.", minimum=0, maximum=1)
    draw_clips: int = setting(
        0, "`--mode=detect` also draws this many clips, spread evenly over the data set.", unit="clips", minimum=0
    )


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    images: str = setting(
        "",
        "What `--mode=index` reads: a directory with ID.jpg or GALLERY/ID.jpg, or a CSV with the columns id, path "
        "(relative to the CSV) and optionally gallery and title.",
    )
    directory: str = setting("", "Directory of the index; empty: `index` in the workdir.")
    change: str = setting(
        "add",
        '"add": new and changed images are added. "mirror": images that are not in `images` are then removed. '
        '"remove": the images in `images` are removed.',
        choices=("add", "mirror", "remove"),
    )


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
        'sets of product items, as ROPE has them. "detection": a detector of the intended product.',
    )
    seed: int = setting(0, "Of the initial weights, the order of the data, and every random draw.")
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
        )

    @property
    def eval_input(self) -> InputConfig:
        """What the input pipeline needs in evaluation."""
        return dataclasses.replace(self.input, num_frames=self.eval.num_frames)

    def problems(self) -> Iterator[str]:
        """Settings that exclude each other, whatever the task; a line for each."""
        data, model, train = self.data, self.model, self.train
        for part in (data, model, model.detector, self.mesh):
            yield from part.problems()
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
                f"config.train.total_steps: found {train.total_steps}, expected more than optimizer.warmup_steps "
                f"({self.optimizer.warmup_steps})"
            )
        if data.batch_size % train.grad_cache_chunks:
            yield (
                f"config.train.grad_cache_chunks: found {train.grad_cache_chunks}, expected a divisor of "
                f"config.data.batch_size ({data.batch_size})"
            )
        if model.ipd == "detector" and not (data.train_boxes and data.query_boxes):
            yield (
                f"config.model.ipd='detector': found config.data.train_boxes={data.train_boxes!r} and "
                f"query_boxes={data.query_boxes!r}, expected the files that --mode=detect wrote of both data sets"
            )
        if model.ipd == "off" and (data.train_boxes or data.query_boxes):
            yield (
                f"config.data.train_boxes and query_boxes: found {data.train_boxes!r} and {data.query_boxes!r} with "
                "config.model.ipd='off', which does not read them; set it to 'boxes' or 'detector'"
            )
