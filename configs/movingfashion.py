"""RICE (ICL, PMD, PFR) on MovingFashion, from CLIP ViT-B/32; evaluates one gallery and its regular and hard videos.

    python -m rice_jax.main --config=configs/movingfashion.py --workdir=runs/movingfashion \
        --config.model.init_from=weights/clip_b32

Hardware: the reference used 4 GPUs with 96 pairs each. Score: not yet run. Published rank-1 by ICL's embeddings: 74.76
trained with ICL alone (here `--config.loss.pmd_weight=0`), 76.87 with PMD (`--config.loss.pfr_weight=0`) and 77.92 with
PMD and PFR. The data has 1,341 gallery images and 1,329 queries, one of which has no video. Some published results have
galleries of other sizes; compare only results on galleries of the size that the results table prints.
"""

from rice_jax.config import default_config


def get_config():
    config = default_config()
    config.data.train = "movingfashion/train"
    config.data.query = "movingfashion/query"
    config.data.gallery = "movingfashion/gallery"
    config.data.batch_size = 384
    config.optimizer.beta2 = 0.98
    return config
