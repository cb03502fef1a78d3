"""What may be tuned, as data."""
