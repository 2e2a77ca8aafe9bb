"""The quote helper: one AESM service for every enclave of a node."""
