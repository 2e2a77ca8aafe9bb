"""What the node offers: EPC and the SGX devices."""
