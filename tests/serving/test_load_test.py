"""The load test finds wrong responses, and none on a server of the tiny shop."""

import json
import types

import pytest

from scripts import load_test
from scripts.load_test import Alone, Clip, Request, find_problem
from tests import programs
from tests.serving.serving import make_named_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_named_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def forked(monkeypatch):
    """The load test's server is forked."""
    popen = types.SimpleNamespace(PIPE=None, Popen=lambda command, **settings: programs.start(command))
    monkeypatch.setattr(load_test, "subprocess", popen)


def test_no_answer_is_wrong(shop, capsys, forked):
    load_test.main([f"--index={shop.directory}", "--requests=60", "--clients=4"])
    printed = capsys.readouterr()
    assert '"wrong": 0' in printed.out
    for kind in ("clip", "stream", "truncated", "50 megapixels", "unknown gallery"):
        assert kind in printed.out.splitlines()[0]
    stages = json.loads(printed.out.splitlines()[-1])["stages_ms"]
    assert list(stages)[-2:] == ["other", "in all"] and min(stages.values()) > 0


def test_wrong_answers_are_found(shop):
    alone, clip = Alone(shop.directory), Clip((1, 1, 1), "a")
    truth = alone.recognize(clip)
    products = [match._asdict() for match in truth.ranking[: load_test.TOP]]
    [part] = truth.timeline
    timeline = [{"start": part.start, "end": part.end, "product": part.product._asdict()}]
    asked = Request("clip", lambda client: None, 200, clip)

    def problem(**changed):
        return find_problem(asked, 200, {"products": products, "timeline": timeline} | changed, {clip: truth})

    assert problem() == ""
    other = products[0] | {"score": products[0]["score"] + 1e-3}
    stranger = products[0] | {"id": "p7", "gallery": "b"}
    for wrong in ([], products[:-1], [other, *products[1:]], [stranger, *products[1:]]):
        assert problem(products=wrong)
    for wrong in ([], [timeline[0] | {"end": 2.5}], [timeline[0] | {"product": None}]):
        assert "timeline" in problem(timeline=wrong)
    assert "503" in find_problem(asked, 503, {"detail": "full"}, {clip: truth})
    refused = Request("zero frames", lambda client: None, 400)
    assert find_problem(refused, 400, {"detail": "no frames"}, {}) == ""
    assert find_problem(refused, 400, {}, {}) and find_problem(refused, 500, {"detail": ""}, {})


def test_a_server_that_does_not_start_is_reported(tmp_path, forked):
    with pytest.raises(SystemExit, match="was not started"), load_test.serve(tmp_path):
        pass
