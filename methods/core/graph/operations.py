"""What the substrate knows of torch's operations, by the names that torch dispatches them under.

Arithmetic on activations is of one of these sorts, and what is in no table is refused where a network is traced
(`methods.core.graph.trace`), never left in float without a word:

* `KINDS`: keyed operations. Layers, matrix products and selective scans multiply; sums, normalisations, activation
  functions, pooling, reductions and elementwise functions make new values, which a scheme may store.
* `MOVES`: they only move, select or repeat values, so that these stay those of a stored tensor.
* `BLENDS`: left in float themselves, but their values are new, so that a layer that takes them rounds its input.
* `SCALINGS` by a number, a parameter or a constant (LayerScale, 1 / sqrt(d)) stay in float; by a number the values stay
  as many, otherwise a layer that takes them rounds its input. Of two activations they are keyed operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any

from torch import Tensor

from methods.core.graph.layers import LAYERS


def _kinds(**names: str) -> dict[str, str]:
    return {name: kind for kind, listed in names.items() for name in listed.split()}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operation name (as torch dispatches it) -> kind.
KINDS = _kinds(
    linear="linear",
    conv="conv2d",
    conv_transpose="conv_transpose2d",
    matmul="matmul __matmul__ __rmatmul__ bmm mm linalg_matmul",
    layer_norm="layer_norm",
    batch_norm="batch_norm",
    norm="rms_norm group_norm instance_norm normalize local_response_norm log_softmax",
    activation=(
        "gelu relu silu relu6 leaky_relu elu celu selu mish hardswish hardsigmoid hardtanh softplus softsign "
        "softshrink hardshrink tanhshrink sigmoid special_expit tanh log_sigmoid logsigmoid prelu rrelu threshold "
        "_threshold"
    ),
    function=(
        "clamp clip clamp_min clamp_max pow __pow__ __rpow__ square sqrt rsqrt reciprocal __rdiv__ __rtruediv__ abs "
        "absolute exp exp2 expm1 log log2 log10 log1p erf special_erf sin cos atan sign round floor ceil"
    ),
    softmax="softmax",
    scan="selective_scan",
    add="add __add__ __radd__ __iadd__",
    sub="sub subtract __sub__ rsub",
    mul="mul multiply __mul__ __rmul__",
    div="div divide true_divide __truediv__ __div__",
    cat="cat concat concatenate",
    pool="mean adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool2d",
    reduce="sum var std norm linalg_norm linalg_vector_norm",
)
AVERAGES = frozenset(name for name, kind in KINDS.items() if kind == "pool" and name != "lp_pool2d")
MULTIPLYING = {*LAYERS, "matmul", "scan"}
BINARY = {"matmul", "add", "sub", "mul", "div"}
# What a function named `selective_scan` takes, in this order: y_t = c_t h_t + d x_t with
# h_t = exp(delta_t a) h_(t-1) + delta_t x_t b_t. Tokens are (n, tokens, channels), a (channels, states), b and c
# (n, tokens, states), d (channels,). torch has none; a network's own is seen if it calls `handle_torch_function`.
SCAN = ("x", "delta", "a", "b", "c", "d")
# Elementwise kinds, which torch can also do in place: under the same name with a _ behind it.
ELEMENTWISE = {"add", "sub", "mul", "div", "activation", "function"}
KINDS |= {f"{name}_": kind for name, kind in KINDS.items() if kind in ELEMENTWISE and not name.endswith("_")}
KINDS |= {"__isub__": "sub", "__imul__": "mul", "__itruediv__": "div", "__idiv__": "div", "__ipow__": "function"}

# A value of the result has the value of the operand at the same place.
SAME = _names(
    "contiguous clone to float double half bfloat16 type type_as cuda cpu detach detach_ data alias dropout dropout_ "
    "dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout requires_grad_ positive lift "
    "lift_fresh _to_copy"
)
# Only the first operand gives values; the second one its shape or type.
LIKE = _names("to type_as expand_as view_as reshape_as")
_RESHAPING = _names(
    "view reshape flatten unflatten ravel view_as reshape_as permute transpose transpose_ swapaxes swapdims movedim "
    "moveaxis t t_ adjoint T mT H mH squeeze squeeze_ unsqueeze unsqueeze_ expand expand_as broadcast_to "
    "broadcast_tensors as_strided rot90 _unsafe_view _reshape_alias"
)
_SELECTING = _names(
    "__getitem__ __iter__ index index_select select slice narrow chunk split split_with_sizes tensor_split "
    "unsafe_chunk unsafe_split unbind hsplit vsplit dsplit gather take take_along_dim masked_select diagonal "
    "diag_embed tril triu sort topk max min amax amin aminmax maximum minimum fmax fmin embedding "
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "max_pool2d_with_indices adaptive_max_pool2d_with_indices"
)
_ARRANGING = _names(
    "roll flip fliplr flipud pad constant_pad_nd unfold pixel_shuffle pixel_unshuffle channel_shuffle "
    "native_channel_shuffle stack hstack vstack dstack column_stack row_stack meshgrid repeat tile repeat_interleave "
    "atleast_1d atleast_2d atleast_3d __reversed__"
)
MOVES = SAME | _RESHAPING | _SELECTING | _ARRANGING
# A tensor made like an activation (`new_zeros`) is among them: a compiled operator may fill it unseen.
BLENDS = _names(
    "interpolate upsample grid_sample roi_align ps_roi_align fold where masked_fill masked_fill_ __setitem__ copy_ "
    "scatter scatter_ scatter_add scatter_add_ index_put index_put_ index_copy index_copy_ index_add index_add_ "
    "index_fill index_fill_ masked_scatter masked_scatter_ slice_scatter select_scatter fill_ zero_ nan_to_num "
    "nan_to_num_ new_zeros new_ones new_empty new_full new_tensor zeros_like ones_like empty_like full_like rand_like "
    "randn_like"
)
SCALINGS = frozenset(
    [name for name, kind in KINDS.items() if kind in {"add", "sub", "mul", "div"}]
    + ["__rsub__", "neg", "neg_", "negative", "negative_"]
)
PRODUCTS = {"mul", "div"}  # elementwise
PRODUCTS_BY_NAME = frozenset(name for name, kind in KINDS.items() if kind in PRODUCTS)
# They carry values of activations out of torch, where nothing can be followed.
LEAVING = _names("item tolist numpy __array__ __float__ __int__ __complex__ __dlpack__")


def name_of(func: Callable[..., Any]) -> str:
    """The name that the tables use: of an attribute (`x.mT`) its own."""
    name = getattr(func, "__name__", "")
    return getattr(func.__self__, "__name__", name) if name == "__get__" else name  # type: ignore[attr-defined]


def is_data(value: Any) -> bool:
    """Whether it is a floating-point tensor of at least one axis."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0


def is_compute(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the operands are floating-point tensors: `x + 1` and index arithmetic have no key.

    Neither has a number that comes as a tensor: mmdet adds `0 * features.sum()` wherever no box needs the features, so
    how often it does so depends on the boxes.
    """
    if kind == "reduce" and len(args) == 1 and not kwargs:
        return False
    if kind == "cat":
        return bool(args) and all(map(is_data, args[0]))
    needed = arity(kind)
    return len(args) >= needed and all(map(is_data, args[:needed]))


def arity(kind: str) -> int:
    """How many quantizable operands a keyed operation has; of `cat`, whose operands are in one argument, 1."""
    return len(SCAN) if kind == "scan" else 2 if kind in BINARY else 1


def operands(kind: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The quantizable operands of a keyed operation: its data inputs, weights and biases excluded."""
    if kind == "cat":
        return tuple(args[0])
    return tuple(args[: arity(kind)])


def positional(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with operands and weight as positional arguments, by which operations are told."""
    second = ("mat2" if "mat2" in kwargs else "other") if kind in BINARY else "weight" if kind in LAYERS else None
    names: tuple[str, ...] = ("tensors",) if kind == "cat" else ("input",) if second is None else ("input", second)
    if kind == "scan":
        names = SCAN
    moved = list(takewhile(kwargs.__contains__, names[len(args) :]))
    left = {name: value for name, value in kwargs.items() if name not in moved}
    return (*args, *(kwargs[name] for name in moved)), left


def macs_of(kind: str, args: tuple[Any, ...], result: Tensor) -> int:
    """Multiply-accumulates of a keyed operation: the length of the sum behind every value of the result.

    Of a scan, whose every value is the end of a recursion, all multiplications (`scan_products`).
    """
    if kind == "scan":
        return sum(macs for macs, _, _ in scan_products(tuple(result.shape), args[2].shape[1]))
    if kind == "conv_transpose":  # the other way round: the number of values that every value of the input goes into
        return int(args[0].numel() * args[1][0].numel())
    if kind == "matmul":
        length = args[0].shape[-1]
    elif kind in ("linear", "conv"):
        length = args[1][0].numel()
    else:
        return 0
    return int(result.numel() * length)


def scan_products(shape: tuple[int, ...], states: int) -> tuple[tuple[int, str | None, str | None], ...]:
    """The multiplications of a selective scan with a result of `shape` (n, tokens, channels): how many, and the inputs
    that are their factors; None is what the scan makes itself: the states, or a product of inputs.
    """
    values = math.prod(shape)
    return (
        (values * states, "delta", "a"),
        (values, "delta", "x"),
        (values * states, None, "b"),
        (values * states, None, None),  # the states' decay
        (values * states, None, "c"),
        (values, "d", "x"),
    )


def writes_in_place(kind: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a keyed operation writes its result into its first operand: `add_`, `+=`, `relu(x, inplace=True)`."""
    if kind not in ELEMENTWISE:
        return False
    name = name_of(func)
    named = (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
    return named or bool(kwargs.get("inplace")) or (kind == "activation" and any(value is True for value in args[1:]))


def tensors(value: Any) -> Iterable[Tensor]:
    """All tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
