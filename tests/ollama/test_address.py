"""OLLAMA_HOST and models' names, as Ollama's own envconfig and names read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer.errors import ObserverError
from observer.ollama.address import full_name, ollama_url

HOSTS = {
    "": "http://127.0.0.1:11434",
    "  ": "http://127.0.0.1:11434",
    "box": "http://box:11434",
    "box:9999": "http://box:9999",
    "box:": "http://box:11434",
    ":1234": "http://127.0.0.1:1234",
    '"box:9999"': "http://box:9999",
    "'http://box'": "http://box:80",
    ' "box" ': "http://box:11434",
    "0.0.0.0": "http://127.0.0.1:11434",
    "0.0.0.0:80": "http://127.0.0.1:80",
    "http://0.0.0.0:1234": "http://127.0.0.1:1234",
    "::1": "http://[::1]:11434",
    "[::1]": "http://[::1]:11434",
    "[::1]:1234": "http://[::1]:1234",
    "::": "http://[::1]:11434",
    "[::]:80": "http://[::1]:80",
    "https://[::1]": "https://[::1]:443",
    "http://box": "http://box:80",
    "https://box/": "https://box:443",
    "https://box/ollama/": "https://box:443/ollama",
    "box/ollama": "http://box:11434/ollama",
    "ollama.com": "https://ollama.com:443",
    "https://ollama.com": "https://ollama.com:443",
    "http://ollama.com": "http://ollama.com:80",
    "box:66000": "http://box:11434",
    "box:-1": "http://box:11434",
    "box:port": "http://box:11434",
    "https://box:99999": "https://box:443",
    "http://box:99999": "http://box:80",
}


@pytest.mark.parametrize("host", HOSTS)
def test_the_address_is_read_as_ollama_reads_it(host: str) -> None:
    assert ollama_url(host) == HOSTS[host]


@given(st.one_of(st.text(max_size=30), st.text(alphabet="[]:/.0123box\"'", max_size=20)))
def test_any_host_gives_an_address(host: str) -> None:
    assert "://" in ollama_url(host)


SAME = "observer observer:latest OBSERVER Observer:Latest library/observer registry.ollama.ai/library/observer:latest"


def test_names_are_compared_as_ollama_compares_them() -> None:
    assert {full_name(name) for name in [*SAME.split(), "https://registry.ollama.ai/library/observer"]} == {
        "registry.ollama.ai/library/observer:latest"
    }
    others = ["observer:q8_0", "me/observer", "box:5000/library/observer", "observer2"]
    assert len({full_name(name) for name in ["observer", *others]}) == 5


@pytest.mark.parametrize(
    "name",
    ["", ":", "a:", ":a", "a/", "/a", "a b", "-a", "a/b/c/d", "ä", "a" * 81, "n" * 81 + "/a", "a:" + "t" * 81, "x:y:z",
     "my.name/a", "a@sha256", ".a", "a\n", "../a"],
)  # fmt: skip
def test_a_name_that_ollama_refuses(name: str) -> None:
    with pytest.raises(ObserverError, match="no model name for Ollama"):
        full_name(name)


@given(st.text(alphabet="aA_-.:/1", max_size=12))
def test_a_full_name_is_a_name_and_its_own(name: str) -> None:
    try:
        full = full_name(name)
    except ObserverError:
        return
    assert full_name(full) == full_name(name.upper()) == full
