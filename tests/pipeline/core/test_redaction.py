"""No secret stands in what leaves the process, and plain texts stay as they are."""

from __future__ import annotations

import pytest

from pipeline.core.redaction import HIDDEN, redact

ENVIRONMENT = {
    "PREFECT_API_KEY": "pnu_0123456789",
    "PREFECT_API_AUTH_STRING": "admin:open sesame",
    "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://prefect:yab%2Fba@db:5432/prefect",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "PGPASSWORD": "it's \\ here",
    "DEPLOY_PRIVATE_KEY": "-----BEGIN-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n",
    "TOKENIZERS_PARALLELISM": "in the open",
    "HOME": "/home/anna",
    "DEBUG_TOKEN": "true",
}


IN_ONE_LINE = [name for name in ENVIRONMENT if name.startswith(("PREFECT", "AWS", "PG"))]


@pytest.mark.parametrize("name", IN_ONE_LINE)
def test_values_of_secret_variables_are_taken_out(name: str) -> None:
    secret = ENVIRONMENT[name]
    for text in (f"before {secret} after", f"before {secret!r} after", f"{secret}{secret}"):
        clean = redact(text, ENVIRONMENT)
        assert secret not in clean and repr(secret)[1:-1] not in clean and HIDDEN in clean
    assert redact(f"before {secret} after", ENVIRONMENT) == f"before {HIDDEN} after"


def test_each_line_of_a_key_and_its_form_in_a_url_are_taken_out() -> None:
    text = redact("line MIIEvQIBADANBg end, ?k=wJalrXUtnFEMI%2FK7MDENG&x=1", ENVIRONMENT)
    assert text == f"line {HIDDEN} end, ?k={HIDDEN}&x=1"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("tls://anna:geheim@host:8786/x", "tls://***@host:8786/x"),
        ("('https://anna@host')", "('https://***@host')"),
        ("redis://:pa/ss@host/0 and ftp://a:b@c", "redis://***@host/0 and ftp://***@c"),
        ("a://u:p@ss@host", "a://***@host"),
        ("api_key=abc123, n=2", "api_key=***, n=2"),
        ('{"token": "abc def", "n": 2}', '{"token": ***, "n": 2}'),
        ("workers.password = 'x y'", "workers.password = ***"),
        ("GITHUB_TOKEN: ghp_abc", "GITHUB_TOKEN: ***"),
        ("Authorization: Bearer abc.def-123", "Authorization: ***"),
        ("{'authorization': 'Basic YW5uYTpi', 'n': 2}", "{'authorization': '***', 'n': 2}"),
    ],
)
def test_what_a_text_itself_calls_secret_is_taken_out(text: str, clean: str) -> None:
    assert redact(text, {}) == clean


@pytest.mark.parametrize(
    "text",
    [
        "/home/anna/incoming/C/g001.fits in the open, debug is true",
        "http://127.0.0.1:4200/api and file:///data/positions@list.csv",
        "KeyError: 'flux_g'; key=classify-0123, 12 tokens",
        "tcp://10.0.0.1:8786, mail to anna@example.org",
    ],
)
def test_plain_texts_stay_as_they_are(text: str) -> None:
    assert redact(text, ENVIRONMENT) == text
