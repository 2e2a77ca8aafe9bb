"""The admission webhook: reviews of pods that use SGX."""
