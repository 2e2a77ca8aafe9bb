"""The metrics exporter: what containers request and use of EPC."""
