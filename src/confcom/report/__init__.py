"""Verdicts and inspections for people: text, pictures and HTML."""
