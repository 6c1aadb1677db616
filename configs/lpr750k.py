"""RICE (ICL, PMD, PFR) on LPR4M's subset of 641,821 rows ("750K"), from CLIP ViT-B/32.

    python -m rice_jax.main --config=configs/lpr750k.py --workdir=runs/lpr750k --config.model.init_from=weights/clip_b32

Hardware: the reference used 4 GPUs with 96 pairs each. Score: not yet run. Published rank-1 by ICL's embeddings: 31.50
trained with ICL alone (here `--config.loss.pmd_weight=0`), 33.07 with PMD (`--config.loss.pfr_weight=0`), and 33.77
with PMD and PFR.
"""

from rice_jax.config import default_config


def get_config():
    config = default_config()
    config.data.train = "lpr4m/train_750k"
    config.data.query = "lpr4m/query_750k"
    config.data.gallery = "lpr4m/gallery_750k"
    config.data.batch_size = 384
    return config
