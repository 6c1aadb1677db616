"""The files for deployment fit the program: its flags, metrics, and files."""

import configparser
import json
import re
import shlex
import shutil
import subprocess

import pytest

from rice_jax import serve
from rice_jax.serving.admission import Metrics
from rice_jax.serving.limits import Limits
from tests.fixtures import ROOT

DEPLOY = ROOT / "docs" / "deploy"


def flags_of(arguments):
    return [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]


def require_flags(arguments):
    known = serve._parser("rice serve")._option_string_actions
    assert flags_of(arguments) and set(flags_of(arguments)) <= known.keys()


@pytest.fixture(scope="module")
def compose():
    yaml = pytest.importorskip("yaml")
    return {name: yaml.safe_load((DEPLOY / name).read_text()) for name in ("compose.yaml", "compose.gpu.yaml")}


def test_the_image_starts_the_server():
    text = (DEPLOY / "Dockerfile").read_text()
    command = json.loads(re.search(r"^CMD (.*)$", text, re.M)[1])
    assert command[0] == "serve"
    require_flags(command)
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M):
        assert all((ROOT / source).exists() for source in sources.split())
    packaged = {f"!{name}" for name in re.findall(r"^COPY (\w+) ", text, re.M)}
    assert packaged <= set((DEPLOY / "Dockerfile.dockerignore").read_text().split())


def test_compose_starts_the_server_with_its_files(compose):
    services = compose["compose.yaml"]["services"]
    command = services["serve"]["command"]
    assert command[0] == "serve" and services["index"]["command"][0] == "index"
    require_flags(command)
    assert all(service["init"] for service in services.values()), "a first process ignores SIGTERM while it starts"
    assert all("--init" in line for line in re.findall("`docker run .*", (ROOT / "docs" / "deploy.md").read_text()))
    context = (DEPLOY / services["serve"]["build"]["context"]).resolve()
    assert context == ROOT and (context / services["serve"]["build"]["dockerfile"]).exists()
    assert compose["compose.gpu.yaml"]["services"].keys() <= services.keys()
    named = {volume.partition(":")[0] for service in services.values() for volume in service["volumes"]}
    assert {name for name in named if name.isidentifier()} == compose["compose.yaml"]["volumes"].keys()


def test_systemd_starts_the_server():
    unit = configparser.ConfigParser(interpolation=None, delimiters="=", strict=False)
    unit.optionxform = str
    unit.read(DEPLOY / "rice-serve.service")
    program, command, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert (program, command) == ("/opt/rice/bin/rice", "serve")
    require_flags(arguments)
    stop = serve._parser("rice serve").get_default("stop_seconds")
    assert int(unit["Service"]["TimeoutStopSec"]) > stop


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path):
    text = (DEPLOY / "rice-serve.service").read_text().replace("/opt/rice/bin/rice", "/bin/true")
    (tmp_path / "rice-serve.service").write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "rice-serve.service")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "rice-serve" in done.stderr) == (0, False), done.stderr


def test_nginx_lets_the_server_refuse_large_uploads():
    text = (DEPLOY / "nginx.conf").read_text()
    [megabytes] = re.findall(r"client_max_body_size (\d+)m;", text)
    assert Limits().upload_bytes < int(megabytes) * 2**20 < 1.2 * Limits().upload_bytes
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", text)
    assert int(seconds) > Limits().decode_seconds
    assert text.count("{") == text.count("}")


def test_all_requests_of_a_stream_reach_one_server():
    [pattern] = re.findall(r'"~(\S+)" \$rice_stream;', (ROOT / "docs" / "deploy.md").read_text())
    pattern = pattern.replace("(?<", "(?P<")  # Python's form of a name
    endpoints = (ROOT / "docs" / "serving.md").read_text().partition("## Endpoints")[2].partition("###")[0]
    addresses = re.findall(r"`(?:GET|POST|DELETE) (/[^`?]*)", endpoints)
    for index in ("", "/indexes/lamps"):
        keys = {address: re.match(pattern, index + address) for address in addresses}
        streams = {address: found["rice_stream"] for address, found in keys.items() if found}
        assert set(streams.values()) == {f"{index}/streams/ID"}
        assert set(streams) == {address for address in addresses if "ID" in address} and len(streams) >= 6


def test_the_dashboard_shows_metrics_that_exist():
    metrics = Metrics()
    metrics.count("shop", True, 0.5)
    names = {
        sample.name for family in metrics.registry.collect() for sample in [*family.samples, family] if sample.name
    } | {"rice_requests_total", "rice_request_seconds_bucket", "rice_batch_pictures_bucket"}
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = set(re.findall(r"\b(?:rice|process)_\w+", " ".join(expressions)))
    assert used <= names and len(used) > 10, used - names
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}
    ids = {panel["id"] for panel in dashboard["panels"]}
    assert len(places) == len(ids) == len(dashboard["panels"])
    documented = (ROOT / "docs" / "deploy.md").read_text()
    assert {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in used} <= set(
        re.findall(r"\w+", documented)
    ) | {"process_resident_memory_bytes"}
