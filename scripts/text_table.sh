#!/usr/bin/env bash
# Measures what texts add on the sample shop: without texts, in PMD, in the embedding, and in both; for queries with and
# without speech, and for titles that 0, 50, and 90 % of the gallery's images lack. A small text tower that is trained on
# the sample's own sentences stands in for Chinese-CLIP's. All runs have the same 960 queries of products that are not
# trained on. Finished steps are kept, so a script that was killed continues where it stopped.
#
#   scripts/text_table.sh [--config.x.y=z …]      settings apply to all runs; SEEDS="0 1 2" sets the seeds
set -euo pipefail
source "$(dirname "$0")/setup.sh"
source scripts/sample.sh
out=runs/texts raw=data/raw/texts
further=("$@")

prepare_data() { # the sample shop's training clips, and 16 clips of each of 60 other products
    if [ ! -e "$raw/complete" ]; then
        rm -rf "$raw"
        python data/sample/simulate.py --products data/sample --out "$raw" --seed 7 --categories --train_products 1 \
            --test_clips_per_product "${CLIPS:-16}"
        touch "$raw/complete"
    fi
    python data/build.py lpr4m --raw_dir data/raw/sample-0/train --data_dir "$1" --configs train
    python data/build.py lpr4m --raw_dir "$raw" --data_dir "$1" --configs query,gallery
}

run() { # MODE WORKDIR SETTINGS…
    [ -e "$2/finished" ] && return
    python -m rice_jax.main --mode="$1" --config=configs/sample.py --workdir="$2" --config.seed="$seed" \
        --config.data.data_dir="$built" --config.eval.pixels=False "${@:3}" "${further[@]}"
    touch "$2/finished"
}

train() { # NAME SETTINGS…
    run train "$out/$1-$seed" --config.model.init_from="$encoder" "${@:2}"
}

evaluate() { # ROW RUN SETTINGS…
    run eval "$out/$1-$seed" --config.model.init_from="$out/$2-$seed" "${@:3}"
}

prepare_sample 0
built=data/built/texts
prepare_data "$built"
pmd=(--config.loss.pmd_weight=1 --config.loss.pfr_weight=0 --config.loss.num_negatives=15)
for seed in ${SEEDS:-0 1 2}; do
    start=$out/start-$seed texts=$out/embeddings-$seed
    [ -d "$start" ] || python scripts/text_tower.py make "$built" "$start" --seed="$seed"
    train tower --config.model.text=tower --config.model.text_init_from="$start" --config.loss.title_speech_weight=1 \
        --config.optimizer.text_learning_rate=1e-3
    python -m rice_jax.commands.embed_text "$out/tower-$seed" "$texts" --data_dir="$built" \
        --sets=lpr4m/train,lpr4m/query,lpr4m/gallery
    read=(--config.model.text=embeddings --config.model.text_dim=128)
    train icl
    train pmd "${pmd[@]}"
    train pmd_text "${pmd[@]}" "${read[@]}" --config.data.texts="$texts"
    evaluate none icl
    evaluate none_pmd pmd "${pmd[@]}" --config.eval.rerank=30
    for percent in 0 50 90; do
        left=$out/embeddings-$seed-$percent
        [ -d "$left" ] || python scripts/text_tower.py drop "$texts" "$left" --percent="$percent"
        own=("${read[@]}" --config.data.texts="$left")
        evaluate "in_pmd_$percent" pmd_text "${pmd[@]}" "${own[@]}" --config.eval.rerank=30
        evaluate "in_embedding_$percent" icl "${own[@]}" --config.eval.text_weight=fit
        evaluate "in_both_$percent" pmd_text "${pmd[@]}" "${own[@]}" --config.eval.rerank=30 \
            --config.eval.text_weight=fit
    done
done
python scripts/text_table.py "$out"
