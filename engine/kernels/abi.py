"""The structs that the compiled kernels take, field by field as in weights.h, attention.h and
decoder.h, which say what the fields are.
"""

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from typing import Any, ClassVar

FLOAT32, BFLOAT16, PACKED = range(3)  # kinds of weights
FLOAT_CACHE, BFLOAT16_CACHE, INT8_CACHE = range(3)
MOST_PARTS = 3  # of a Linear
MOST_GROUP = 64  # query heads that share a KV head


class _Struct(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]]


class Weight(_Struct):
    _fields_: ClassVar = [
        ("panels", c_void_p),
        ("order", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("group_size", c_int64),
        ("kind", c_int32),
        ("bits", c_int32),
        ("has_offsets", c_int32),
        ("scale_bytes", c_int32),
    ]


class Linear(_Struct):
    _fields_: ClassVar = [("num_parts", c_int64), ("parts", POINTER(Weight)), ("bias", c_void_p)]


class Cache(_Struct):
    _fields_: ClassVar = [
        ("data", c_void_p),
        ("scales", c_void_p),
        ("groups", c_int64),
        ("kind", c_int32),
        ("scales_are_bfloat16", c_int32),
    ]


class Layer(_Struct):
    _fields_: ClassVar = [
        ("attention_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("qkv", Linear),
        ("output", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("keys", Cache),
        ("values", Cache),
        ("window", c_int64),
    ]


class Model(_Struct):
    _fields_: ClassVar = [
        ("layers", POINTER(Layer)),
        ("num_layers", c_int64),
        ("hidden_size", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("rotary_dim", c_int64),
        ("logn_length", c_int64),
        ("slopes", c_void_p),
        ("norm", c_void_p),
        ("embedding", POINTER(Weight)),
        ("head", Linear),
        ("eps", c_float),
        ("rotary_magnitude", c_float),
        ("is_bfloat16", c_int32),
    ]


class StepInput(_Struct):
    _fields_: ClassVar = [
        ("num_tokens", c_int64),
        ("num_sequences", c_int64),
        ("block_size", c_int64),
        ("table_width", c_int64),
        ("num_outputs", c_int64),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("query_starts", c_void_p),
        ("context_lens", c_void_p),
        ("block_tables", c_void_p),
        ("outputs", c_void_p),
        ("frequencies", POINTER(c_void_p)),
    ]


STRUCTS = (Weight, Linear, Cache, Layer, Model, StepInput)  # in the order of struct_sizes
