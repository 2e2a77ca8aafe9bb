"""The schema of the collateral store: one module per revision in `versions`."""

from confcom.collateral.store.schema import METADATA
from confcom.database.revisions import Chain

_OF_DOCUMENTS = ("chains", "documents", "versions", "sightings")
_HISTORY_OF_PLATFORMS = ("platforms", "platform_sightings", "platform_tcbs", "former_registrations")

CHAIN = Chain(
    service="collateral",
    versions="confcom.collateral.store.migrations:versions",
    first_table="pck_certificates",
    metadata=METADATA,
    rights={
        **dict.fromkeys(_OF_DOCUMENTS, "SELECT, INSERT"),
        **dict.fromkeys(_HISTORY_OF_PLATFORMS, "SELECT, INSERT, DELETE"),
        **dict.fromkeys(("appraisal_policies", "registration_counts", "store_changes"), "SELECT, INSERT, UPDATE"),
        **dict.fromkeys(
            ("pck_certificates", "current_platforms", "registrations", "pck_claims", "lease"),
            "SELECT, INSERT, UPDATE, DELETE",
        ),
    },
)
"""Platforms are removed by administrators alone; nothing of a document ever is."""
