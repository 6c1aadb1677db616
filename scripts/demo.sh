#!/usr/bin/env bash
# Goes from a bare clone to a table of results: simulates a shop's livestreams, builds the data sets, trains RICE from
# the shipped encoder, and evaluates on products that it has not seen.
#
#   scripts/demo.sh [--seed=0] [--config.x.y=z …]      the seed is used for the simulation and for the training
set -euo pipefail
seed=0
if [[ ${1:-} == --seed=* ]]; then
    seed=${1#--seed=}
    shift
fi
source "$(dirname "$0")/setup.sh"
source scripts/sample.sh
require_same_settings "runs/demo-$seed" "$@"
prepare_sample "$seed"
python -m rice_jax.main --config=configs/sample.py --workdir="runs/demo-$seed" --config.seed="$seed" \
    --config.data.data_dir="$built" --config.model.init_from="$encoder" "$@"
