"""Texts without secrets: what leaves this process for a log, a report or a page holds no password and no key.

Taken out are the values of environment variables whose names say that they are secret, user and password within URLs,
and values that a text itself calls a key, a token or a password. Rather too much than too little.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "***"

_WORDS = r"PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|CREDENTIALS?|API_?KEY|(?:ACCESS|PRIVATE|SECRET|ENCRYPTION)_?KEY"
_VARIABLE = re.compile(
    rf"(?:{_WORDS})(_\w+)?$|(?:^|_)(?:PASS|KEY|AUTH_STRING|(?:CONNECTION|DATABASE|BROKER)_URL)$", re.I
)
_SHORTEST = 6  # characters of a value that is taken out wherever it stands; shorter ones are words such as "true"
_USERINFO = (
    re.compile(r"(?<=://)[^\s/?#'\"<>]*@"),
    re.compile(r"(?<=://)[^\s/?#'\"<>:@]*:[^\s'\"<>@]*@"),  # the password holds a slash
)
_VALUE = r"(?:\"[^\"]*\"|'[^']*'|[^\s\"',;&)}\]]+)"
_ASSIGNED = re.compile(rf"((?:{_WORDS}|AUTH_STRING)\w*[\"']?\s*[=:]\s*){_VALUE}", re.I)
_HEADER = re.compile(rf"(authorization[\"']?\s*[=:]\s*[\"']?)(?:(?:basic|bearer|digest|negotiate)\s+)?{_VALUE}", re.I)


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with `***` in the place of everything that looks like a secret."""
    for value in _values(environment):
        text = text.replace(value, HIDDEN)
    for userinfo in _USERINFO:
        text = userinfo.sub(f"{HIDDEN}@", text)
    text = _HEADER.sub(rf"\g<1>{HIDDEN}", text)
    return _ASSIGNED.sub(rf"\g<1>{HIDDEN}", text)


def redact_values(value: Any) -> Any:
    """Plain values, such as settings, with every text within them as `redact` leaves it."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: redact_values(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(one) for one in value]
    return value


def _values(environment: Mapping[str, str]) -> list[str]:
    """Secret values of the environment as they may stand in a text, line by line, the longest first."""
    found: set[str] = set()
    for name, value in environment.items():
        if _VARIABLE.search(name):
            lines = (line.strip() for line in value.splitlines())
            found |= {form for line in lines for form in (line, quote(line, safe=""), repr(line)[1:-1])}
    return sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)
