"""Fault injection: ``make test-faults`` kills, damages and mistypes, and counts what is lost."""
