"""Networks and `.onnx` files as pictures."""
