"""The real Kubernetes of the end-to-end tests: one node in a network namespace, from Go modules and Debian packages."""
