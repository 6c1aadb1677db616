#!/usr/bin/env bash
# Runs the demo with three seeds, evaluates the shipped encoder on the same queries, and prints the README's table, with
# the difference that the training makes. A finished run is kept, and a killed one continues.
#
#   scripts/demo_table.sh      SEEDS="0 1 2" sets the seeds
set -euo pipefail
source "$(dirname "$0")/setup.sh"
source scripts/sample.sh
for seed in ${SEEDS:=0 1 2}; do # before the first training
    require_same_settings "runs/demo-$seed"
done
for seed in $SEEDS; do
    [ -e "runs/demo-$seed/report.html" ] || scripts/demo.sh --seed="$seed"
    prepare_sample "$seed"
    # The demo keeps its last rankings only.
    [ -e "runs/start-$seed/report.html" ] || python -m rice_jax.main --config=configs/sample_icl.py --mode=eval \
        --workdir="runs/start-$seed" --config.seed="$seed" --config.data.data_dir="$built" \
        --config.model.init_from="$encoder"
done
python scripts/demo_table.py runs $SEEDS
