"""Processes: configuration, wiring and a loop; no domain logic."""
