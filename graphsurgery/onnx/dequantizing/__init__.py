"""A quantised file as the floating network that it stands for: weights, values, and operators that compute in integers.

Every value in 8 bits stands for a floating one, `(number - zero) · scale`, and becomes that. So whatever moves values
stays as it is, what computes in integers becomes the floating operator that it is an approximation of, and what begins
and ends the 8 bits goes.
"""

from graphsurgery.onnx.dequantizing.dequantizer import dequantise

__all__ = ["dequantise"]
