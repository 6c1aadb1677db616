#!/usr/bin/env bash
# What PMD and PFR add to ICL: trains the three on the sample shop with three seeds each and prints the mean and spread of
# rank-k on products never seen. Nine runs of 100 steps, to stay under an hour on two cores; not yet run as a whole.
#
#   scripts/ablation.sh [--config.x.y=z …]      the same settings for all; SEEDS="0 1 2" chooses the seeds
set -euo pipefail
source "$(dirname "$0")/setup.sh"
source scripts/sample.sh
out=runs/ablation

train() { # NAME SEED SETTINGS…
    python -m rice_jax.main --config=configs/sample.py --workdir="$out/$1-$2" --config.seed="$2" \
        --config.data.data_dir="$built" --config.model.init_from="$encoder" --config.train.total_steps=100 "${@:3}"
}

for seed in ${SEEDS:-0 1 2}; do
    prepare_sample "$seed"
    train icl "$seed" --config.loss.pmd_weight=0 "$@"
    train pmd "$seed" --config.loss.pmd_weight=1 --config.loss.pfr_weight=0 --config.eval.rerank=30 "$@"
    train pfr "$seed" --config.loss.pmd_weight=1 --config.loss.pfr_weight=1 --config.eval.rerank=30 "$@"
done
python scripts/ablation_table.py "$out"
