"""Settings of the data sets and of how their pictures are processed."""

import dataclasses
from collections.abc import Iterator

from rice_jax.config.fields import setting


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
        "two items of one product, drawn anew in every epoch, and evaluation covers every ordered pair of sets. For "
        'task "cope": three sets, of pages, short videos, and live clips, in this order.',
    )
    products: str = setting(
        "",
        'For task "cope": file with the product of each row of the class matrix, one a line, to which training appends '
        "new products; empty: `products.txt` in the workdir.",
        free=True,
    )
    detect: str = setting("", "Data set in whose frames `rice detect` finds boxes.", free=True)
    batch_size: int = setting(96, "Global number of (video, image) pairs in a training batch.", unit="pairs", minimum=1)
    num_frames: int = setting(
        10, "Frames of a video in training: more are sampled evenly, fewer are padded.", unit="frames", minimum=1
    )
    resize: int = setting(256, "Side to which a picture is resized before the crop.", unit="pixels", minimum=1)
    crop: str = setting(
        "frame",
        '"frame": every frame has its own crop and flip, as in the reference. "video": all frames share one.',
        choices=("frame", "video"),
    )
    image_crop_min_area: float = setting(
        1.0,
        "1: crops of `model.image_size` out of `resize`, as in the reference. Below 1: windows of shop images that "
        'cover a random share of the area, between this and 1. Task "cope" crops a page as a frame instead.',
        unit="share",
        above=0,
        maximum=1,
    )
    frame_crop_min_area: float = setting(
        1.0, "Smallest share of the area that a window of a frame covers.", unit="share", above=0, maximum=1
    )
    frame_crop_max_area: float = setting(
        1.0, "Largest share of the area that a window of a frame covers.", unit="share", above=0, maximum=1
    )
    color_jitter: float = setting(
        0.0, "Strength of random changes of brightness, contrast and channel gains; 0: off.", minimum=0
    )
    pair_hue: float = setting(
        0.0,
        "Largest random hue shift in training, the same for a video and its image; 0: off.",
        unit="share of 180°",
        minimum=0,
        maximum=1,
    )
    cut_tail: bool = setting(
        True, "In training, keep with probability 1/2 only the first n frames, n drawn from 1 to `num_frames`."
    )
    crop_around_box: bool = setting(
        False,
        "In training, a frame's window contains the data set's box of the product; needs `frame_crop_min_area` < 1.",
    )
    boxed_frames: bool = setting(
        False, "In training, choose only frames in which the data set has a box of the product, if a clip has any."
    )
    random_frames: bool = setting(False, "In training, choose frames at random instead of evenly.")
    train_boxes: str = setting(
        "", "File of boxes for the training frames, as `rice detect` writes it; empty: the data set's boxes."
    )
    query_boxes: str = setting(
        "", "File of boxes for the queries' frames, as `rice detect` writes it; empty: the data set's boxes.", free=True
    )
    box_min_score: float = setting(
        0.5,
        "Boxes with a lower score in `train_boxes` and `query_boxes` are ignored.",
        minimum=0,
        maximum=1,
    )
    texts: str = setting(
        "",
        'Folder of the embeddings of titles and speech that `rice embed-text` wrote, for `model.text` "embeddings".',
        free=True,
    )
    teacher: str = setting(
        "",
        "Folder of a teacher's embeddings of the training data: `images.parquet` by the ids of images, and optionally "
        "`videos.parquet` by those of clips. Read where `loss.distill_weight` or `loss.distill_direct_weight` is set.",
    )
    device_resize_height: int = setting(
        0,
        "The device crops and resizes pictures up to this height and `device_resize_width`, so that the host only "
        "decodes; the host resizes larger pictures, and all pictures if both are 0.",
        unit="pixels",
        minimum=0,
        free=True,
    )
    device_resize_width: int = setting(
        0, "Largest width of the pictures that the device crops and resizes.", unit="pixels", minimum=0, free=True
    )
    num_threads: int = setting(
        16,
        "Decoding threads of a process, which share each batch. About 8 are useful if the device resizes, 24 if the "
        "host does.",
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputConfig(DataConfig):
    """The data settings, and the settings of the model and the run that concern pictures (`Config.input`)."""

    image_size: int  # pixels
    patch_size: int  # pixels
    ipd: str
    ipd_use: str
    ipd_margin: float  # share of a box's longer side
    num_boxes: int  # of a frame
    seed: int
    text: str = "off"
    text_dim: int = 0  # of the embeddings in `texts`
    tokenizer: str = ""  # folder of its files
    text_context: int = 0  # tokens
    teacher_dim: int = 0  # of the embeddings in `teacher`; 0 = there is no teacher
