"""The script that follows a simulated stream with cuts."""

import json

from rice_jax.recognition import follow
from scripts import live_test
from tests.shop import write_mp4


def test_an_hour_is_summed_up(live_shop, tmp_path, monkeypatch, capsys):
    for name in ("TICK", "BACK_OFF"):
        monkeypatch.setattr(follow, name, getattr(follow, name))  # the script changes it
    film = write_mp4(tmp_path / "film.mp4", [live_shop.pictures[row] for row in (1, 10, 5)], 9)
    parts = [
        {"start": 9 * place, "end": 9 * place + 9, "product": name} for place, name in enumerate(["p1", None, "p5"])
    ]
    truth = tmp_path / "truth.jsonl"
    truth.write_text(json.dumps({"video": f"videos/{film.name}", "segments": parts}))
    live_test.main([str(film), f"--truth={truth}", f"--index={live_shop.directory}", "--hours=0.0195"])
    times, told, missed, *_ = capsys.readouterr().out.splitlines()
    assert (
        times.endswith("71 frames, 0 cuts")
        and told == "5 of 5 products reported, 0 that are not shown"
        and missed.endswith("[]")
    )
