"""The database of a service: an SQLite file, or a PostgreSQL server that its replicas share."""
