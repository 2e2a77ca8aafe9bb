"""Mutates and validates pods that use SGX, without I/O. A refusal says what to change."""
