"""The signer of certificates for attested pods."""
