"""An `.onnx` file in ONNX Runtime: run, timed, and profiled by operator."""
