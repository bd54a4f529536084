"""Finds secrets in a message and blanks them, before any model sees the text and again in what it answers.

A list of our own: the well-kept scanners (detect-secrets, gitleaks, trufflehog) look for keys in source files, know
no passwords, PINs, cards or accounts of a chat, and weigh more than this package. Shapes of keys are those that their
issuers document; cards are told by Luhn's check or by four groups of four, accounts by ISO 7064 mod 97. Where a text
speaks of a login, what looks like a password is taken for one: a blanked order number costs less than a kept secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import regex

MARK = "[REDACTED]"
SHORTEST_TOLD = 4
"""A secret of fewer characters stands in other words too often to be looked for."""
LONGEST_JUDGED = 64
"""Characters of what may be a password that decide whether it is one."""


@dataclass(frozen=True)
class Secret:
    """Characters `start` to `end` (exclusive) of the text, and what they are."""

    kind: str
    start: int
    end: int


def _compiled(pattern: str) -> regex.Pattern[str]:
    """Blanks in the pattern mean nothing; capitals neither, unless it says so."""
    return regex.compile(pattern, regex.IGNORECASE | regex.VERBOSE)


_PASSWORD_WORD = r"""(?: pass[\ -]?(?:word|phrase|code|wd) | pass | pwd? | pw
    | passwort | kennwort | wachtwoord | lösenord | adgangskode | passord | salasana | contraseña | clave | senha
    | palavra-passe | mot\ de\ passe | parola | hasło | heslo | jelszó | şifre | пароль | κωδικός
    | 密码 | 密碼 | 口令 | パスワード | 비밀번호 | secret(?:_?key)? | (?:api|access|auth)[_\ -]?(?:key|token) )"""
_CODE_WORD = r"""(?: pin(?:\ ?code)? | puk | tan | otp | cvv2? | cvc2? | security\ code | passcode
    | (?<! (?:error|exit|status|zip|area|post|postal|country|dress|promo|discount|coupon|source|return|http) [\ -] )
      codes? | combination | keypad | unlock | (?:luggage|bike|door)\ lock | locker | (?:the|my|our)\ (?:safe|vault)
    | geheimzahl | código | codice | kod | codigo )"""
_LINK = r"""[\ \t]* ["'`*]{0,3} [\ \t]*
    (?: => | := | [=:–—] | --? | \b(?:is|was|to|are|it|its|it's|ist|es|é|est)\b )"""
_QUOTE = r"""[\ \t]* ["'`*“‘]{0,3}"""

_SHAPES = {
    "private_key": _compiled(
        r"-----BEGIN\ [A-Z0-9\ ]*PRIVATE\ KEY(?:\ BLOCK)?----- [\s\S]*? (?: -----END\ [A-Z0-9\ ]*----- | \Z )"
    ),
    "jwt": _compiled(r"(?<![\w-]) eyJ[\w-]{8,} \. [\w-]{8,} (?: \.[\w-]* )?"),
    "api_key": _compiled(r"""(?<![A-Za-z0-9]) (?: sk-[\w-]{16,} | [srp]k_(?:live|test)_\w{10,} | gh[pousr]_\w{16,}
        | github_pat_\w{20,} | glpat-[\w-]{16,} | xox[abeprs]-[\w-]{10,} | (?-i:A(?:KIA|SIA)[A-Z0-9]{16})
        | (?-i:AIza[\w-]{30,}) | ya29\.[\w-]{20,} | hf_\w{16,} | npm_\w{20,} | pypi-[\w-]{20,}
        | SG\.[\w-]{16,}\.[\w-]{16,} | whsec_\w{16,} | dop_v1_\w{32,} | shpat_\w{20,}
        | (?:api|tok|token|key|secret) [-_] (?=\w{0,64}?\d) [\w-]{8,} )"""),
    "password": _compiled(r"(?<= \b[a-z][a-z0-9+.-]{1,20}://[^\s:@/]{0,64}: ) [^\s@/]+ (?=@)"),
    "token": _compiled(r"(?<= \b(?:bearer|basic)\ ) [\w.~+/=-]{8,}"),
    "iban": _compiled(r"(?<![A-Z0-9]) [A-Z]{2}\d{2} (?:\ ?[A-Z0-9]{4}){2,7} (?:\ ?[A-Z0-9]{1,3})? (?![A-Z0-9])"),
    "card": _compiled(r"(?<![\d.-]) \d (?:[\ -]?\d){12,18} (?![\d-])"),
    "random_token": _compiled(r"(?<![\w/.-]) [A-Za-z0-9_-]{20,} (?![\w/.])"),
    "code": _compiled(r"(?<= \d[,\s]{1,2}(?:exp\.?\ )?\d\d/\d\d,?\s ) \d{3,4} \b"),
}
"""What is a secret wherever it stands."""

_PASSWORD_SAID = _compiled(
    rf"(?<!\p{{L}}){_PASSWORD_WORD}(?!\p{{L}}) [^\n.!?:=]{{0,24}}? (?:{_LINK})+ {_QUOTE}"
    rf"(?P<value>[^\s\"'`“”’,;]{{4,{LONGEST_JUDGED}}})"
)
_PASSWORD_BESIDE = _compiled(
    rf"(?<!\p{{L}})(?: {_PASSWORD_WORD} {_QUOTE} | (?:login|user(?:\ ?name)?|admin)\b [^\n/]{{0,30}}\ /\ )"
    rf"(?P<value>[^\s\"'`,;]{{4,{LONGEST_JUDGED}}})"
)
_NO_BLANK = regex.compile(r"[^\s\"'`,;]*+")
_LETTER = regex.compile(r"\w")
_SEED_PHRASE = _compiled(
    r"(?:seed|recovery|backup)\ phrase\b [^\n.,;!?]{0,20}? \b(?:is|with|:)\s (?P<value>[^\n.,;!?]{4,})"
)
_SEED_WORDS = _compiled(
    r"(?:seed|recovery|backup)\ phrase\b [^\n]{0,200}? :\s+"
    r"(?P<value>(?-i:\p{Ll}{3,8}[ ,]{1,2}){5,23}(?-i:\p{Ll}{3,8}))\b"
)
_IN_NO_SEED = frozenset("the and for are was were not but has had its his her our their from your been".split())
"""Words of nearly every sentence that BIP-39's list lacks."""
_CODE_SAID = _compiled(
    rf"(?<!\p{{L}}){_CODE_WORD}(?!\p{{L}}) [^\d\n!?]{{0,40}}? (?<![\p{{L}}\d.]) (?P<value>\d(?:[\ -]?\d){{2,9}}\#?)"
    rf"(?! [\d%€$] | [.,:]\d | \p{{L}} )"
)
_CODE_BEFORE = _compiled(
    r"(?<![\d.,]) (?P<value>\d{4,8}) \ (?:as|for|is)\ (?:a\ |the\ |my\ |our\ )? (?:pin|code|puk)\b"
)
_CODE_PART = _compiled(
    r"\b(?:first|second|third|other|last)\ (?:half|part|piece|bit)\ (?:is\ |:\ ?|=\ ?)"
    r"(?P<value>\d{2,10}) (?![\d%] | \ \p{L})"
)
_YEAR_BEFORE = _compiled(r"\b(?:in|since|from|until|of|by|before|after|seit)\ $")
_TALK_OF_LOGINS = _compiled(rf"""(?<!\p{{L}})(?: {_PASSWORD_WORD} | log(?:ged)?[\ -]?(?:in|on) | log\ me\ in
    | credentials?
    | sign[\ -]?(?:in|up) | anmelden | zugangsdaten | wi-?fi | wlan | hotspot | router | (?:en|de)crypt\w*
    | 2fa | token | locked\ out | recovery | user\ ?name )(?!\p{{L}})""")
_WORD = _compiled(r"""(?<! [^\s"'`(,:;=/] ) [^\s"'`(),;:=/]{6,64} (?! [^\s"'`),;:?!./] )""")
_UNMISTAKABLE = _compiled(r"\p{Lu}\p{Ll}{2,} [!#$] \p{Ll}{2,} \d{2,}")
_MARKS = frozenset("!#_-.$%&*+@^~")


def find_secrets(text: str) -> list[Secret]:
    """Every secret, left to right, none within another."""
    return _apart(_candidates(text))


def find_everywhere(texts: Mapping[str, str]) -> dict[str, list[Secret]]:
    """The secrets of each message of a conversation; one that is told in any is blanked in all."""
    found = {place: find_secrets(text) for place, text in texts.items()}
    told = {_one_case(text[s.start : s.end]): s.kind for place, text in texts.items() for s in found[place]}
    repeated = {secret: kind for secret, kind in told.items() if len(secret) >= SHORTEST_TOLD}
    return {place: _apart([*found[place], *_repetitions(text, repeated)]) for place, text in texts.items()}


def _repetitions(text: str, told: Mapping[str, str]) -> Iterator[Secret]:
    """Where a secret stands again as whole words. The text is gone through once, however many secrets there are."""
    lengths: dict[str, set[int]] = {}
    for secret in told:
        lengths.setdefault(secret[:SHORTEST_TOLD], set()).add(len(secret))
    plain = _one_case(text) if told else ""
    for start in range(len(plain)):
        begun = lengths.get(plain[start : start + SHORTEST_TOLD])
        for length in begun if begun and not _LETTER.match(plain, start - 1, start) else ():
            kind = told.get(plain[start : start + length]) if start + length <= len(plain) else None
            if kind and not _LETTER.match(plain, start + length):
                yield Secret(kind, start, start + length)


def _one_case(text: str) -> str:
    """Small letters, each in the place of its capital."""
    return "".join(small if len(small := character.lower()) == 1 else character for character in text)


def _apart(candidates: Iterable[Secret]) -> list[Secret]:
    found: list[Secret] = []
    for secret in sorted(candidates, key=lambda secret: (secret.start, -secret.end)):
        if found and secret.start < found[-1].end:
            last = found.pop()
            secret = Secret(last.kind, last.start, max(last.end, secret.end))
        found.append(secret)
    return found


def redact(text: str, secrets: Sequence[Secret] | None = None) -> str:
    """The text with a mark in the place of every secret."""
    for secret in reversed(find_secrets(text) if secrets is None else secrets):
        text = text[: secret.start] + MARK + text[secret.end :]
    return text


def _candidates(text: str) -> Iterator[Secret]:
    for kind, shape in _SHAPES.items():
        for match in shape.finditer(text):
            if _is_sound(kind, match.group()):
                yield Secret(kind, *match.span())
    for said in (_PASSWORD_SAID, _PASSWORD_BESIDE):
        yield from _passwords(text, said)
    for match in _SEED_PHRASE.finditer(text):
        yield Secret("seed_phrase", *match.span("value"))
    for match in _SEED_WORDS.finditer(text):
        if not _IN_NO_SEED & set(match["value"].replace(",", " ").split()):
            yield Secret("seed_phrase", *match.span("value"))
    yield from _codes(text)
    is_about_logins = _TALK_OF_LOGINS.search(text) is not None
    for match in _WORD.finditer(text):
        if (is_about_logins and _looks_like_password(match.group())) or _UNMISTAKABLE.match(match.group()):
            yield _password(match.start(), match.group())


def _codes(text: str) -> Iterator[Secret]:
    """Codes, and where one is told, what is said to be a part of it."""
    is_told = False
    for match in (*_CODE_SAID.finditer(text, overlapped=True), *_CODE_BEFORE.finditer(text)):
        if not _is_year(match):
            is_told = True
            yield Secret("code", *match.span("value"))
    for match in _CODE_PART.finditer(text) if is_told else ():
        yield Secret("code", *match.span("value"))


def _passwords(text: str, said: regex.Pattern[str]) -> Iterator[Secret]:
    """What `said` tells. Its value is the beginning of one, up to LONGEST_JUDGED characters; the rest comes along."""
    told_until = 0
    for match in said.finditer(text, overlapped=True):
        start, end = match.span("value")
        if end > told_until and _is_password(match["value"], is_said=said is _PASSWORD_SAID):
            rest = _NO_BLANK.match(text, end) if end - start == LONGEST_JUDGED else None
            end = told_until = rest.end() if rest else end
            yield _password(start, text[start:end])


def _password(start: int, text: str) -> Secret:
    """Without the full stop that ends a sentence."""
    return Secret("password", start, start + len(text.rstrip(".?)")))


def _is_sound(kind: str, value: str) -> bool:
    """What the shape alone does not check."""
    if kind == "card":
        return _has_four_groups(value) or _passes_luhn(value)
    if kind == "iban":
        return _passes_mod_97(value)
    if kind == "random_token":
        return (
            any(c.isupper() for c in value) and any(c.islower() for c in value) and sum(c.isdigit() for c in value) >= 2
        )
    return True


def _is_password(value: str, *, is_said: bool) -> bool:
    """Of what is said to be one, all but ordinary words: `my password is wrong` keeps its last."""
    text = value.rstrip(".!?)")
    is_ordinary = not any(c.isdigit() or c in _MARKS or c.isupper() for c in text[1:])
    return not text.startswith(MARK[:-1]) and (_is_mixed(text) or (is_said and not is_ordinary))


def _looks_like_password(value: str) -> bool:
    """Letters and digits, with marks between them or eight of them; no mail address."""
    text = value.rstrip(".!?)")
    is_address = "@" in text and "." in text.partition("@")[2]
    has_marks = any(c in _MARKS for c in text[1:])
    return _is_mixed(text) and not is_address and len(text) >= (6 if has_marks else 8)


def _is_mixed(text: str) -> bool:
    return any(c.isalpha() for c in text) and any(c.isdigit() for c in text)


def _is_year(match: regex.Match[str]) -> bool:
    before = match.string[max(0, match.start("value") - 12) : match.start("value")]
    return regex.fullmatch(r"(?:19|20)\d\d", match["value"]) is not None and _YEAR_BEFORE.search(before) is not None


def _passes_luhn(value: str) -> bool:
    digits = [int(c) for c in value if c.isdigit()][::-1]
    return sum(d if n % 2 == 0 else sum(divmod(2 * d, 10)) for n, d in enumerate(digits)) % 10 == 0


def _has_four_groups(value: str) -> bool:
    return regex.fullmatch(r"\d{4}([ -])\d{4}\1\d{4}\1\d{4}", value) is not None


def _passes_mod_97(value: str) -> bool:
    """ISO 13616: the first four characters at the end, letters as 10 to 35, remainder 1."""
    text = value.replace(" ", "").upper()
    return len(text) >= 15 and int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1
