"""Concern 1: an artifact goes in, a smaller or faster bundle comes out."""
