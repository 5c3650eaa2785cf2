"""The engine under a daemon: a module whose daemon asks for it runs on each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lib import databases

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=databases.ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[databases.Engine]:
    """Where the databases are; what is made there goes with the module."""
    with databases.engine(request.param) as used:
        yield used
