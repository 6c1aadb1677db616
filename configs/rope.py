"""RICE (ICL) on ROPE, from CLIP ViT-B/32: product pages, short videos and live clips of a product are pairs.

    python -m rice_jax.main --config=configs/rope.py --workdir=runs/rope --config.model.init_from=weights/clip_b32

An epoch is 187,431 products; each draws two domains, a picture of an item of the one and the frames of an item of the
other. Evaluates the six ordered pairs of domains, by retrieval and by one-shot classification. There are titles and
speech too, which nothing reads. Hardware: not yet run. Score: not yet run.
"""

from rice_jax.config import default_config


def get_config():
    config = default_config()
    config.task = "domains"
    config.data.domains = "rope/pages,rope/videos,rope/lives"
    config.data.batch_size = 384
    config.loss.pmd_weight = 0.0
    return config
