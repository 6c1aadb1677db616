"""A shop's own labeled clips: read, evaluated, trained on."""
