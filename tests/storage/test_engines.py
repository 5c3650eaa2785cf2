"""What is imported before processes are forked."""

from __future__ import annotations

import subprocess
import sys

PRELOADED = """
import sys, threading
from storage.engines import preload

preload(["s3://mail/prefix"])
assert threading.active_count() == 1
from storage.blobs.s3.bucket import Bucket, _loader
from storage.blobs.s3.options import Options

def files():
    return {key for key in _loader()._cache if key[0].startswith("load_data")}

modules, known = set(sys.modules), files()
options = Options("mail", endpoint="http://127.0.0.1:1", credentials=sys.argv[1])
Bucket(options, 1).release()
late = [m for m in set(sys.modules) - modules if m.startswith(("boto", "s3transfer"))]
print(late, files() - known)
"""

MISSING = """
import sys
for name in ("boto3", "botocore", "asyncpg", "greenlet"):
    sys.modules[name] = None
from storage.engines import preload

preload(["postgresql+asyncpg://db/mail", "s3://mail/prefix", "file:blobs"])
print("storage.blobs.s3.store" in sys.modules, "storage.blobs.file.url" in sys.modules)
"""


def run(script: str, *args: str) -> str:
    """Run Python in a process of its own; return what it says."""
    done = subprocess.run(
        [sys.executable, "-c", script, *args],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_a_client_for_s3_imports_and_reads_nothing_that_was_not_preloaded(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    assert run(PRELOADED, str(keys)) == "[] set()"


def test_preloading_does_without_what_is_not_installed():
    assert run(MISSING) == "True True"
