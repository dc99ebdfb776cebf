"""What every pass promises, measured on any network."""
