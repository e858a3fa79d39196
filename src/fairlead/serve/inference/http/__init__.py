"""HTTP/1.1 for the data plane: llhttp parses, one protocol per connection, no framework."""
