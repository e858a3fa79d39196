"""Concern 2: a bundle goes in, predictions come out."""
