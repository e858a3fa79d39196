"""The nouns of Fairlead: plain values that every other layer speaks in."""
