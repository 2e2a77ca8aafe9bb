"""A machine with SGX and the authority behind it, in software; its root is trusted by nobody by default."""
