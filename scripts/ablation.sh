#!/usr/bin/env bash
# Measures what PMD, PFR and IPD add to ICL: trains each combination on the sample shop with three seeds and prints mean
# and spread of rank-k on products that are not trained on. A run takes 4 minutes on two cores, with two small frames a
# clip. PMD has 15 negatives instead of the paper's 3, from which it learns very little here (docs/results.md). IPD with
# a detector needs the boxes of scripts/detectors.sh and is skipped without them.
#
#   scripts/ablation.sh [--config.x.y=z …]      settings apply to all runs; SEEDS="0 1 2" sets the seeds
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

all=(--config.loss.pmd_weight=1 --config.loss.pfr_weight=1 --config.eval.rerank=40)
for seed in ${SEEDS:-0 1 2}; do
    prepare_sample "$seed"
    train icl "$seed" --config.loss.pmd_weight=0 "$@"
    train pmd "$seed" --config.loss.pmd_weight=1 --config.loss.pfr_weight=0 --config.eval.rerank=40 "$@"
    train pfr "$seed" "${all[@]}" "$@"
    found=$(ls -d runs/detectors/clip-"$seed"/detections-* 2>/dev/null | tail -1) || true  # there may be none
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
