"""The chain of schema revisions of the attestation store; `attestation_store.py` runs it when a store is opened."""
