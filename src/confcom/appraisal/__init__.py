"""Verify, then judge: the meaning of evidence, without IO; the time is always a parameter."""
