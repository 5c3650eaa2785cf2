"""Where a test's databases are: it runs on each engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog

from tests.lib import databases

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _logs() -> None:
    """Log as nobody has configured it, whatever tests came before."""
    structlog.reset_defaults()


@pytest.fixture(params=databases.ENGINES)
def place(
    request: pytest.FixtureRequest, tmp_path: pathlib.Path
) -> Iterator[pathlib.Path]:
    """A directory; ``databases.make`` keeps what belongs to it on an engine."""
    with databases.on(request.param, tmp_path):
        yield tmp_path
