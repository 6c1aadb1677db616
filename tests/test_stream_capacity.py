import json

import numpy as np
import pytest

from scripts.benchmarks.stream_capacity import Costs, largest, main, simulate

ALONE = Costs(frame=0.01, encode={1: 0.04}, accelerated=False)  # 20 frames a second
TOGETHER = Costs(frame=0.01, encode={1: 0.04, 4: 0.04}, accelerated=False)


def test_a_frame_that_meets_no_other_waits_for_its_own_costs_alone():
    load = simulate(ALONE, 1)
    np.testing.assert_allclose(load.latencies, 0.05)
    assert load.busy == pytest.approx(0.05, rel=1e-6) and load.frames_a_batch == 1


def test_streams_wait_for_each_other_within_a_second_and_an_overloaded_machine_falls_behind():
    load = simulate(ALONE, 20)
    assert load.busy == pytest.approx(1, abs=0.02) and 0.05 < load.p99 < 1
    assert largest(ALONE, 1.0) == 20
    assert simulate(ALONE, 25).latencies[-1] > 4, "each second, five frames more are left"


def test_batches_carry_more_streams_and_no_latency_is_below_that_of_one_frame():
    assert largest(TOGETHER, 1.0) == 50, "four frames in 80 ms"
    assert largest(TOGETHER, 0.049) == 0
    assert 0 < largest(TOGETHER, 0.1) < 50


def test_an_accelerator_encodes_while_the_cores_decode():
    accelerated = TOGETHER._replace(accelerated=True)
    assert largest(accelerated, 1.0) == 100
    np.testing.assert_allclose(simulate(accelerated, 1).latencies, 0.05, err_msg="a frame has both behind it")
    assert largest(accelerated, 0.049) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "FileNotFoundError: .*found no index; make one"), (["--streams=0"], "2"), (["--seconds=0"], "2")],
)
def test_what_cannot_be_measured_is_told_in_one_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match=message) as ended:
        main([f"--index={tmp_path}", *arguments])
    assert "\n" not in str(ended.value)
    if arguments:
        assert "expected --streams and --rounds of 1 or more, and --seconds above 0" in capsys.readouterr().err


def test_what_was_simulated_is_measured_too(live_shop, capsys):
    main([f"--index={live_shop.directory}", "--streams=1000", "--rounds=1", "--seconds=1"])
    costs, about, header, *cells, result = capsys.readouterr().out.splitlines()
    assert costs.startswith("a frame takes ") and "images 8" in about and "p99 limit ms" in header
    found = json.loads(result)["rows"]
    assert len(cells) == len(found) == 3 and found[-1]["streams"] > 0
    for row in found:
        if streams := row["streams"]:
            assert streams * row["machines"] >= 1000 > streams * (row["machines"] - 1)
            assert row["median_ms"] <= row["p99_ms"] <= row["p99_limit_ms"]
            assert 0 < row["measured_median_ms"] <= row["measured_p99_ms"]
