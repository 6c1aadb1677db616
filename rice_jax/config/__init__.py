"""Settings: the user's ConfigDict becomes frozen dataclasses, derived once and checked once.

What a user turns is documented here, beside its name and type; the values are in `configs/`. Fields marked "derived" do
not exist in `configs/`: they follow from others after all overrides, so no override can leave a stale number.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class DataConfig:
    data_dir: str  # directory that `data/build.py --data_dir` wrote
    train: str  # data set below data_dir, e.g. "lpr4m/train"
    query: str  # of a detector, the clips that it is evaluated on
    gallery: str
    detect: str  # data set whose frames --mode=detect looks at
    batch_size: int  # global number of (video, image) pairs
    num_frames: int  # frames of a video while training; more are sampled evenly, fewer are padded
    resize: int  # side to which a picture is squashed before the crop, pixels
    crop: str  # "frame": every frame has its own crop and flip, as the reference; "video": one draw per video
    # While training: 1 = a crop of image_size out of resize, as the reference. Below 1 a window of the picture whose
    # share of its area is random: of a shop image between image_crop_min_area and 1, of a frame between the other two.
    image_crop_min_area: float
    frame_crop_min_area: float
    frame_crop_max_area: float
    color_jitter: float  # strength of random brightness, contrast and channel gains; 0 = off
    pair_hue: (
        float  # while training, turn the hues of a video and its image together by up to this share of half a circle
    )
    cut_tail: bool  # while training, with probability 1/2 keep only the first 1..num_frames frames
    crop_around_box: bool  # while training, a frame's window holds the product's box; needs frame_crop_min_area < 1
    boxed_frames: bool  # while training, choose only among frames with a box of the product, if there are any
    random_frames: bool  # while training, choose num_frames of the stored frames at random instead of evenly
    # Boxes by frame id, JSON lines as --mode=detect writes them, for config.model.ipd; "" = those of the data set.
    train_boxes: str
    query_boxes: str
    box_min_score: float  # a box of such a file with a lower score does not count
    # The device cuts and resizes pictures of up to so many pixels, so that a host with few cores need only decode them;
    # larger ones, and all if 0, the host does.
    device_resize_height: int
    device_resize_width: int
    # Threads that decode, per process; together they make a batch. Python keeps no more than some eight of them busy
    # where the device resizes, 24 where the host does; beyond that, worker processes of Grain help, though each batch
    # is then copied; 0 = none.
    num_threads: int
    num_workers: int
    image_size: int = 0  # derived: model.image_size
    patch_size: int = 0  # derived: model.patch_size, as the next three
    ipd: str = "off"
    ipd_use: str = "mask"
    ipd_margin: float = 0.0
    seed: int = 0  # derived: seed
    num_boxes: int | None = None  # derived: model.detector.num_boxes; None = boxes are not asked for
    # Sets of items of products, with commas between, e.g. "rope/pages,rope/videos", instead of train, query and
    # gallery: an image and a video to train on are then of two items of one product, drawn anew from two of the sets in
    # each epoch; evaluated are retrieval and classification between every two.
    domains: str = ""

    @property
    def changes_colour(self) -> bool:
        """Whether the colours of training pictures are drawn."""
        return bool(self.color_jitter or self.pair_hue)

    @property
    def domain_names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.domains.split(",")) if self.domains else ()


@dataclasses.dataclass(frozen=True)
class PmdConfig:
    num_pairs: (
        int  # pairs of a self- and a cross-attention block; they start from the encoder's last 2 · num_pairs blocks
    )
    num_heads: int  # the encoder's keeps its heads whole; the reference's checkpoints have 8
    attention_dropout: float  # while training, share of the cross attention that is dropped


@dataclasses.dataclass(frozen=True)
class PfrConfig:
    mask_padding: bool  # padding frames get no weight; the reference lets them have some
    init: str  # "random": around the reference's all ones, so that hidden maps can become different; "ones": all ones


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    # "none" = no detector, RICE is trained; "frame" = it looks at each frame by itself; "clip" = at what all frames of
    # a clip show over time.
    kind: str
    num_queries: int  # boxes that it proposes per frame, each with a score
    num_boxes: int  # true boxes of a frame that count: 1 = the first, the intended product's; more = others too
    width: int  # of the decoder
    layers: int
    heads: int
    temporal_layers: int  # only of "clip": blocks in which a patch looks at the same place in the clip's other frames


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    image_size: int  # pixels
    patch_size: int  # pixels
    width: int
    layers: int
    heads: int
    embed_dim: int
    logit_scale: float  # initial value; similarities are multiplied by its square
    dtype: str  # compute dtype, "float32" or "bfloat16"; parameters, losses and similarities are float32
    # What of the blocks' activations the backward pass computes again, for less memory: "none"; "dots" = all but the
    # outputs of the linear layers; "full" = all, which is about a third more compute. The decoder's go with either.
    remat: str
    init_from: str  # directory of a converted model, or of a training run, whose weights to start from; "" = fresh
    pmd: PmdConfig | None = None  # derived None, whatever is set, if loss.pmd_weight is 0: then there is no decoder
    pfr: PfrConfig | None = None  # derived None if there is no decoder or loss.pfr_weight is 0
    detector: DetectorConfig | None = None  # derived None if its kind is "none"; with one there is no pmd and no pfr
    # Lay the encoder's blocks out one after the other instead of in a loop: compiles longer, may run faster.
    unroll: bool = False
    # Where the intended product is in a video's frames: "off" = unknown; "boxes" = the data set's boxes, or those of
    # config.data.train_boxes and query_boxes; "detector" = the latter, which must know every frame.
    ipd: str = "off"
    # What is done about it: "mask" = nobody looks at the other patches; "crop" = the frame is cut to the product.
    ipd_use: str = "mask"
    ipd_margin: float = 0.0  # around the box that a frame is cut to, on each side, as a share of the box's longer side

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclasses.dataclass(frozen=True)
class DetectionLossConfig:
    no_object_weight: float  # of a query without a box in the classification, beside 1 of one with a box
    l1_weight: float  # of the boxes' L1 distance, beside 1 of the classification
    giou_weight: float  # of their generalised IoU


@dataclasses.dataclass(frozen=True)
class LossConfig:
    mask_same_image: bool  # pairs of the batch that share a shop image are not each other's negatives
    pmd_weight: float  # of PMD beside ICL, whose weight is 1; 0 = no decoder, and with it no PFR
    pfr_weight: float  # of PFR; 0 = none
    num_negatives: int  # hardest other videos that each image is matched with
    negatives: str  # "batch": from the global batch; "device": from what one device holds, for very large batches
    match_scale: float  # inverse temperature of PMD's softmax over cosines
    detection: DetectionLossConfig | None = None  # derived None if there is no detector


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    encoder_learning_rate: float
    new_learning_rate: float  # of modules that CLIP does not have
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float  # largest global gradient norm; 0 = off
    warmup_steps: int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    total_steps: int
    log_interval_steps: int
    checkpoint_interval_steps: int
    eval_interval_steps: int  # 0 = only before the first step and after the last
    keep_checkpoints: int
    # Encode a batch in so many parts, one after the other and each again for its gradients, for batches whose
    # activations do not fit together: the same losses and gradients from about a third more compute. 1 = at once.
    grad_cache_chunks: int


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    batch_size: int  # global number of videos, or of images, per embedding step
    num_frames: int  # frames of a query, sampled evenly or padded
    pixels: bool  # also rank by nearest raw pixels, once per run
    rerank: int  # match this many of each query's first images by PMD and re-order them; 0 = off
    # What PMD needs of an image: True = computed once per gallery image and kept in every process's memory as bfloat16
    # (width numbers an image with one pair of blocks, num_tokens times as many with more); False = for every query its
    # candidates are read and encoded again, in batches of batch_size · rerank pictures.
    rerank_keep_tokens: bool
    min_score: float  # --mode=detect writes boxes with at least this score
    draw_clips: int  # --mode=detect also draws so many clips, evenly spread over the data set


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    # What --mode=index reads: a directory with ID.jpg or GALLERY/ID.jpg, or a CSV with the columns id, path (from the
    # CSV's directory) and possibly gallery and title.
    images: str
    directory: str  # where the index is; "" = `index` in the workdir
    # What happens to the index: "add" = it gets what is new or has changed; "mirror" = it then also loses what is not
    # in images; "remove" = it loses what is in images.
    change: str


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    # Their product is the number of devices; -1 = what the other leaves.
    data: int = -1  # groups of devices that each hold all parameters
    fsdp: int = 1  # devices of a group, over which parameters and optimiser state are split; the batch is over all


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    eval: EvalConfig
    index: IndexConfig
    mesh: MeshConfig

    def to_dict(self) -> dict:
        """Nested plain values, as written beside a checkpoint."""
        return dataclasses.asdict(self)


class ConfigError(ValueError):
    """A setting that cannot be; the message says which, what was found and what was expected."""


def resolve(values: Mapping) -> Config:
    """Checks a configuration and fills in what follows from it.

    Args:
        values: nested mapping of plain values, e.g. the ConfigDict of `configs/*.py` after the user's overrides.

    Returns:
        The frozen configuration.

    Raises:
        ConfigError: unknown, missing or mistyped keys, or values that exclude each other.
    """
    config = _build(Config, values, "config")
    model, loss = config.model, config.loss
    from_model = {name: getattr(model, name) for name in FROM_MODEL}
    data = dataclasses.replace(config.data, **from_model, seed=config.seed)
    if model.detector.kind == "none":
        model, loss = dataclasses.replace(model, detector=None), dataclasses.replace(loss, detection=None)
    else:
        model = dataclasses.replace(model, pmd=None, pfr=None)
        data = dataclasses.replace(data, num_boxes=model.detector.num_boxes)
    if not loss.pmd_weight:
        model = dataclasses.replace(model, pmd=None)
    if not (loss.pmd_weight and loss.pfr_weight):
        model = dataclasses.replace(model, pfr=None)
    config = dataclasses.replace(config, data=data, model=model, loss=loss)
    _check(config)
    return config


FROM_MODEL = ("image_size", "patch_size", "ipd", "ipd_use", "ipd_margin")
DERIVED = {"data": (*FROM_MODEL, "seed", "num_boxes")}


def _build(cls: type, values: Mapping, path: str):
    hints = typing.get_type_hints(cls)
    derived = DERIVED.get(path.rpartition(".")[2], ())
    expected = [name for name in hints if name not in derived]
    if unknown := sorted(set(values) - set(expected)):
        raise ConfigError(f"{path}: unknown keys {unknown}, expected some of {expected}")
    if missing := [name for name in expected if name not in values]:
        raise ConfigError(f"{path}: missing keys {missing}; start from configs/base.py")
    return cls(**{name: _value(hints[name], values[name], f"{path}.{name}") for name in expected})


def _value(hint, value, path: str):
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]  # what may be derived to be None is set like anything else
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: found {value!r}, expected a group of settings")
        return _build(hint, value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path}: found {value!r} ({type(value).__name__}), expected {hint.__name__}")
    return value


def _check(config: Config) -> None:
    data, model, loss, train = config.data, config.model, config.loss, config.train
    pmd, pfr, detector, mesh = model.pmd, model.pfr, model.detector, config.mesh
    checks = [
        (
            data.batch_size > (0 if detector else 1),
            f"config.data.batch_size: found {data.batch_size}, expected 2 or more: pairs are contrasted",
        ),
        (
            min(loss.pmd_weight, loss.pfr_weight) >= 0 and loss.num_negatives > 0 and loss.match_scale > 0,
            "config.loss: expected pmd_weight and pfr_weight of 0 or more, num_negatives and match_scale above 0",
        ),
        (
            loss.negatives in ("batch", "device"),
            f"config.loss.negatives: found {loss.negatives!r}, expected 'batch' or 'device'",
        ),
        (
            not pmd or data.batch_size > loss.num_negatives,
            f"config.data.batch_size: found {data.batch_size}, expected {loss.num_negatives + 1} or more: every image "
            f"is matched with its own and {loss.num_negatives} other videos (config.loss.num_negatives)",
        ),
        (
            not pmd or (pmd.num_heads > 0 and model.width % pmd.num_heads == 0),
            f"config.model.pmd.num_heads: found {pmd and pmd.num_heads}, expected a divisor of width {model.width}",
        ),
        (
            not pmd or 0 < 2 * pmd.num_pairs <= model.layers,
            f"config.model.pmd.num_pairs: found {pmd and pmd.num_pairs}, expected 1 to {model.layers // 2}: each "
            f"starts from two of the encoder's {model.layers} blocks",
        ),
        (
            not pmd or 0 <= pmd.attention_dropout < 1,
            f"config.model.pmd.attention_dropout: found {pmd and pmd.attention_dropout}, expected 0 to below 1",
        ),
        (
            not pfr or pfr.init in ("random", "ones"),
            f"config.model.pfr.init: found {pfr and pfr.init!r}, expected 'random' or 'ones'",
        ),
        (
            not pfr or pmd.num_pairs * pmd.num_heads > 1,
            "config.model.pmd.num_heads: found 1, expected 2 or more: PFR halves the number of attention maps",
        ),
        (
            not detector or detector.kind in ("frame", "clip"),
            f"config.model.detector.kind: found {detector and detector.kind!r}, expected 'none', 'frame' or 'clip'",
        ),
        (
            not detector or 0 < detector.num_boxes <= detector.num_queries,
            "config.model.detector.num_boxes and num_queries: found "
            f"{detector and (detector.num_boxes, detector.num_queries)}, expected 0 < num_boxes <= num_queries: every "
            "box needs a query of its own",
        ),
        (
            not detector
            or (min(detector.heads, detector.layers, detector.width) > 0 and detector.width % detector.heads == 0),
            "config.model.detector.width, heads and layers: found "
            f"{detector and (detector.width, detector.heads, detector.layers)}, expected 1 or more each, width a "
            "multiple of heads",
        ),
        (
            not detector or detector.width % 8 == 0,
            f"config.model.detector.width: found {detector and detector.width}, expected a multiple of 8: positions "
            "are sines and cosines of four numbers",
        ),
        (
            not detector or detector.temporal_layers >= 0,
            f"config.model.detector.temporal_layers: found {detector and detector.temporal_layers}, expected 0 or more",
        ),
        (
            not detector or min(dataclasses.astuple(loss.detection)) >= 0,
            f"config.loss.detection: found {loss.detection}, expected weights of 0 or more",
        ),
        (
            not detector or model.ipd == "off",
            f"config.model.ipd: found {model.ipd!r}, expected 'off' with config.model.detector.kind="
            f"{detector and detector.kind!r}: a detector finds the product by itself",
        ),
        (
            0 <= config.eval.min_score <= 1 and config.eval.draw_clips >= 0,
            f"config.eval.min_score and draw_clips: found {config.eval.min_score} and {config.eval.draw_clips}, "
            "expected 0 to 1, and 0 or more",
        ),
        (
            not data.domains or len({*data.domain_names} - {""}) == len(data.domain_names) > 1,
            f"config.data.domains: found {data.domains!r}, expected two sets or more, each once, with commas between",
        ),
        (
            not data.domains or not (data.train or data.query or data.gallery),
            f"config.data.domains: found {data.domains!r} beside train, query or gallery, expected these to be empty",
        ),
        (
            not data.domains or (model.ipd == "off" and not config.eval.rerank),
            "config.data.domains: expected with config.model.ipd='off' and config.eval.rerank=0, found "
            f"{model.ipd!r} and {config.eval.rerank}: items have no boxes, and a decoder matches gallery images",
        ),
        (data.num_frames > 0, f"config.data.num_frames: found {data.num_frames}, expected 1 or more"),
        (data.crop in ("frame", "video"), f"config.data.crop: found {data.crop!r}, expected 'frame' or 'video'"),
        (
            0 < data.image_crop_min_area <= 1,
            f"config.data.image_crop_min_area: found {data.image_crop_min_area}, expected 0 to 1",
        ),
        (
            0 < data.frame_crop_min_area <= data.frame_crop_max_area <= 1,
            f"config.data.frame_crop_min_area and frame_crop_max_area: found {data.frame_crop_min_area} and "
            f"{data.frame_crop_max_area}, expected 0 < minimum <= maximum <= 1",
        ),
        (
            not data.crop_around_box or (data.crop == "frame" and data.frame_crop_min_area < 1),
            "config.data.crop_around_box: expected with crop='frame' and frame_crop_min_area below 1, "
            f"found {data.crop!r} and {data.frame_crop_min_area}",
        ),
        (
            0 <= data.pair_hue <= 1 and data.color_jitter >= 0,
            f"config.data.pair_hue and color_jitter: found {data.pair_hue} and {data.color_jitter}, "
            "expected 0 to 1, and 0 or more",
        ),
        (
            data.resize >= model.image_size,
            f"config.data.resize: found {data.resize}, expected model.image_size ({model.image_size}) or more",
        ),
        (
            (data.device_resize_height, data.device_resize_width) == (0, 0)
            or min(data.device_resize_height, data.device_resize_width) >= model.image_size,
            f"config.data.device_resize_height and device_resize_width: found {data.device_resize_height} and "
            f"{data.device_resize_width}, expected both 0, or both model.image_size ({model.image_size}) or more",
        ),
        (
            model.image_size % model.patch_size == 0,
            f"config.model.image_size: found {model.image_size}, expected a multiple of patch_size {model.patch_size}",
        ),
        (
            model.width % model.heads == 0,
            f"config.model.width: found {model.width}, expected a multiple of heads ({model.heads})",
        ),
        (
            model.remat in ("none", "dots", "full"),
            f"config.model.remat: found {model.remat!r}, expected 'none', 'dots' or 'full'",
        ),
        (
            model.dtype in ("float32", "bfloat16"),
            f"config.model.dtype: found {model.dtype!r}, expected 'float32' or 'bfloat16'",
        ),
        (
            train.total_steps > config.optimizer.warmup_steps,
            f"config.train.total_steps: found {train.total_steps}, expected more than optimizer.warmup_steps "
            f"({config.optimizer.warmup_steps})",
        ),
        (
            min(train.log_interval_steps, train.checkpoint_interval_steps, train.keep_checkpoints) > 0,
            "config.train: log_interval_steps, checkpoint_interval_steps and keep_checkpoints must be 1 or more",
        ),
        (
            train.grad_cache_chunks > 0 and data.batch_size % max(train.grad_cache_chunks, 1) == 0,
            f"config.train.grad_cache_chunks: found {train.grad_cache_chunks}, expected 1 or more, and a divisor of "
            f"config.data.batch_size ({data.batch_size})",
        ),
        (
            not detector or train.grad_cache_chunks == 1,
            f"config.train.grad_cache_chunks: found {train.grad_cache_chunks}, expected 1 with "
            f"config.model.detector.kind={detector and detector.kind!r}: use a smaller batch instead",
        ),
        (
            min(config.eval.batch_size, config.eval.num_frames) > 0,
            f"config.eval.batch_size and num_frames: found {config.eval.batch_size} and {config.eval.num_frames}, "
            "expected 1 or more",
        ),
        (
            model.ipd in ("off", "boxes", "detector") and model.ipd_use in ("mask", "crop") and model.ipd_margin >= 0,
            f"config.model.ipd, ipd_use and ipd_margin: found {model.ipd!r}, {model.ipd_use!r} and {model.ipd_margin}, "
            "expected 'off', 'boxes' or 'detector'; 'mask' or 'crop'; 0 or more",
        ),
        (
            model.ipd != "detector" or (data.train_boxes and data.query_boxes),
            f"config.model.ipd='detector': found config.data.train_boxes={data.train_boxes!r} and query_boxes="
            f"{data.query_boxes!r}, expected the files that --mode=detect wrote of both data sets",
        ),
        (
            model.ipd != "off" or not (data.train_boxes or data.query_boxes),
            f"config.data.train_boxes and query_boxes: found {data.train_boxes!r} and {data.query_boxes!r} with "
            "config.model.ipd='off', which would not read them; set it to 'boxes' or 'detector'",
        ),
        (config.eval.rerank >= 0, f"config.eval.rerank: found {config.eval.rerank}, expected 0 or more"),
        (
            not config.eval.rerank or pmd is not None,
            f"config.eval.rerank: found {config.eval.rerank}, expected 0 with config.loss.pmd_weight=0: without a "
            "decoder nothing can be matched",
        ),
        (
            config.index.change in ("add", "mirror", "remove"),
            f"config.index.change: found {config.index.change!r}, expected 'add', 'mirror' or 'remove'",
        ),
        (
            all(size > 0 or size == -1 for size in (mesh.data, mesh.fsdp)) and (mesh.data, mesh.fsdp) != (-1, -1),
            f"config.mesh.data and fsdp: found {mesh.data} and {mesh.fsdp}, expected 1 or more, or -1 for one of them",
        ),
    ]
    for holds, message in checks:
        if not holds:
            raise ConfigError(message)
