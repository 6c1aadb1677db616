# Sourced after setup.sh: makes what a run on the sample shop starts from. What is complete is left alone, so a script that
# was killed goes on where it was.

encoder=weights/sample_encoder

# prepare_sample SEED: data sets in $built, the shipped encoder's checkpoint in $encoder.
# Trained on: a clip each of the training products and of four variants of each. Asked for: the products never seen.
prepare_sample() {
    local seed=$1 raw=data/raw/sample-$1 simulate="python data/sample/simulate.py --seed $1"
    built=data/built/sample-$1
    if [ ! -e "$raw/complete" ]; then
        rm -rf "$raw"
        python data/sample/variants.py --products data/sample --out "$raw/variants" --variants 4 --seed "$seed"
        $simulate --products "$raw/variants" --out "$raw/train" --clips_per_product 1 --max_frames 12 \
            --test_products 20 --test_clips_per_product 1
        $simulate --products data/sample --out "$raw/test" --categories --train_products 1
        touch "$raw/complete"
    fi
    python data/build.py lpr4m --raw_dir "$raw/train" --data_dir "$built" --configs train
    python data/build.py lpr4m --raw_dir "$raw/test" --data_dir "$built" --configs query,gallery
    if [ ! -d "$encoder" ]; then
        python -m rice_jax.convert.clip data/sample/encoder "$encoder"
    fi
}

# prepare_detection SEED: after prepare_sample, the data sets of a detector too.
prepare_detection() {
    python data/build.py lpr4m --raw_dir "data/raw/sample-$1/train" --data_dir "$built" --configs detection_train
    python data/build.py lpr4m --raw_dir "data/raw/sample-$1/test" --data_dir "$built" --configs detection_test
}
# XLA leaves the second core half idle with such small matrices; two devices of one core each train 1.6 times as fast.
export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-2}
