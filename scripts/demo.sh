#!/usr/bin/env bash
# From a bare clone to a table in about ten minutes on two cores: simulates a shop's livestreams, builds the data sets,
# trains RICE from the shipped encoder, and evaluates on products that it has never seen.
#
#   scripts/demo.sh [--seed=0] [--config.x.y=z …]      the seed is that of the simulation and of the training
set -euo pipefail
seed=0
if [[ ${1:-} == --seed=* ]]; then
    seed=${1#--seed=}
    shift
fi
source "$(dirname "$0")/setup.sh"
# XLA leaves the second core half idle with such small matrices; two devices of one core each train 1.6 times as fast.
export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-2}

raw=data/raw/sample-$seed
built=data/built/sample-$seed
encoder=weights/sample_encoder

# What is complete is left alone, so a demo that was killed goes on where it was.
if [ ! -e "$raw/complete" ]; then
    rm -rf "$raw"
    python data/sample/simulate.py --products data/sample --out "$raw" --seed "$seed" --clips_per_product 3 --categories
    touch "$raw/complete"
fi
python data/build.py lpr4m --raw_dir "$raw" --data_dir "$built"
if [ ! -d "$encoder" ]; then
    python -m rice_jax.convert.clip data/sample/encoder "$encoder"
fi
python -m rice_jax.main --config=configs/sample.py --workdir="runs/demo-$seed" --config.seed="$seed" \
    --config.data.data_dir="$built" --config.model.init_from="$encoder" "$@"
