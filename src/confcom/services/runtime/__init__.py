"""What daemons share: sockets, HTTP, TLS, settings, logs, threads."""
