#!/usr/bin/env bash
# Trains RICE and the methods that its paper compares it with on the sample shop, and prints rank-k on 1,600 clips of
# products that are not trained on, with paired intervals. All rows (configs/sample_baselines.py) see the same clips for
# as many steps, with three seeds. A finished run is kept, and a killed one continues; meanwhile
# `python scripts/baselines_table.py runs/baselines` prints what is there. A run of ICL takes 2.5 minutes of CPU time.
#
#   scripts/baselines.sh [--config.x.y=z …]      settings apply to all runs; SEEDS="0 1 2" sets the seeds
set -euo pipefail
source "$(dirname "$0")/setup.sh"
source scripts/sample.sh
out=runs/baselines test=data/built/baselines-test

prepare_data() { # the sample shop's training clips with 40 others, and 16 clips of each of 100 other products for $test
    local raw=data/raw/baselines
    prepare_sample 0
    if [ ! -e "$raw/complete" ]; then
        rm -rf "$raw"
        python data/sample/simulate.py --products data/sample --out "$raw" --seed 7 --categories --train_products 1 \
            --test_clips_per_product 16
        touch "$raw/complete"
    fi
    python data/build.py lpr4m --raw_dir data/raw/sample-0/train --data_dir data/built/baselines \
        --configs train,query,gallery
    python data/build.py lpr4m --raw_dir "$raw" --data_dir "$test" --configs query,gallery
}

is_done() { # WORKDIR
    compgen -G "$1/eval-*/report.html" >/dev/null # it is written last
}

run() { # ROW WORKDIR FLAGS…
    python -m rice_jax.main --config="configs/sample_baselines.py:$1" --workdir="$2" "${@:3}"
}

require_same_settings "$out" "$@"
prepare_data
shipped=(icl "$out/shipped" --mode=eval "$@" --config.data.data_dir="$test" --config.eval.pixels=True)
[ -e "$out/shipped/report.html" ] || run "${shipped[@]}"
for seed in ${SEEDS:-0 1 2}; do # the outer loop, so that tables of few seeds have all rows
    for row in icl all timesformer swin sgmn seam nvan fashionnet asymnet; do
        workdir="$out/$row-$seed"
        is_done "$workdir" && continue
        run $row "$workdir" --config.seed="$seed" "$@"
        run $row "$workdir" --config.seed="$seed" "$@" --mode=eval --config.data.data_dir="$test"
    done
done
python scripts/baselines_table.py "$out"
