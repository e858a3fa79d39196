"""Concern 4: predictions go in, signals come out."""
