"""COPE and RICE (ICL) on a small ROPE of the sample's products, in short runs that can be compared.

    scripts/cope_table.sh

All rows see the same number of products, as pictures of 96 px and four frames of a video, and start from the shipped
encoder. COPE's messages between frames, blocks over frames, heads, class matrix, and text tower start from fresh
weights. docs/cope.md has the scores. Hardware: 2 CPU cores.
"""

from rice_jax.config import load_config

ROWS = ("icl", "cope", "cope_text", "cope_all_text")


def get_config(row: str = "cope"):
    """Settings of a row: RICE (ICL), COPE without text, with titles of pages, and with texts in all domains."""
    if row not in ROWS:
        raise ValueError(f"row {row!r}: expected one of {', '.join(ROWS)}")
    config = load_config("sample_icl")
    config.data.data_dir = "data/built/cope"
    config.data.train = ""
    config.data.query = ""
    config.data.gallery = ""
    config.data.domains = "rope/pages,rope/videos,rope/lives"
    config.data.resize = 108
    config.data.crop_around_box = False
    config.model.image_size = 96
    config.train.total_steps = 120
    config.train.checkpoint_interval_steps = 30
    config.eval.num_frames = 4
    config.eval.batch_size = 64
    config.eval.pixels = False
    if row == "icl":
        config.task = "domains"
        return config

    config.task = "cope"
    config.data.random_frames = False
    config.model.architecture = "xclip"
    config.model.num_frames = 4
    config.model.integration_heads = 2
    config.optimizer.kind = "adamw"
    config.optimizer.between_frames = "new"
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 5.0
    # With 1 the classification is nine tenths of the loss, and so short a run learns little else (docs/cope.md).
    config.loss.cope.class_weight = 0.1
    if row != "cope":
        config.model.text = "tower"
        config.model.text_init_from = "weights/sample_text"
        config.optimizer.text_learning_rate = 1e-3
    if row == "cope_all_text":
        config.model.cope.text_domains = "page,video,live"
    return config
