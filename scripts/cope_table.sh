#!/usr/bin/env bash
# Trains COPE without text, with titles, and with all texts, and beside it RICE (ICL), on a small ROPE of the sample's
# products, and prints what they find between pages, short videos and live clips of products that are not trained on:
# 1,722 to 1,917 queries a pair of domains, with paired intervals. All rows (configs/sample_cope.py) see as many
# products, with three seeds. A finished run is kept, and a killed one continues; meanwhile
# `python scripts/cope_table.py runs/cope` prints what is there.
#
#   scripts/cope_table.sh [--config.x.y=z …]      settings apply to all runs; SEEDS="0 1 2" sets the seeds
set -euo pipefail
source "$(dirname "$0")/setup.sh"
source scripts/sample.sh
out=runs/cope built=data/built/cope test=data/built/cope-test raw=data/raw/cope tower=weights/sample_text

is_simulated() { # DIRECTORY
    [ -e "$1/attribution.csv" ] && [ ! -e "$1/unfinished" ]
}

prepare_data() { # items of the training products and two variants of each in $built; of 100 others in $test
    if [ ! -e "$raw/complete" ]; then
        [ -e "$raw/variants/complete" ] || {
            rm -rf "$raw/variants"
            python data/sample/variants.py --products data/sample --out "$raw/variants" --variants 2
            touch "$raw/variants/complete"
        }
        is_simulated "$raw/train" || python data/sample/rope.py --products "$raw/variants" --out "$raw/train" --train_items 2 --test_products 20 \
            --test_items 2
        is_simulated "$raw/test" ||
            python data/sample/rope.py --products data/sample --out "$raw/test" --train_products 1
        touch "$raw/complete"
    fi
    python data/build.py rope --raw_dir "$raw/train" --data_dir "$built"
    python data/build.py rope --raw_dir "$raw/test" --data_dir "$test"
    [ -d "$encoder" ] || python -m rice_jax.convert.clip data/sample/encoder "$encoder"
    [ -d "$tower" ] || python scripts/sample_text.py "$raw/train" "$tower"
}

run() { # ROW WORKDIR FLAGS…
    python -m rice_jax.main --config="configs/sample_cope.py:$1" --workdir="$2" "${@:3}"
}

is_done() { # WORKDIR
    compgen -G "$1/eval-*/report.html" >/dev/null # it is written last
}

require_same_settings "$out" "$@"
prepare_data
shipped=(icl "$out/shipped" --mode=eval "$@" --config.data.data_dir="$test" --config.eval.pixels=True)
[ -e "$out/shipped/report.html" ] || run "${shipped[@]}"
for seed in ${SEEDS:-0 1 2}; do # the outer loop, so that tables of few seeds have all rows
    for row in icl cope cope_text cope_all_text; do
        workdir="$out/$row-$seed"
        is_done "$workdir" && continue
        run $row "$workdir" --config.seed="$seed" "$@"
        run $row "$workdir" --config.seed="$seed" "$@" --mode=eval --config.data.data_dir="$test"
    done
done
python scripts/cope_table.py "$out"
