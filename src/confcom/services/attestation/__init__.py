"""The attestation service: judges evidence by policy and signs tokens, by the API of Azure Attestation."""
