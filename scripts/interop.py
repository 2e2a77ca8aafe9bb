"""Run the tests against programs that others wrote, built from their own sources (needs cargo) or from the registry.

The TLS libraries and Envoy of requirements/interop.txt are installed here, if they are not; so is SoftHSM, a PKCS#11
token of Debian's, where this is root.
"""

from __future__ import annotations

import os
import shutil
import sys

import debian
from locked import provide
from pytest_child import run_pytest


def main(arguments: list[str]) -> int:
    provide("interop", "aiohttp", "envoy", "httpx", "uvloop", "websockets")
    if not shutil.which("softhsm2-util") and (lacking := debian.install("softhsm2")):
        print(f"interop: the tests of PKCS#11 tokens skip: {lacking}", file=sys.stderr)
    environment = os.environ | {"CONFCOM_INTEROP": "1"}
    return run_pytest("tests/interop", "--timeout", "900", *arguments, environment=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
