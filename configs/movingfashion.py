"""RICE on MovingFashion, from CLIP ViT-B/32; evaluates one gallery and its regular and hard videos.

    python -m rice_jax.main --config=configs/movingfashion.py:LOSSES --workdir=runs/movingfashion-LOSSES \
        --config.model.init_from=weights/clip_b32

| LOSSES | trains | published rank-1, by ICL's embeddings |
|---|---|---|
| `icl` | ICL | 74.76 |
| `pmd` | ICL, PMD | 76.87 |
| `full` (default) | ICL, PMD, PFR | 77.92 |

5,000 steps of 384 pairs (the reference's 4 GPUs with 96 pairs each) are 142 epochs of the 13,504 training videos, at
learning rates of 1e-6 for the encoder and 1e-4 for new modules. Hardware: any. Score: not yet run. The data has 1,341
gallery images and 1,329 queries, one of which has no video. Some published results have galleries of other sizes;
compare only results on galleries of the size that the results table prints.
"""

from rice_jax.config import load_config


def get_config(losses: str = "full"):
    """Settings for the losses "icl", "pmd", or "full"."""
    if losses not in ("icl", "pmd", "full"):
        raise ValueError(f"losses {losses!r}: expected icl, pmd or full; the data set has no boxes")
    config = load_config("lpr750k", losses)
    config.data.train = "movingfashion/train"
    config.data.query = "movingfashion/query"
    config.data.gallery = "movingfashion/gallery"
    config.optimizer.beta2 = 0.98
    return config
