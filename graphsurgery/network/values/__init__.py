"""What a node gives where there are no data: on meta tensors, by formulas, and of which kind."""
