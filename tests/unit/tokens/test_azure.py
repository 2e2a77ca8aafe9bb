"""Names and values of Azure Attestation's API that no exchange needs."""

from __future__ import annotations

from confcom.tokens.azure import psw_versions


def test_baselines_name_the_platform_software_where_azure_does() -> None:
    assert psw_versions(10) == {"minimumPswLinuxVersion": "2.9", "minimumPswWindowsVersion": "2.7.101.2"}
    assert psw_versions(13) == {"minimumPswLinuxVersion": "2.17", "minimumPswWindowsVersion": "2.16"}
    assert psw_versions(20) == {}
