"""What becomes of a pod that uses SGX: completed, or refused with a sentence that says what to change; pure."""
