"""The chain of schema revisions of the attestation store: `attestation_store.CHAIN`."""
