from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["mailserverd.net.dns", "auth.mail.spf"])
def test_dns_loads_no_http_client(module: str) -> None:
    code = f"import {module}, sys; sys.exit('httpx2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
