"""Where collateral comes from: adapters, one file each."""
