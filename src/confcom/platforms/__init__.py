"""Who can make evidence here: adapters to quoting enclaves, one file each."""
