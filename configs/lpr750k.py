"""RICE (ICL) on LPR4M's subset of 641,821 rows ("750K"), from CLIP ViT-B/32.

    python -m rice_jax.main --config=configs/lpr750k.py --workdir=runs/lpr750k --config.model.init_from=weights/clip_b32

Hardware: the reference used 4 GPUs with 96 pairs each. Score: not yet run; published with ICL alone: rank-1 31.50.
"""

from rice_jax.config import default_config


def get_config():
    config = default_config()
    config.data.train = "lpr4m/train_750k"
    config.data.query = "lpr4m/query_750k"
    config.data.gallery = "lpr4m/gallery_750k"
    config.data.batch_size = 384
    return config
