"""Edits written back into the `.onnx` file that a network came from."""
