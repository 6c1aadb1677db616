"""RICE on LPR4M's subset of 641,821 rows ("750K"), from CLIP ViT-B/32, as the reference's config trains it.

    python -m rice_jax.main --config=configs/lpr750k.py:LOSSES --workdir=runs/lpr750k-LOSSES \
        --config.model.init_from=weights/clip_b32

| LOSSES | trains | published rank-1, by ICL's embeddings |
|---|---|---|
| `icl` | ICL | 31.50 |
| `pmd` | ICL, PMD | 33.07 |
| `full` (default) | ICL, PMD, PFR | 33.77 |
| `ipd` | the same on the patches that a detector finds | not known; the article credits IPD with +1.0 |

The model leaves out faults of the reference, of which four can change a score (docs/reference.md, section 9).
5,000 steps of 384 pairs (the reference's 4 GPUs with 96 pairs each) are 2.99 epochs, at learning rates of 1e-6 for the
encoder and 1e-4 for new modules. `ipd` reads the boxes of `configs/detector_clip.py`; run `rice detect` on
lpr4m/train_750k and on lpr4m/query_750k first. Hardware: any. Score: not yet run.
"""

from rice_jax.config import default_config

BOXES = "runs/detector_clip/detections-20000/lpr4m"  # where `rice detect` writes them


def get_config(losses: str = "full"):
    """Settings for the losses "icl", "pmd", "full", or "ipd"."""
    if losses not in ("icl", "pmd", "full", "ipd"):
        raise ValueError(f"losses {losses!r}: expected icl, pmd, full or ipd")
    config = default_config()
    config.data.train = "lpr4m/train_750k"
    config.data.query = "lpr4m/query_750k"
    config.data.gallery = "lpr4m/gallery_750k"
    config.data.batch_size = 384
    if losses == "icl":
        config.loss.pmd_weight = 0.0
    if losses == "pmd":
        config.loss.pfr_weight = 0.0
    if losses == "ipd":
        config.model.ipd = "detector"
        config.data.train_boxes = f"{BOXES}-train_750k.jsonl"
        config.data.query_boxes = f"{BOXES}-query_750k.jsonl"
    return config
