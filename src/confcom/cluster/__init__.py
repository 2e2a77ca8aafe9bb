"""The Kubernetes API: what the project reads and writes there."""
