"""`confcom addon`: changes to a cluster, their plan, and the wait for them."""
