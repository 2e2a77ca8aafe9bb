"""Confidential computing on Kubernetes nodes with Intel SGX."""
