"""The schema of the collateral store: one module per revision in `versions`."""

from confcom.collateral.store.schema import (
    APPRAISAL_POLICIES,
    CHAINS,
    CHANGES,
    DOCUMENTS,
    FORMER_REGISTRATIONS,
    LEASES,
    METADATA,
    PCK_CERTIFICATES,
    PCK_CLAIMS,
    PLATFORM_TCBS,
    PLATFORMS,
    REGISTRATION_COUNTS,
    REGISTRATIONS,
    SIGHTINGS,
    VERSIONS,
)
from confcom.database.revisions import Chain

_APPENDED, _ADDED_AND_REMOVED = "SELECT, INSERT", "SELECT, INSERT, DELETE"
_CHANGED, _ALL = "SELECT, INSERT, UPDATE", "SELECT, INSERT, UPDATE, DELETE"

CHAIN = Chain(
    service="collateral",
    versions="confcom.collateral.store.migrations:versions",
    first_table="pck_certificates",
    metadata=METADATA,
    rights={
        **{table.name: _APPENDED for table in (CHAINS, DOCUMENTS, VERSIONS, SIGHTINGS)},
        **{table.name: _ADDED_AND_REMOVED for table in (PLATFORM_TCBS, FORMER_REGISTRATIONS)},
        **{table.name: _CHANGED for table in (APPRAISAL_POLICIES, REGISTRATION_COUNTS, CHANGES)},
        **{table.name: _ALL for table in (PCK_CERTIFICATES, PLATFORMS, REGISTRATIONS, PCK_CLAIMS, LEASES)},
    },
)
"""Platforms are removed by administrators alone; nothing of a document ever is."""
