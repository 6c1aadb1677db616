#!/usr/bin/env bash
# Trains both detectors on the sample shop with three seeds each, evaluates them and a baseline on products that are not
# trained on, and writes the multi-frame detector's boxes in the training and query sets for config.model.ipd=detector.
#
#   scripts/detectors.sh [--config.x.y=z …]      settings apply to all runs; SEEDS="0 1 2" sets the seeds
set -euo pipefail
source "$(dirname "$0")/setup.sh"
source scripts/sample.sh
out=runs/detectors

for seed in ${SEEDS:-0 1 2}; do
    prepare_sample "$seed"
    prepare_detection "$seed"
    for kind in frame clip; do
        run=(python -m rice_jax.main --config=configs/sample_detector.py:$kind --workdir="$out/$kind-$seed"
            --config.seed="$seed" --config.data.data_dir="$built" --config.model.init_from="$encoder" "$@")
        "${run[@]}"
    done
    "${run[@]}" --mode=detect --config.data.detect=lpr4m/train
    "${run[@]}" --mode=detect --config.data.detect=lpr4m/query --config.eval.draw_clips=12
done
