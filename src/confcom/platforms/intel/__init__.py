"""Intel's libraries in a worker process of their own."""
