"""Conversations without sockets: messages as values, and state machines that turn bytes into them."""
