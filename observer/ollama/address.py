"""Where an Ollama server is, and what a model is called there: as Ollama itself reads and compares them.

Source: envconfig/config.go (Host, ConnectableHost) and types/model/name.go of ollama/ollama.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re

from observer.errors import ObserverError

_PORTS = {"http": 80, "https": 443}
_OLLAMA_PORT = 11434
_CLOUD = "ollama.com"
_DEFAULTS = ("registry.ollama.ai", "library", "", "latest")
_PARTS = (
    re.compile(r"\w[\w.:-]{0,349}", re.ASCII),  # the registry's host
    re.compile(r"\w[\w-]{0,79}", re.ASCII),  # the namespace
    re.compile(r"\w[\w.-]{0,79}", re.ASCII),  # the model
    re.compile(r"\w[\w.-]{0,79}", re.ASCII),  # the tag
)


def ollama_url(host: str) -> str:
    """The URL for a value of OLLAMA_HOST, which may be empty, quoted, without scheme, port or brackets.

    A port that is none becomes the scheme's own; an address that servers listen on becomes one to connect to.
    """
    text = host.strip().strip("\"'").strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = ("https", f"{_CLOUD}:443") if text == _CLOUD else ("http", text)
    default = _PORTS.get(scheme, _OLLAMA_PORT) if separator else _OLLAMA_PORT
    address, slash, path = rest.partition("/")
    user, at, address = address.rpartition("@")
    name, port = _split(address)
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        port = str(default)
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(name)
        if ip.is_unspecified:
            ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
        name = f"[{ip}]" if ip.version == 6 else str(ip)
    return f"{scheme}://{user}{at}{name}:{port}{slash}{path}".rstrip("/")


def _split(address: str) -> tuple[str, str]:
    """Host, without brackets, and port; an IPv6 address needs no brackets when it has no port."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(address.strip("[]"))), ""
    match = re.fullmatch(r"(\[(?P<ip>[^]]*)\]|(?P<name>[^:]*)):(?P<port>[^:]*)", address)
    if match is None:
        return address or "127.0.0.1", ""
    return match["ip"] or match["name"] or "127.0.0.1", match["port"]


def full_name(name: str) -> str:
    """HOST/NAMESPACE/MODEL:TAG in lower case: equal for two names of one model. Raises ObserverError for none."""
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, colon, tag = name, "", _DEFAULTS[3]
    given = path.rsplit("/", 2)
    parts = [*_DEFAULTS[: 3 - len(given)], *given, tag]
    parts[0] = parts[0].rpartition("://")[2]
    if not all(pattern.fullmatch(part) for pattern, part in zip(_PARTS, parts, strict=True)):
        raise ObserverError(
            f"{name!r}: no model name for Ollama; letters, digits, `_`, `-` and `.`, at most 80 of them, such as "
            "observer or observer:q8_0"
        )
    return f"{parts[0]}/{parts[1]}/{parts[2]}:{parts[3]}".lower()
