"""Requests for other hosts, and from pages of other sites, are refused."""

import httpx
import pytest
from fastapi import HTTPException

from rice_jax.serving.hosts import LOCAL, require_host


def status(host, origin=None, hosts=LOCAL):
    headers = [(b"host", host.encode())] if host is not None else []
    headers += [(b"origin", origin.encode())] if origin is not None else []
    try:
        require_host({"type": "http", "headers": headers}, hosts)
    except HTTPException as error:
        assert "--allow_hosts" in error.detail
        return error.status_code
    return 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "[::1]", None])
def test_the_machine_itself_is_known(host):
    assert status(host) == 200


@pytest.mark.parametrize(
    "host",
    ["", "x", "example.com:8000", "localhost.example.com", "127.0.0.1.example.com", "[::1", "[x]:1", "::1", "10.0.0.1"]
    + ["localhost@example.com", "example.com#localhost", "0.0.0.0", "*"],
)
def test_other_hosts_are_not(host):
    assert status(host) == 400
    assert status(host, hosts=["*"]) == 200


def test_addresses_are_known_to_a_server_that_listens_on_all():
    for hosts in (["0.0.0.0"], ["::"]):
        assert [status(host, hosts=hosts) for host in ("10.0.0.1:80", "[fe80::1]:80", "example.com")] == [200, 200, 400]
    assert status("shop.example.com:443", hosts=["shop.example.com"]) == 200


def test_pages_of_other_sites_are_refused():
    assert status("localhost:8000", "http://localhost:8000") == 200
    assert status("localhost:8000", "http://127.0.0.1:3000") == 200
    for origin in ("http://example.com", "null", "", "http://[x", "http://localhost.example.com", "http://10.0.0.1"):
        assert status("localhost:8000", origin) == 403
        assert status("localhost:8000", origin, hosts=["*"]) == 200
    assert status("10.0.0.1", "http://10.0.0.2", hosts=["0.0.0.0"]) == 403
    assert status("10.0.0.1", "http://10.0.0.1", hosts=["0.0.0.0"]) == 200
    assert status("127.0.0.1:8000", "https://shop.example.com", hosts=[*LOCAL, "shop.example.com"]) == 200


def test_the_server_checks_them(client):
    for headers, code in (({"host": "example.com"}, 400), ({"origin": "http://example.com"}, 403)):
        for method, path in (("GET", "/healthz"), ("GET", "/"), ("POST", "/recognize"), ("DELETE", "/streams/x")):
            answer = client.request(method, path, headers=headers)
            assert (answer.status_code, "example.com" in answer.json()["detail"]) == (code, True)
            assert answer.headers["x-content-type-options"] == "nosniff"
    assert httpx.get(f"http://localhost:{client.base_url.port}/healthz").status_code == 200
