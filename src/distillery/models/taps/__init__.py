"""Networks whose layers and attention are recorded."""
