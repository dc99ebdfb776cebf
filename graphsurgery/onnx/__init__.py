"""`.onnx` files: opened, edited, written, and proved in ONNX Runtime."""
