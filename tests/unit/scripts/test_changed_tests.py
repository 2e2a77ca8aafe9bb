"""`./dev check` chooses tests by what changed."""

from __future__ import annotations

import pytest
from changed_tests import tests_of as chosen

TESTS = {
    "tests/unit/pki/test_crl.py": "from confcom.pki.crl import load_crl\n",
    "tests/unit/pki/test_chain.py": "from confcom.pki import roots\nfrom confcom.pki.chain import verify_chain\n",
    "tests/unit/pki/test_validity.py": "import confcom.pki.chain\n",
    "tests/unit/collateral/store/test_store.py": "",
    "tests/property/test_crl.py": "from confcom.pki.crl_reader import read\n",
}


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        ("src/confcom/pki/crl.py", ["tests/unit/pki/test_crl.py"]),
        ("src/confcom/pki/chain.py", ["tests/unit/pki/test_chain.py", "tests/unit/pki/test_validity.py"]),
        ("src/confcom/pki/roots.py", ["tests/unit/pki/test_chain.py"]),
        ("src/confcom/collateral/store/__init__.py", ["tests/unit/collateral/store/test_store.py"]),
        ("tests/property/test_crl.py", ["tests/property/test_crl.py"]),
        ("docs/explanation/epc.md", []),
        ("tests/service/test_webhook.py", []),
    ],
)
def test_tests_are_those_that_import_or_mirror_a_module(changed: str, tests: list[str]) -> None:
    assert chosen({changed}, TESTS) == tests
