"""`confcom addon`: plans changes of a cluster, makes them, and waits for them."""
