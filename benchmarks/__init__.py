"""Speed, never judged in a test: each benchmark prints our figure beside its limit or peer of the same run."""
