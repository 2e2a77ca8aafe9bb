"""The exporter: what containers request and use of EPC."""
