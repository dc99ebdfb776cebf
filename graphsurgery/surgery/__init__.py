"""What passes are made of: edits of a typed network, and how far its outputs moved."""
