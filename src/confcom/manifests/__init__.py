"""Deployment configuration to Kubernetes objects."""
