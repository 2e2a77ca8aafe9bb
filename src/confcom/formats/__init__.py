"""Bytes and values: every layout of the SGX and DCAP world, without IO, clock or cryptography."""
