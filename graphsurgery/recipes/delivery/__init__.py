"""The last step of a recipe: one `.onnx` file, checked, timed, and with eight bits where asked."""
