"""More channels and more layers with the outputs as they were: shares, fresh weights, repeats, identities."""
