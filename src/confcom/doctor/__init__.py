"""`confcom doctor`: why something does not work here, and what to do."""
