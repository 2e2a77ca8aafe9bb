"""What the fuzzer works with: seeds, mutations, and the parsers it is turned on."""
