#!/usr/bin/env bash
# Measures what texts add on the sample shop: without texts, in PMD, in the embedding, and in both; for queries with and
# without speech, and for titles that 0, 50, and 90 % of the gallery's images lack. A small text tower that is trained on
# the sample's own sentences stands in for Chinese-CLIP's. All runs have the same 1,000 queries of products that are not
# trained on. A finished run is kept, and a killed one continues.
#
#   scripts/text_table.sh [--config.x.y=z …]      settings apply to all runs; SEEDS="0 1 2" sets the seeds, CLIPS=10 how
#                                                 many queries a product has
set -euo pipefail
source "$(dirname "$0")/setup.sh"
source scripts/sample.sh
out=runs/texts-${CLIPS:=10} raw=data/raw/texts-$CLIPS test=data/built/texts-$CLIPS
further=(--config.eval.pixels=False "$@")

prepare_data() { # the sample shop's training clips, and clips of 100 other products, all with titles, in $test
    if [ ! -e "$raw/complete" ]; then
        rm -rf "$raw"
        python data/sample/simulate.py --products data/sample --out "$raw" --seed 7 --categories --all_titles \
            --train_products 1 --test_clips_per_product "$CLIPS"
        touch "$raw/complete"
    fi
    python data/build.py lpr4m --raw_dir data/raw/sample-0/train --data_dir "$test" --configs train
    python data/build.py lpr4m --raw_dir "$raw" --data_dir "$test" --configs query,gallery
}

run() { # MODE WORKDIR SETTINGS…
    [ -e "$2/report.html" ] && return # it is written last
    python -m rice_jax.main --mode="$1" --config=configs/sample_icl.py --workdir="$2" --config.seed="$seed" "${@:3}" \
        "${further[@]}"
}

train() { # NAME SETTINGS…
    run train "$out/$1-$seed" --config.data.data_dir="$built" --config.model.init_from="$encoder" \
        --config.train.total_steps=100 --config.data.num_frames=2 \
        --config.eval.rerank=0 --config.eval.num_frames=1 "${@:2}" # its own evaluations are of no use here
}

evaluate() { # ROW RUN SETTINGS…
    run eval "$out/$1-$seed" --config.data.data_dir="$test" --config.model.init_from="$out/$2-$seed" \
        --config.eval.num_frames=5 --config.eval.rerank=10 "${@:3}"
}

require_same_settings "$out" "$@"
prepare_sample 0 # the trainings' own queries are its
prepare_data
pmd=(--config.loss.pmd_weight=1 --config.loss.pfr_weight=0 --config.loss.num_negatives=15)
for seed in ${SEEDS:-0 1 2}; do
    start=$out/start-$seed texts=$out/embeddings-$seed
    [ -d "$start" ] || python scripts/text_tower.py make "$test" "$start" --seed="$seed"
    train tower --config.model.text=tower --config.model.text_init_from="$start" --config.loss.title_speech_weight=1 \
        --config.optimizer.text_learning_rate=1e-3
    python -m rice_jax.commands.embed_text "$out/tower-$seed" "$texts" --data_dir="$test" \
        --sets=lpr4m/train,lpr4m/query,lpr4m/gallery
    read=(--config.model.text=embeddings --config.model.text_dim=128)
    train pmd "${pmd[@]}"
    train pmd_text "${pmd[@]}" "${read[@]}" --config.data.texts="$texts"
    evaluate none pmd "${pmd[@]}"
    for percent in 0 50 90; do
        left=$out/embeddings-$seed-$percent
        [ -d "$left" ] || python scripts/text_tower.py drop "$test" "$texts" "$left" --percent="$percent"
        own=("${pmd[@]}" "${read[@]}" --config.data.texts="$left")
        evaluate "in_pmd_$percent" pmd_text "${own[@]}"
        evaluate "in_both_$percent" pmd_text "${own[@]}" --config.eval.text_weight=fit
    done
done
python scripts/text_table.py "$out"
