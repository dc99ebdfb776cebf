"""Operators on single numbers: activations, functions, arithmetic, comparisons. A line each."""

from __future__ import annotations

import operator

from torch import nn

from graphsurgery.network.operators.record import Trait, record

_COMPUTES = Trait.ELEMENTWISE | Trait.FLOAT | Trait.FRESH
_SLOPED = _COMPUTES | Trait.KEEPS_ZERO
_ASKS = Trait.ELEMENTWISE | Trait.FRESH
_PASSES = Trait.ELEMENTWISE | Trait.AFFINE | Trait.PASSES | Trait.KEEPS_RANGE | Trait.KEEPS_ZERO
_PAIRS = Trait.BROADCAST | Trait.FRESH
_ARITHMETIC = _PAIRS | Trait.FLOAT

# Activations ------------------------------------------------------------------------------------------------------

record("relu", nn.ReLU, traits=_COMPUTES | Trait.SETTLES, onnx="Relu")
record("relu6", nn.ReLU6, traits=_COMPUTES | Trait.SETTLES)
record("hardtanh", nn.Hardtanh, traits=_COMPUTES | Trait.SETTLES)
record("leaky_relu", nn.LeakyReLU, traits=_SLOPED)
record("elu", nn.ELU, traits=_SLOPED)
record("selu", nn.SELU, traits=_SLOPED)
record("celu", nn.CELU, traits=_SLOPED)
record("gelu", nn.GELU, traits=_SLOPED)
record("silu", nn.SiLU, traits=_SLOPED)
record("mish", nn.Mish, traits=_SLOPED, onnx="Mish")
record("hardswish", nn.Hardswish, traits=_SLOPED, onnx="HardSwish")
record("softsign", nn.Softsign, traits=_SLOPED, onnx="Softsign")
record("tanh", nn.Tanh, traits=_SLOPED, onnx="Tanh")
record("sigmoid", nn.Sigmoid, traits=_COMPUTES, onnx="Sigmoid")
record("hardsigmoid", nn.Hardsigmoid, traits=_COMPUTES)
record("softplus", nn.Softplus, traits=_COMPUTES, onnx="Softplus")
record("logsigmoid", nn.LogSigmoid, traits=_COMPUTES)
record("hardshrink", nn.Hardshrink, traits=_COMPUTES)
record("softshrink", nn.Softshrink, traits=_COMPUTES)
record("tanhshrink", nn.Tanhshrink, traits=_COMPUTES)
record("threshold", nn.Threshold, traits=_COMPUTES)
record("rrelu", nn.RReLU, traits=_COMPUTES)

# What does nothing in evaluation ----------------------------------------------------------------------------------

record("dropout", nn.Dropout, traits=_PASSES | Trait.FLOAT)
record("dropout1d", nn.Dropout1d, traits=_PASSES | Trait.FLOAT)
record("dropout2d", nn.Dropout2d, traits=_PASSES | Trait.FLOAT)
record("dropout3d", nn.Dropout3d, traits=_PASSES | Trait.FLOAT)
record("alpha_dropout", nn.AlphaDropout, traits=_PASSES | Trait.FLOAT)
record("feature_alpha_dropout", nn.FeatureAlphaDropout, traits=_PASSES | Trait.FLOAT)
record(
    "stochastic_depth",
    traits=_PASSES | Trait.FLOAT,
    foreign_modules=["torchvision.ops.stochastic_depth.StochasticDepth"],
    foreign_functions=["torchvision.ops.stochastic_depth.stochastic_depth"],
)
record("identity", nn.Identity, traits=_PASSES | Trait.FLOAT | Trait.MOVES | Trait.LAYS_OUT)
record("clone", traits=_PASSES | Trait.FLOAT | Trait.FRESH)
record("positive", traits=_PASSES, also=[operator.pos])
record("contiguous", traits=_PASSES | Trait.MOVES | Trait.LAYS_OUT)

# Functions of one number ------------------------------------------------------------------------------------------

record("abs absolute", traits=_COMPUTES, also=[abs, operator.abs], onnx="Abs")
record("neg negative", traits=_SLOPED | Trait.AFFINE, also=[operator.neg], onnx="Neg")
record("sign", traits=_COMPUTES, onnx="Sign")
record("sgn", traits=_COMPUTES)
record("exp", traits=_COMPUTES, onnx="Exp")
record("exp2", traits=_COMPUTES)
record("expm1", traits=_SLOPED)
record("log", traits=_COMPUTES, onnx="Log")
record("log1p", traits=_SLOPED)
record("log2", traits=_COMPUTES)
record("log10", traits=_COMPUTES)
record("logit", traits=_COMPUTES)
record("sqrt", traits=_COMPUTES, onnx="Sqrt")
record("rsqrt", traits=_COMPUTES)
record("square", traits=_COMPUTES)
record("reciprocal", traits=_COMPUTES, onnx="Reciprocal")
record("sin", traits=_SLOPED, onnx="Sin")
record("cos", traits=_COMPUTES, onnx="Cos")
record("tan", traits=_SLOPED, onnx="Tan")
record("sinh", traits=_SLOPED, onnx="Sinh")
record("cosh", traits=_COMPUTES, onnx="Cosh")
record("asin arcsin", traits=_SLOPED, onnx="Asin")
record("acos arccos", traits=_COMPUTES, onnx="Acos")
record("atan arctan", traits=_SLOPED, onnx="Atan")
record("asinh arcsinh", traits=_SLOPED, onnx="Asinh")
record("acosh arccosh", traits=_COMPUTES, onnx="Acosh")
record("atanh arctanh", traits=_SLOPED, onnx="Atanh")
record("sinc", traits=_COMPUTES)
record("erf", traits=_SLOPED, onnx="Erf")
record("erfc", traits=_COMPUTES)
record("erfinv", traits=_SLOPED)
record("lgamma", traits=_COMPUTES)
record("digamma", traits=_COMPUTES)
record("i0", traits=_COMPUTES)
record("deg2rad", traits=_SLOPED | Trait.AFFINE)
record("rad2deg", traits=_SLOPED | Trait.AFFINE)
record("floor", traits=_COMPUTES, onnx="Floor")
record("ceil", traits=_COMPUTES, onnx="Ceil")
record("round", traits=_COMPUTES, onnx="Round")
record("trunc fix", traits=_COMPUTES)
record("frac", traits=_COMPUTES)
record("nan_to_num", traits=_SLOPED)
record("angle", traits=_ASKS)
record("conj resolve_conj resolve_neg", traits=Trait.ELEMENTWISE)
record("detach", traits=Trait.ELEMENTWISE | Trait.AFFINE | Trait.FLOAT)
record("isfinite isinf isneginf isposinf", traits=_ASKS)
record("isnan", traits=_ASKS, onnx="IsNaN")
record("signbit", traits=_ASKS)
record("logical_not", traits=_ASKS, onnx="Not")
record("bitwise_not", traits=_ASKS, also=[operator.invert, operator.inv])
record("to type float double half bfloat16 cpu cuda type_as", traits=Trait.ELEMENTWISE | Trait.AFFINE, functions=False)
record("bool int long", traits=Trait.ELEMENTWISE, functions=False)
record("requires_grad fill zero", traits=Trait.ELEMENTWISE, functions=False)

# Functions of several numbers -------------------------------------------------------------------------------------

record("add", traits=_ARITHMETIC | Trait.AFFINE, also=[operator.add, operator.iadd], onnx="Add")
record("sub subtract", traits=_ARITHMETIC | Trait.AFFINE, also=[operator.sub, operator.isub], onnx="Sub")
record("rsub", traits=_PAIRS | Trait.AFFINE)
record("mul multiply", traits=_ARITHMETIC, also=[operator.mul, operator.imul], onnx="Mul")
record("div divide true_divide", traits=_ARITHMETIC, also=[operator.truediv, operator.itruediv], onnx="Div")
record("pow", traits=_ARITHMETIC, also=[operator.pow, operator.ipow], onnx="Pow")
record("float_power", traits=_PAIRS)
record("floor_divide", traits=_PAIRS, also=[operator.floordiv, operator.ifloordiv])
record("remainder", traits=_PAIRS, also=[operator.mod, operator.imod])
record("fmod", traits=_PAIRS)
record("addcmul", traits=_PAIRS)
record("addcdiv", traits=_PAIRS)
record("lerp", traits=_PAIRS)
record("ldexp", traits=_PAIRS)
record("hypot", traits=_PAIRS)
record("atan2 arctan2", traits=_PAIRS)
record("copysign", traits=_PAIRS)
record("heaviside", traits=_PAIRS)
record("nextafter", traits=_PAIRS)
record("xlogy", traits=_PAIRS)
record("logaddexp logaddexp2", traits=_PAIRS)
record("maximum fmax", traits=_PAIRS)
record("minimum fmin", traits=_PAIRS)
record("clamp clip clamp_max clamp_min", traits=_PAIRS)
record("where", traits=_PAIRS)
record("masked_fill", traits=_PAIRS)
record("eq", traits=_PAIRS, also=[operator.eq], onnx="Equal")
record("ne not_equal", traits=_PAIRS, also=[operator.ne])
record("gt greater", traits=_PAIRS, also=[operator.gt], onnx="Greater")
record("ge greater_equal", traits=_PAIRS, also=[operator.ge], onnx="GreaterOrEqual")
record("lt less", traits=_PAIRS, also=[operator.lt], onnx="Less")
record("le less_equal", traits=_PAIRS, also=[operator.le], onnx="LessOrEqual")
record("isclose", traits=_PAIRS)
record("logical_and logical_or logical_xor", traits=_PAIRS)
record("bitwise_and", traits=_PAIRS, also=[operator.and_, operator.iand], onnx="And")
record("bitwise_or", traits=_PAIRS, also=[operator.or_, operator.ior], onnx="Or")
record("bitwise_xor", traits=_PAIRS, also=[operator.xor, operator.ixor], onnx="Xor")
