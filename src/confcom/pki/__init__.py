"""Certificates, revocation lists and signatures; knows nothing of quotes."""
