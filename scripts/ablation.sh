#!/usr/bin/env bash
# Measures what weights of the frames, PMD, PFR, IPD, and ranking by the decoder add to ICL: trains each combination on
# the sample shop with three seeds and prints rank-k on 2,400 clips of 100 products that are not trained on, with paired
# intervals. IPD with a detector needs scripts/detectors.sh first and is left out without it. A finished run is kept,
# and a killed one continues; meanwhile `python scripts/ablation_table.py runs/ablation --data_dir=data/built/ablation`
# prints what is there.
#
#   scripts/ablation.sh [--quick] [--config.x.y=z …]      settings apply to all runs; SEEDS="0 1 2" sets the seeds.
#                                                         --quick: one seed, 40 steps, 4 clips of each product
set -euo pipefail
seeds=${SEEDS:-0 1 2} clips=24 steps=100 name=ablation
if [[ ${1:-} == --quick ]]; then
    seeds=${SEEDS:-0} clips=4 steps=40 name=ablation-quick
    shift
fi
source "$(dirname "$0")/setup.sh"
source scripts/sample.sh
out=runs/$name raw=data/raw/$name test=data/built/$name
settings=(--config.data.num_frames=2 --config.eval.num_frames=5 --config.eval.pixels=False "$@")

prepare_data() { # the sample shop's training clips, and clips of 100 other products, in $test
    if [ ! -e "$raw/complete" ]; then
        rm -rf "$raw"
        python data/sample/simulate.py --products data/sample --out "$raw" --seed 7 --categories --train_products 1 \
            --test_clips_per_product "$clips"
        touch "$raw/complete"
    fi
    python data/build.py lpr4m --raw_dir "$raw" --data_dir "$test" --configs query,gallery
}

run() { # WORKDIR SETTINGS…
    python -m rice_jax.main --config=configs/sample_icl.py --workdir="$1" --config.model.init_from="$encoder" \
        --config.train.total_steps="$steps" "${settings[@]}" "${@:2}"
}

measure() { # METHOD SETTINGS…: trains with the current seed, and evaluates
    local workdir=$out/$1-$seed
    compgen -G "$workdir/eval-*/report.html" >/dev/null && return # it is written last
    # The training's own evaluations are of no use here.
    run "$workdir" --config.seed="$seed" --config.data.data_dir="$built" "${@:2}" "${train_boxes[@]}" \
        --config.eval.rerank=0 --config.eval.num_frames=1
    run "$workdir" --config.seed="$seed" --mode=eval --config.data.data_dir="$test" "${@:2}" "${test_boxes[@]}"
}

detect() { # with the detector of the current seed, in the queries of $test
    [ -e "$detector/complete" ] && return
    rm -rf "$detector"
    cp -r "runs/detectors/clip-$seed" "$detector"
    rm -r "$detector"/detections-*/lpr4m-query* # those of other queries
    python -m rice_jax.main --config=configs/sample_detector.py:clip --workdir="$detector" --mode=detect \
        --config.seed="$seed" --config.model.init_from="$encoder" --config.data.data_dir="$test"
    touch "$detector/complete"
}

require_same_settings "$out" "$@"
prepare_data
prepare_sample 0
[ -e "$out/shipped/report.html" ] || run "$out/shipped" --mode=eval --config.data.data_dir="$test"
all=(--config.loss.pmd_weight=1 --config.loss.num_negatives=15 --config.eval.rerank=40)
for seed in $seeds; do # the outer loop, so that tables of few seeds have all methods
    prepare_sample "$seed"
    train_boxes=() test_boxes=()
    measure icl
    measure weights --config.model.aggregation.kind=attention --config.model.aggregation.attention.pooling=direction \
        --config.optimizer.new_learning_rate=1e-2
    measure pmd "${all[@]}" --config.loss.pfr_weight=0
    measure pfr "${all[@]}"
    for use in mask crop; do
        measure boxes_$use "${all[@]}" --config.model.ipd=boxes --config.model.ipd_use=$use
    done
    [ -d "runs/detectors/clip-$seed" ] || continue
    detector=$out/detector-$seed
    detect
    train_boxes=(--config.data.train_boxes="$(ls "$detector"/detections-*/lpr4m-train.jsonl)"
        --config.data.query_boxes="$(ls runs/detectors/clip-"$seed"/detections-*/lpr4m-query.jsonl)")
    test_boxes=("${train_boxes[0]}" --config.data.query_boxes="$(ls "$detector"/detections-*/lpr4m-query.jsonl)")
    for use in mask crop; do
        measure detector_$use "${all[@]}" --config.model.ipd=detector --config.model.ipd_use=$use
    done
done
python scripts/ablation_table.py "$out" --data_dir="$test"
