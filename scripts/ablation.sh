#!/usr/bin/env bash
# What PMD, PFR and IPD add to ICL: trains each on the sample shop with three seeds and prints the mean and spread of
# rank-k on products never seen. A run takes 4 minutes on two cores: two small frames of a clip make room for more steps.
# PMD is given 15 negatives instead of the paper's 3: the 3 hardest alone teach it next to nothing here (README). IPD by
# a detector needs what scripts/detectors.sh leaves, and is left out without.
#
#   scripts/ablation.sh [--config.x.y=z …]      the same settings for all; SEEDS="0 1 2" chooses the seeds
set -euo pipefail
source "$(dirname "$0")/setup.sh"
source scripts/sample.sh
out=runs/ablation

train() { # NAME SEED SETTINGS…
    python -m rice_jax.main --config=configs/sample.py --workdir="$out/$1-$2" --config.seed="$2" \
        --config.data.data_dir="$built" --config.model.init_from="$encoder" --config.train.total_steps=200 \
        --config.data.num_frames=2 --config.model.image_size=96 --config.data.resize=108 \
        --config.loss.num_negatives=15 "${@:3}"
}

all=(--config.loss.pmd_weight=1 --config.loss.pfr_weight=1 --config.eval.rerank=30)
for seed in ${SEEDS:-0 1 2}; do
    prepare_sample "$seed"
    train icl "$seed" --config.loss.pmd_weight=0 "$@"
    train pmd "$seed" --config.loss.pmd_weight=1 --config.loss.pfr_weight=0 --config.eval.rerank=30 "$@"
    train pfr "$seed" "${all[@]}" "$@"
    found=$(ls -d runs/detectors/clip-"$seed"/detections-* 2>/dev/null | tail -1) || true  # none is no error
    for use in mask crop; do
        train boxes_$use "$seed" "${all[@]}" --config.model.ipd=boxes --config.model.ipd_use=$use "$@"
        if [ -e "$found/lpr4m-query.jsonl" ]; then
            train detector_$use "$seed" "${all[@]}" --config.model.ipd=detector --config.model.ipd_use=$use \
                --config.data.train_boxes="$found/lpr4m-train.jsonl" \
                --config.data.query_boxes="$found/lpr4m-query.jsonl" "$@"
        fi
    done
done
python scripts/ablation_table.py "$out"
