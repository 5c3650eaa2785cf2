"""URLs as they may be shown: in answers, logs and errors."""

from __future__ import annotations

import re
import urllib.parse

OPTIONS = re.compile(r"\w+=")
SECRET = ("password", "secret", "token")


def shown(url: str) -> str:
    """Return a URL without what is secret in it; any other text as it is.

    A password may hold what a URL should quote and does not: everything up to the
    last "@" before the options is taken for the login, and options begin with a name.
    """
    scheme, colon, rest = url.partition("://")
    address, mark, query = rest.partition("?")
    if "@" in query and not OPTIONS.match(query):
        address, mark, query = rest, "", ""
    login, at, place = address.rpartition("@")
    if ":" in login and not login.startswith("/"):
        address = f"{login.partition(':')[0]}:***{at}{place}"
    options = "&".join(map(_option, query.split("&")))
    return f"{scheme}{colon}{address}{mark}{options}"


def _option(option: str) -> str:
    name, equals, value = option.partition("=")
    if "@" in (plain := urllib.parse.unquote(value)) and "://" in plain:
        return f"{name}{equals}{shown(plain)}"
    secret = any(word in name.lower() for word in SECRET)
    return f"{name}{equals}***" if secret else option
