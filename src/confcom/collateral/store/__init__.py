"""The store: every version of a document with the time it was seen, and platforms."""
