"""Makes container images without a registry or a daemon: layers, their configuration, and one OCI archive."""
