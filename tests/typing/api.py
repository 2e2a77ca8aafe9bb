"""The public API's types: this file is never run, it only has to type-check."""
