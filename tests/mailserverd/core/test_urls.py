"""What is shown of a URL."""

from __future__ import annotations

import pytest

from mailserverd.core.urls import shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+asyncpg://u:pw@h:5432/db", "postgresql+asyncpg://u:***@h:5432/db"),
        ("postgresql+asyncpg://u:a@b/c@h/db", "postgresql+asyncpg://u:***@h/db"),
        ("postgresql+asyncpg://u:a@b/c?#&= d@h/db", "postgresql+asyncpg://u:***@h/db"),
        ("postgresql+asyncpg://u:p?q@h/db?sslmode=off", "postgresql+asyncpg://u:***@h/db?sslmode=off"),
        ("postgresql+asyncpg://u:p@h/db?options=a@b", "postgresql+asyncpg://u:***@h/db?options=a@b"),
        ("postgresql+asyncpg://u@h/db?password=x", "postgresql+asyncpg://u@h/db?password=***"),
        (
            "postgresql+asyncpg:///db?host=/run/x&sslpassword=y&prepared=off",
            "postgresql+asyncpg:///db?host=/run/x&sslpassword=***&prepared=off",
        ),
        ("postgres://u:pw@h", "postgres://u:***@h"),
        ("sqlite:////srv/a:b@c.db", "sqlite:////srv/a:b@c.db"),
        ("s3://bucket/prefix?endpoint=http://h:1/&secret_key=z", "s3://bucket/prefix?endpoint=http://h:1/&secret_key=***"),
        ("s3://bucket?endpoint=http%3A%2F%2Fk%3Apw%40h&region=x", "s3://bucket?endpoint=http://k:***@h&region=x"),
        ("s3://bucket?endpoint=http://k:pw@h", "s3://bucket?endpoint=http://k:***@h"),
        ("local:", "local:"),
        ("127.0.0.1:25", "127.0.0.1:25"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_its_secrets(url, expected):
    assert shown(url) == expected
