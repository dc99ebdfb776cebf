"""What a network gives: its tensors by their place, and the classes that hold them."""
