"""The schema of the collateral store: one module per revision in `versions`."""

from confcom.collateral.store.schema import (
    APPRAISAL_POLICIES,
    CHAINS,
    CHANGES,
    CURRENT_PLATFORMS,
    DOCUMENTS,
    FORMER_REGISTRATIONS,
    LEASES,
    METADATA,
    PCK_CERTIFICATES,
    PCK_CLAIMS,
    PLATFORM_SIGHTINGS,
    PLATFORM_TCBS,
    PLATFORMS,
    REGISTRATION_COUNTS,
    REGISTRATIONS,
    SIGHTINGS,
    VERSIONS,
)
from confcom.database.revisions import Chain

_APPENDED, _ADDED_AND_REMOVED = "SELECT, INSERT", "SELECT, INSERT, DELETE"
_OF_PLATFORMS = (PLATFORMS, PLATFORM_SIGHTINGS, PLATFORM_TCBS, FORMER_REGISTRATIONS)
_CHANGED, _ALL = "SELECT, INSERT, UPDATE", "SELECT, INSERT, UPDATE, DELETE"

CHAIN = Chain(
    service="collateral",
    versions="confcom.collateral.store.migrations:versions",
    first_table="pck_certificates",
    metadata=METADATA,
    rights={
        **{table.name: _APPENDED for table in (CHAINS, DOCUMENTS, VERSIONS, SIGHTINGS)},
        **{table.name: _ADDED_AND_REMOVED for table in _OF_PLATFORMS},
        **{table.name: _CHANGED for table in (APPRAISAL_POLICIES, REGISTRATION_COUNTS, CHANGES)},
        **{table.name: _ALL for table in (PCK_CERTIFICATES, CURRENT_PLATFORMS, REGISTRATIONS, PCK_CLAIMS, LEASES)},
    },
)
"""Platforms are removed by administrators alone; nothing of a document ever is."""
