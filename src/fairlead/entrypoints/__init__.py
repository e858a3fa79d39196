"""Thin doors: they parse, call `fairlead.api` and draw what comes back."""
