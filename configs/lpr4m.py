"""RICE (ICL, PMD, PFR) on all of LPR4M, from CLIP ViT-B/32.

    python -m rice_jax.main --config=configs/lpr4m.py --workdir=runs/lpr4m --config.model.init_from=weights/clip_b32

Hardware: the reference used 4 GPUs with 96 pairs each. Score: not yet run.
"""

from rice_jax.config import default_config


def get_config():
    config = default_config()
    config.data.train = "lpr4m/train"
    config.data.query = "lpr4m/query"
    config.data.gallery = "lpr4m/gallery"
    config.data.batch_size = 384
    # Nearly all frames and images fit: their shorter side is 256.
    config.data.device_resize_height = 455
    config.data.device_resize_width = 256
    return config
