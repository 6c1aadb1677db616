"""RICE (ICL) on ROPE, from CLIP ViT-B/32: pairs of product pages, short videos and live clips of the same product.

    python -m rice_jax.main --config=configs/rope.py --workdir=runs/rope --config.model.init_from=weights/clip_b32

An epoch is 187,431 products. For each product two domains are drawn, then a picture of an item in one of them and the
frames of an item in the other. The evaluation covers the six ordered pairs of domains, by retrieval and by one-shot
classification. Titles and speech are not used. Hardware: not yet run. Score: not yet run.
"""

from rice_jax.config import default_config


def get_config():
    config = default_config()
    config.task = "domains"
    config.data.domains = "rope/pages,rope/videos,rope/lives"
    config.data.batch_size = 384
    config.loss.pmd_weight = 0.0
    return config
