"""URLs as they may be shown: in answers, logs and errors."""

from __future__ import annotations

SECRET = ("password", "secret", "token")


def shown(url: str) -> str:
    """Return a URL without what is secret in it; any other text as it is.

    A password may hold what a URL should quote and does not: everything up to the
    last "@" before the options is taken for the login.
    """
    scheme, colon, rest = url.partition("://")
    address, mark, query = rest.partition("?")
    login, at, place = address.rpartition("@")
    if ":" in login and not login.startswith("/"):
        address = f"{login.partition(':')[0]}:***{at}{place}"
    options = "&".join(map(_option, query.split("&")))
    return f"{scheme}{colon}{address}{mark}{options}"


def _option(option: str) -> str:
    name, equals, _ = option.partition("=")
    secret = any(word in name.lower() for word in SECRET)
    return f"{name}{equals}***" if secret else option
