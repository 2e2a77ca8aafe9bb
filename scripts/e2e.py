"""The end-to-end tests: a real Kubernetes on this machine, the image of this checkout in it, and tests/e2e.

Further words go to pytest. A cluster of your own is used instead when CONFCOM_E2E_KUBECONFIG names its kubeconfig; its
nodes must have the image that CONFCOM_E2E_IMAGE names.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import cluster
import image
import postgres
import pytest
from pytest_child import run_pytest
from testcluster.home import Home, default_home
from testcluster.machine import reason_against, reason_against_image


def prepare(home: Home) -> dict[str, str]:
    """Start the cluster, give it the image, and return the environment of the tests."""
    # New amounts of a resource show with the kubelet's next status, by default every 10 s: most of what tests wait for.
    os.environ.setdefault("KUBE_STATUS_SECONDS", "1")
    cluster.start(home)
    archive, digest = image.make(home.path / "images", image.NAME)
    print(f"e2e: {image.NAME} is {digest}", flush=True)
    image.load(archive)
    return {
        "KUBE_HOME": str(home.path),
        "KUBECTL": str(home.programs / "kubectl"),
        "CONFCOM_E2E_KUBECONFIG": str(home.kubeconfig),
        "CONFCOM_E2E_IMAGE": image.NAME,
    }


def run(home: Home, words: list[str], *, again: bool) -> int:
    """The tests' exit code; with `again`, what failed is run once more, and that decides."""
    given = os.environ.get("CONFCOM_E2E_KUBECONFIG")
    environment = os.environ | ({} if given else prepare(home))
    cache = f"cache_dir={home.path / 'pytest-cache'}"
    command = ["tests/e2e", "-o", cache, "--durations=10", *words]
    code = run_pytest(*command, environment=environment)
    if code != pytest.ExitCode.TESTS_FAILED or not again:
        return code
    print("e2e: the tests named above failed; once more, those alone", flush=True)
    return run_pytest(*command, "--last-failed", environment=environment)


def main(arguments: list[str]) -> int:
    """Run them, or say why that is not possible here."""
    parser = argparse.ArgumentParser(prog="./dev e2e", description=__doc__)
    parser.add_argument("--where-possible", action="store_true", help="a machine that cannot do it is no failure")
    parser.add_argument("--thorough", action="store_true", help="the long tests of the add-on's states too")
    parser.add_argument("--again", action="store_true", help="run what failed once more, and go by that")
    parser.add_argument("--down", action="store_true", help="stop the cluster afterwards")
    parser.add_argument("--kubernetes", metavar="VERSION", help="another pinned version of Kubernetes than the usual")
    options, words = parser.parse_known_args(arguments)
    if options.kubernetes:
        os.environ["KUBE_VERSION"] = options.kubernetes
    home = default_home()
    own = "CONFCOM_E2E_KUBECONFIG" not in os.environ
    reason = (reason_against(home) or reason_against_image()) if own else None
    if reason:
        print(f"e2e: skipped, not possible on this machine: {reason}", flush=True)
        return 0 if options.where_possible else 1
    try:
        if options.thorough:
            os.environ["CONFCOM_E2E_THOROUGH"] = "1"
            if own and (lacking := postgres.missing()):
                print(f"e2e: the tests of services over PostgreSQL skip: {lacking}", flush=True)
        return run(home, words, again=options.again)
    except subprocess.CalledProcessError as error:
        print(f"e2e: {' '.join(map(str, error.cmd))} failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    finally:
        if options.down and own:
            cluster.script(home, "down.sh")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
