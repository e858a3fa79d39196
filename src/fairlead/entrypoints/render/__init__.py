"""Draws reports: as text in a terminal, as one self-contained HTML page."""
