"""Concern 3: the memory and the motor."""
