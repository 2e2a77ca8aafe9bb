"""A machine with SGX and the authority behind it, in software; no verifier trusts its root by default."""
