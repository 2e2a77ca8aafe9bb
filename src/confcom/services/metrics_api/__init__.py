"""The metrics API: answers HPA with what pods use of EPC and of the quote helper."""
