"""scripts/decoder_study.py: what is counted, by hand, and a study of a tiny shop from its beginning to its end."""

import re

import numpy as np

from scripts import decoder_study
from scripts.decoder_study import Encoded, Ranked, gallery_of
from tests.fixtures import SIZES


def test_hits_are_of_truths_that_are_first_alone():
    scores = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    ranked = Ranked(scores, scores, np.array([0, 0, 0]))
    assert ranked.hits(scores).tolist() == [True, False, False]


def test_both_scores_have_a_weight_that_other_products_tell():
    rng = np.random.default_rng(0)
    truths = np.arange(40) % 10
    is_truth = np.arange(10) == truths[:, None]
    known, noise = is_truth + 0.4 * rng.normal(size=is_truth.shape), rng.normal(size=is_truth.shape)
    right, wrong = Ranked(known, noise, truths), Ranked(noise, known, truths)
    assert right.hits(right.both()).mean() > 0.8 > right.hits(noise).mean()
    assert np.abs(wrong.both() - known).max() < 0.5 * np.abs(noise).max(), "noise counts for little"


def test_a_gallery_of_training_pairs_has_the_first_image_of_each_product():
    products = np.array([7, 3, 7, 9, 3])
    numbers = np.arange(5.0)
    found = gallery_of(Encoded(numbers, numbers, numbers, numbers, np.ones((5, 1), bool), products), 2)
    assert found.images.tolist() == found.image_tokens.tolist() == [1, 0], "products 3 and 7"
    assert found.clips.tolist() == [0, 1, 2, 4] and found.products.tolist() == [1, 0, 1, 0]


def test_a_study(reference, shop, capsys):
    run, _ = reference
    settings = [f"--config.{name}={value}" for name, value in SIZES.items()]
    decoder_study.main(
        [
            f"--validation={shop}",
            "--products=8,11",
            "--negatives=2 hardest,2 random",
            "--steps=4",
            "--every=2",
            "--epochs=3",
            "--seeds=0,1",
            *(own for own in settings if "total_steps" not in own),
            "--config.data.num_frames=2",
            "--config.optimizer.warmup_steps=1",
            f"--config.data.data_dir={shop}",
            f"--config.model.init_from={run}",
        ]
    )
    output = capsys.readouterr().out
    curves = re.findall(r"\| (\d+) \| (2 \w+) \| (training|validation) \| ([\d.]+) \| ([\d.]+) \|", output)
    assert [curve[:2] for curve in curves[::2]] == [
        ("8", "2 hardest"),
        ("8", "2 random"),
        ("11", "2 hardest"),
        ("11", "2 random"),
    ]
    assert all(0 <= float(share) <= 100 for curve in curves for share in curve[3:])
    assert len(re.findall(r"[+-][\d.]+ \([+-][\d.]+ to [+-][\d.]+\)", output)) == 8
    assert "rank-1 by the embedding: " in output
