"""Attestation tokens: the policy language that decides them, their claims, their signatures. No I/O, no clock."""
