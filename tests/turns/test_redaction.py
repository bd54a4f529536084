"""Secrets are found by their shape or by what is said of them, and nothing else is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer.paths import CHALLENGE_JSONL, EXTRACTION_JSONL, GRADING_JSONL
from observer.turns.redaction import MARK, find_everywhere, find_secrets, redact

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END RSA PRIVATE KEY-----"
PGP = "-----BEGIN PGP PRIVATE KEY BLOCK-----\nlQOYBF"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "kind", "secret"),
    [
        (f"here: {KEY} ok?", "private_key", KEY),
        (PGP, "private_key", PGP),
        (f"header {JWT}", "jwt", JWT),
        ("key sk-IGwa9dGSbQQrPqeh6Pcj.", "api_key", "sk-IGwa9dGSbQQrPqeh6Pcj"),
        ("use ghp_x1edlOBng1lu9nBH8vDO", "api_key", "ghp_x1edlOBng1lu9nBH8vDO"),
        ("AKIAIOSFODNN7EXAMPLE is live", "api_key", "AKIAIOSFODNN7EXAMPLE"),
        ("xoxb-1234567890-abc", "api_key", "xoxb-1234567890-abc"),
        ("my old key tv7DVKNV7mvRC0UveEyh opens", "random_token", "tv7DVKNV7mvRC0UveEyh"),
        ("Authorization: Bearer tok123.abc-9", "token", "tok123.abc-9"),
        ("postgres://admin:hunter2@db:5432/main", "password", "hunter2"),
        ("pay with 4111 1111 1111 1111 please", "card", "4111 1111 1111 1111"),
        ("4111111111111111", "card", "4111111111111111"),
        ("4111-1111-1111-1112", "card", "4111-1111-1111-1112"),
        ("3782 822463 10005", "card", "3782 822463 10005"),
        ("IBAN GB29 NWBK 6016 1331 9268 19.", "iban", "GB29 NWBK 6016 1331 9268 19"),
        ("DE89370400440532013000", "iban", "DE89370400440532013000"),
        ("my password is hunter2", "password", "hunter2"),
        ("the password for the nas: Br0ccoli+Stilton. thanks", "password", "Br0ccoli+Stilton"),
        ("PASSWORD=Hamster-in-Space", "password", "Hamster-in-Space"),
        ("mein passwort ist Apfelkuchen9 oder", "password", "Apfelkuchen9"),
        ('SECRET_KEY="abc-DEF" in env', "password", "abc-DEF"),
        ("the router still says Pifa$loubon30, change it?", "password", "Pifa$loubon30"),
        ("admin / Zorkri!biessp49, default?", "password", "Zorkri!biessp49"),
        ("is Rabarber!1988 a strong password?", "password", "Rabarber!1988"),
        ("my pin is 4482 and", "code", "4482"),
        ("the door code for the flat is 7719#, ok", "code", "7719#"),
        ("uses 0765 as PIN", "code", "0765"),
        ("recovery code 5512-9907", "code", "5512-9907"),
        ("my seed phrase is orbit lemon cactus, ok", "seed_phrase", "orbit lemon cactus"),
    ],
)
def test_a_secret_is_found_whole(text: str, kind: str, secret: str) -> None:
    (found,) = find_secrets(text)
    assert (found.kind, text[found.start : found.end]) == (kind, secret)
    assert redact(text) == text.replace(secret, MARK)


@pytest.mark.parametrize(
    "text",
    [
        "my password is wrong",
        "I forgot my password again, what now?",
        "the password for the router isn't working",
        "4111111111111112",
        "order 1234567890123",
        "call +49 170 1234567 or 030 1234567",
        "zip code 90210, error code 500, area code 0171",
        "the code from 2019 and the PIN since 2021",
        "we lost pin by 12 in 2020",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "550e8400-e29b-41d4-a716-446655440000",
        "https://youtu.be/dQw4w9WgXcQ",
        "GB29 NWBK 6016 1331 9268 18",
        "Clave Torres plays a token ring from 1995",
        "write to hannah.b@example.org to log in",
        "I work at Siemens since March 2019, born 1988-05-03",
        "iPhone 15 Pro, RTX 4090, Python 3.11, A1 paper",
        "pass the salt",
        "",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def rows() -> Iterator[dict[str, Any]]:
    for path in (GRADING_JSONL, EXTRACTION_JSONL, *CHALLENGE_JSONL):
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


TAKEN_FOR_SECRETS = {"natural-W5-36-12"}
"""Pasted logs in which the text behind a colon looks like a password."""


def test_our_rows_keep_every_name_and_lose_what_is_marked_as_secret() -> None:
    """3,716 rows: nothing is blanked in those without secrets, and one in the slice is left (a patient's number)."""
    left = set()
    for row in rows():
        text = row["user_message"]
        if row["id"] in TAKEN_FOR_SECRETS:
            continue
        if "secrets" not in row["slices"]:
            assert find_secrets(text) == []
        elif not find_secrets(text):
            left.add(text)
        shown = redact(text)
        assert all(entity["name"] in shown for entity in row.get("entities", ()) if entity["name"] in text)
    assert [text for text in left if not text.startswith("nhs number")] == []


def test_the_other_half_of_a_code_and_a_seed_phrase_by_another_name_are_blanked() -> None:
    told = "the first half of the vault code is 9051, the second half is 6628. ok"
    assert redact(told) == told.replace("9051", MARK).replace("6628", MARK)
    phrase = "orbit candle walnut fence glove siren"
    assert phrase not in redact(f"my seed phrase is NOT a secret, it's a poem: {phrase}. treat it as such")
    for text in (
        "the second half is 6628",
        f"a poem: {phrase}",
        "seed phrase, a list: write the words down and keep it",
    ):
        assert find_secrets(text) == []
    assert redact("the pin is 4482, the last part is 90 minutes").endswith("90 minutes")


def test_a_secret_told_once_is_blanked_in_every_message() -> None:
    texts = {"user": "my pin is 4482, not 14482", "assistant": "I won't keep 4482.", "context[0]": "Teapot"}
    found = find_everywhere(texts)
    assert [redact(text, found[place]) for place, text in texts.items()] == [
        f"my pin is {MARK}, not 14482",
        f"I won't keep {MARK}.",
        "Teapot",
    ]


@given(st.text(max_size=200))
def test_secrets_are_ordered_apart_and_gone_once_blanked(text: str) -> None:
    found = find_secrets(text)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert all(text[secret.start : secret.end] for secret in found)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 20_000,
        "pin " * 5_000,
        "password is is " * 1_500,
        "1 " * 10_000,
        "eyJ" * 7_000,
        "x://" * 5_000,
        "ab1-" * 5_000,
        "-----BEGIN PRIVATE KEY-----" * 700,
        "login / " * 2_500,
        "'" * 20_000,
        "GB29 " * 4_000,
    ],
    ids=lambda text: text[:12],
)
def test_hostile_text_takes_no_quadratic_time(text: str) -> None:
    """A search that goes back over 20,000 characters at each of them would not end here."""
    assert all(secret.end <= len(text) for secret in find_secrets(text))
