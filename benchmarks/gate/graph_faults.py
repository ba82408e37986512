"""Faults planted in a graph: each changes a ``ModelProto``, at a place that the random state may choose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from benchmarks.gate.faults import NUMBERS, ROWS, WEIGHTS, Fault, collector
from benchmarks.gate.subjects import CLASSES, CODES, LATENT
from benchmarks.gate.surgery import nodes_of, replace, reweight, set_attribute, splice, weights

Random = np.random.Generator
Plant = Callable[[ModelProto, Random], None]

GRAPH_FAULTS: list[Fault[Plant]] = []
fault = collector(GRAPH_FAULTS)

DECODERS = ("mlp_decoder", "conv_decoder", "conditional_decoder")
"""Those that read a latent ``z``, and whose first output is ``x``."""
PICTURES = (*DECODERS, "vq_decoder")
FLOATS = ("mlp_encoder", *PICTURES)
ALL = (*FLOATS, "vq_encoder")


def _output(model: ModelProto) -> str:
    name: str = model.graph.output[0].name
    return name


def _one_of(value: ValueInfoProto, random: Random) -> np.ndarray:
    """1 in one element of ``value`` and 0 in the others, without the batch."""
    mask = np.zeros([dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]])
    mask.flat[random.integers(mask.size)] = 1
    return mask


def _hidden(model: ModelProto, random: Random) -> str:
    """What some linear layer or convolution gives."""
    node = random.choice(np.array(nodes_of(model, "Gemm", "Conv", "ConvTranspose"), dtype=object))
    name: str = node.output[0]
    return name


def _one(random: Random, items: list[TensorProto]) -> TensorProto:
    return items[random.integers(len(items))]


# Outputs that do not depend on what they should depend on


@fault(*DECODERS, says={"graph proof": "does not react to z["})
def constant_output(model: ModelProto, random: Random) -> None:
    """Every latent gives the picture of the zero latent."""
    splice(model, "z", "new = Mul(old, zero)", zero=0.0)


@fault(*DECODERS, says={"graph proof": "does not react to z["})
def ignored_latent(model: ModelProto, random: Random) -> None:
    """One of the latents is not read."""
    splice(model, "z", "new = Mul(old, mask)", mask=1 - _one_of(model.graph.input[0], random))


@fault("conditional_decoder", says={"graph proof": "does not react to condition[0]"})
def ignored_label(model: ModelProto, random: Random) -> None:
    """Every label counts as one and the same."""
    splice(model, "condition", "none = Mul(old, zero)\nnew = Add(none, label)", zero=0, label=random.integers(CLASSES))


@fault(*FLOATS, "vq_encoder", says={"graph proof": "at batch 2, expected"})
def one_row_for_all(model: ModelProto, random: Random) -> None:
    """The label says ``batch``, and there is one row, which any comparison that broadcasts takes for all of them."""
    splice(model, _output(model), "new = Slice(old, start, end, axis)", start=[0], end=[1], axis=[0])


@fault(*FLOATS, says=NUMBERS)
def first_row_for_all(model: ModelProto, random: Random) -> None:
    """Every row gets the answer to the first."""
    code = """
        first = Slice(old, start, end, axis)
        shape = Shape(old)
        new = Expand(first, shape)
    """
    splice(model, _output(model), code, start=[0], end=[1], axis=[0])


# Not finite


@fault(*DECODERS, says={"graph proof": "values are not finite, the first at batch 1", "onnxruntime": "not finite"})
def not_a_number_in_the_tails(model: ModelProto, random: Random) -> None:
    """NaN where |z| > 3.2, which a batch drawn from the prior seldom reaches."""
    code = """
        size = Abs(old)
        far = Greater(size, edge)
        new = Where(far, nothing, old)
    """
    splice(model, "z", code, edge=3.2, nothing=np.nan)


@fault(*DECODERS, says={"onnxruntime": "values are not finite"})
def infinity_less_infinity(model: ModelProto, random: Random) -> None:
    """exp(20 z) - exp(20 z), which is nothing in float64 and NaN in float32's tails."""
    code = """
        steep = Mul(old, twenty)
        large = Exp(steep)
        nothing = Sub(large, large)
        new = Add(old, nothing)
    """
    splice(model, "z", code, twenty=20.0)


@fault("mlp_decoder", "vq_decoder", says={"graph proof": "values are not finite"})
def infinite_pixel(model: ModelProto, random: Random) -> None:
    """One pixel is infinite."""
    mask = _one_of(model.graph.output[0], random)
    splice(model, "x", "new = Add(old, mask)", mask=np.where(mask, np.inf, 0))


# Shapes, dtypes, names


@fault(*PICTURES, says={"structure": "the output x has shape"})
def broadcastable_output(model: ModelProto, random: Random) -> None:
    """The mean over the columns, of a shape that broadcasts against the right one."""
    splice(model, "x", "new = ReduceMean<keepdims=1>(old, axis)", axis=[-1])
    model.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 1


@fault(*PICTURES, says={"structure": "the output x has shape"})
def missing_channel_dimension(model: ModelProto, random: Random) -> None:
    """[batch, 8, 8] for [batch, 1, 8, 8]."""
    splice(model, "x", "new = Squeeze(old, axis)", axis=[1])
    del model.graph.output[0].type.tensor_type.shape.dim[1]


@fault("mlp_encoder", says={"structure": "is float64, expected float32"})
def wide_output(model: ModelProto, random: Random) -> None:
    """float64 where float32 was promised."""
    splice(model, "mean", "new = Cast<to=11>(old)")
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


@fault("vq_encoder", says={"structure": "the output code is int32, expected int64"})
def narrow_codes(model: ModelProto, random: Random) -> None:
    """int32 where int64 was promised."""
    splice(model, "code", "new = Cast<to=6>(old)")
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32


@fault("vq_encoder", says={"structure": "the output code is float32, expected int64"})
def codes_as_floats(model: ModelProto, random: Random) -> None:
    """The right codes, as float32."""
    splice(model, "code", "new = Cast<to=1>(old)")
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT


@fault("mlp_encoder", says={"graph proof": "mean: "})
def swapped_contents(model: ModelProto, random: Random) -> None:
    """The mean under the name of log_var and the other way round; their shapes are alike."""
    other = {"mean": "log_var", "log_var": "mean"}
    for node in model.graph.node:
        node.output[:] = [other.get(name, name) for name in node.output]


@fault("mlp_encoder", says={"graph proof": "log_var: "})
def duplicated_output(model: ModelProto, random: Random) -> None:
    """The mean under both names."""
    node = next(node for node in model.graph.node if "log_var" in node.output)
    replace(model, node, "new = Identity(mean)")


@fault("mlp_encoder", "conditional_decoder", says={"structure": "the outputs are "})
def swapped_order(model: ModelProto, random: Random) -> None:
    """The outputs the other way round."""
    model.graph.output.reverse()


@fault("mlp_encoder", says={"structure": "the outputs are mean, expected mean, log_var"})
def missing_output(model: ModelProto, random: Random) -> None:
    """The last output is not declared."""
    del model.graph.output[-1]


@fault("mlp_encoder", says={"structure": "the outputs are mean, log_var, extra, expected mean, log_var"})
def extra_output(model: ModelProto, random: Random) -> None:
    """One output too many."""
    model.graph.node.append(helper.make_node("Identity", ["mean"], ["extra"]))
    model.graph.output.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["batch", LATENT]))


@fault(*PICTURES, says={"structure": "the outputs are picture"})
def renamed_output(model: ModelProto, random: Random) -> None:
    """The picture under another name."""
    for node in model.graph.node:
        node.output[:] = ["picture" if name == "x" else name for name in node.output]
    model.graph.output[0].name = "picture"


@fault("conditional_decoder", says={"structure": "the inputs are z, expected z, condition"})
def missing_input(model: ModelProto, random: Random) -> None:
    """The label has become a part of the graph."""
    code = """
        rows = Shape<start=0, end=1>(z)
        labels = Expand(label, rows)
        new = Gather(a, labels)
    """
    del model.graph.input[1]
    replace(model, nodes_of(model, "Gather")[0], code, label=random.integers(CLASSES, size=1))


@fault(*DECODERS, says={"structure": "the inputs are latent"})
def renamed_input(model: ModelProto, random: Random) -> None:
    """The latent under another name."""
    splice(model, "z", "new = Identity(old)")
    model.graph.node[0].input[0] = model.graph.input[0].name = "latent"


# The batch


@fault(*ALL, says={"structure": "has shape [3, "})
def static_batch(model: ModelProto, random: Random) -> None:
    """Every input and output is labelled with the batch of the example."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    del model.graph.value_info[:]


@fault(*FLOATS, says={"structure": "has shape [3, "})
def static_output(model: ModelProto, random: Random) -> None:
    """The inputs are symbolic in the batch, and an output is labelled with the batch of the example."""
    model.graph.output[-1].type.tensor_type.shape.dim[0].dim_value = 3


@fault("conditional_decoder", says={"structure": "the input condition has shape [3]"})
def static_label(model: ModelProto, random: Random) -> None:
    """One of two inputs is labelled with the batch of the example."""
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 3


@fault("mlp_decoder", "conv_decoder", "conditional_decoder", "mlp_encoder", says={"graph proof": "fails at batch 1"})
def static_batch_in_the_middle(model: ModelProto, random: Random) -> None:
    """The labels say ``batch``, and a reshape inside says 64."""
    node = nodes_of(model, "Reshape")[0]
    target = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    shape = numpy_helper.to_array(target).copy()
    shape[0] = 64
    target.CopyFrom(numpy_helper.from_array(shape, target.name))


@fault(*DECODERS, says=ROWS)
def leak_between_rows(model: ModelProto, random: Random) -> None:
    """A thousandth of the batch's mean in every row, as the statistics of a batch would do it."""
    code = """
        all = ReduceMean<keepdims=1>(old, axis)
        leak = Mul(all, little)
        new = Add(old, leak)
    """
    splice(model, "z", code, little=1e-3, axis=[0])


@fault(*DECODERS, says={"structure": "the operator DynamicQuantizeLinear scales a batch as a whole"} | ROWS)
def scale_of_the_batch(model: ModelProto, random: Random) -> None:
    """int8 with a scale that is measured anew for every batch, as dynamic quantization does."""
    code = """
        whole, scale, zero = DynamicQuantizeLinear(old)
        new = DequantizeLinear(whole, scale, zero)
    """
    splice(model, "z", code)


@fault("conv_decoder", says=NUMBERS)
def batch_norm_in_training_mode(model: ModelProto, random: Random) -> None:
    """Batch norm by the statistics of the batch."""
    (node,) = nodes_of(model, "BatchNormalization")
    set_attribute(node, "training_mode", 1)
    node.output.extend(["mean_of_the_batch", "variance_of_the_batch"])


@fault(*FLOATS, says=NUMBERS)
def reversed_rows(model: ModelProto, random: Random) -> None:
    """The answers come in the reverse order."""
    constants = {"start": [-1], "end": [-(2**62)], "axis": [0], "step": [-1]}
    splice(model, _output(model), "new = Slice(old, start, end, axis, step)", **constants)


@fault("mlp_decoder", "conv_decoder", "conditional_decoder", "vq_decoder", says=NUMBERS)
def one_row_of_the_batch(model: ModelProto, random: Random) -> None:
    """One row among the first 64 is off by a ten-thousandth, whatever is in it."""
    code = """
        count = Shape<start=0, end=1>(old)
        rows = Squeeze(count)
        index = Range(first, rows, step)
        is = Equal(index, row)
        off = Cast<to=1>(is)
        little = Mul(off, size)
        column = Unsqueeze(little, axes)
        new = Add(old, column)
    """
    constants = {"first": 0, "step": 1, "row": random.integers(64), "size": 1e-4, "axes": [1, 2, 3]}
    splice(model, "x", code, **constants)


def _at_batch(model: ModelProto, rows: int) -> None:
    code = """
        count = Shape<start=0, end=1>(old)
        is = Equal(count, rows)
        off = Cast<to=1>(is)
        little = Mul(off, size)
        new = Add(old, little)
    """
    splice(model, _output(model), code, rows=[rows], size=1e-4)


@fault(*FLOATS, says={"graph proof": "times PyTorch's own at batch 1,"})
def batch_of_one(model: ModelProto, random: Random) -> None:
    """Off by a ten-thousandth at batch 1 and nowhere else."""
    _at_batch(model, 1)


@fault(*FLOATS, says={"graph proof": "times PyTorch's own at batch 64,"})
def batch_of_64(model: ModelProto, random: Random) -> None:
    """Off by a ten-thousandth at batch 64 and nowhere else."""
    _at_batch(model, 64)


# Random


@fault(*DECODERS, says={"structure": "the operator RandomNormalLike is random"})
def noise(model: ModelProto, random: Random) -> None:
    """Noise that is too small for float32 to see."""
    splice(model, "z", "noise = RandomNormalLike<scale=1e-12>(old)\nnew = Add(old, noise)")


@fault(*DECODERS, says={"structure": "the operator RandomUniformLike is random"})
def seeded_noise(model: ModelProto, random: Random) -> None:
    """Noise with a seed, which is the same in every new session."""
    splice(model, "z", "noise = RandomUniformLike<high=1e-6, low=0.0, seed=1.0>(old)\nnew = Add(old, noise)")


@fault(*DECODERS, says={"structure": "the operator Dropout is random"})
def dropout_in_training_mode(model: ModelProto, random: Random) -> None:
    """Dropout that is switched on."""
    code = "new = Dropout(old, ratio, training)"
    splice(model, _hidden(model, random), code, ratio=0.01, training=np.array(True))


@fault("mlp_decoder", "vq_decoder", says={"structure": "the operator Bernoulli is random"})
def samples_for_means(model: ModelProto, random: Random) -> None:
    """A draw from the likelihood in the place of its mean."""
    splice(model, "x", "new = Bernoulli(old)")


def _branch(operator: str) -> GraphProto:
    value = helper.make_tensor_value_info("made", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(operator, ["z"], ["made"])], "branch", [], [value])


@fault(*DECODERS, says={"structure": "the operator RandomNormalLike is random"})
def noise_in_a_branch_that_is_not_taken(model: ModelProto, random: Random) -> None:
    """Noise inside of an If whose condition never holds."""
    splice(model, "z", "new = Identity(old)")
    place = model.graph.node[0]
    taken, other = _branch("Identity"), _branch("RandomNormalLike")
    node = helper.make_node("If", ["never"], place.output, then_branch=other, else_branch=taken)
    model.graph.node[0].CopyFrom(node)
    model.graph.initializer.append(numpy_helper.from_array(np.array(False), "never"))


@fault(*DECODERS, says={"structure": "the operator RandomNormalLike is random"})
def noise_in_a_function(model: ModelProto, random: Random) -> None:
    """Noise inside of one of the model's own functions."""
    body = [
        helper.make_node("RandomNormalLike", ["a"], ["b"], scale=1e-7),
        helper.make_node("Add", ["a", "b"], ["c"]),
    ]
    opset = [helper.make_opsetid("", model.opset_import[0].version)]
    model.functions.append(helper.make_function("own", "Smooth", ["a"], ["c"], body, opset))
    model.opset_import.append(helper.make_opsetid("own", 1))
    splice(model, "z", "new = Identity(old)")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Smooth", "own"


@fault(*FLOATS, says=NUMBERS)
def frozen_noise(model: ModelProto, random: Random) -> None:
    """Noise that was drawn once and became a part of the graph."""
    shape = [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim[1:]]
    splice(model, _output(model), "new = Add(old, noise)", noise=1e-6 * random.standard_normal(shape))


# Only for some inputs


@fault(*DECODERS, says=NUMBERS)
def clipped_latent(model: ModelProto, random: Random) -> None:
    """The latent is clipped at 4, where its prior hardly ever is."""
    splice(model, "z", "new = Clip(old, low, high)", low=-4.0, high=4.0)


@fault("mlp_decoder", says=NUMBERS)
def relu_that_ends_at_6(model: ModelProto, random: Random) -> None:
    """ReLU6 for ReLU."""
    node = nodes_of(model, "Relu")[random.integers(2)]
    replace(model, node, "new = Clip(a, low, high)", low=0.0, high=6.0)


@fault(*DECODERS, says=NUMBERS)
def near_zero(model: ModelProto, random: Random) -> None:
    """Latents below a hundredth are taken for zero."""
    code = """
        size = Abs(old)
        close = Less(size, edge)
        new = Where(close, nothing, old)
    """
    splice(model, "z", code, edge=0.01, nothing=0.0)


@fault(*DECODERS, says=NUMBERS)
def at_zero(model: ModelProto, random: Random) -> None:
    """Off by a ten-thousandth for the zero latent and no other."""
    code = """
        sizes = Abs(old)
        size = ReduceSum<keepdims=1>(sizes, axis)
        zero = Equal(size, nothing)
        off = Cast<to=1>(zero)
        little = Mul(off, amount)
        new = Add(old, little)
    """
    splice(model, "z", code, axis=[1], nothing=0.0, amount=1e-4)


@fault("conditional_decoder", says=NUMBERS)
def one_label(model: ModelProto, random: Random) -> None:
    """One label counts as the next."""
    label = random.integers(CLASSES)
    code = "is = Equal(old, label)\nnew = Where(is, other, old)"
    splice(model, "condition", code, label=label, other=(label + 1) % CLASSES)


@fault("vq_decoder", says=NUMBERS)
def one_code(model: ModelProto, random: Random) -> None:
    """One code counts as the next."""
    code = random.integers(CODES)
    text = "is = Equal(old, code)\nnew = Where(is, other, old)"
    splice(model, "code", text, code=code, other=(code + 1) % CODES)


@fault("mlp_decoder", "vq_decoder", says=NUMBERS)
def one_pixel(model: ModelProto, random: Random) -> None:
    """One pixel is off by a hundred-thousandth."""
    splice(model, "x", "new = Add(old, mask)", mask=1e-5 * _one_of(model.graph.output[0], random))


@fault("conv_decoder", says={"graph proof": "scale: numbers up to"})
def floor_below_large_numbers(model: ModelProto, random: Random) -> None:
    """A standard deviation is at least a thousandth, in an output that is large elsewhere."""
    splice(model, "scale", "new = Max(old, floor)", floor=1e-3)


# Weights


def _nudge(tensor: TensorProto, index: int, factor: float) -> None:
    def nudged(array: np.ndarray) -> np.ndarray:
        array.flat[index] *= factor
        return array

    reweight(tensor, nudged)


@fault(*FLOATS, says=NUMBERS | WEIGHTS)
def nudged_weight(model: ModelProto, random: Random) -> None:
    """The largest weight of a tensor times 1.0001."""
    tensor = _one(random, [tensor for tensor in weights(model) if len(tensor.dims) > 1])
    _nudge(tensor, int(np.abs(numpy_helper.to_array(tensor)).argmax()), 1.0001)


@fault(*ALL, says=WEIGHTS)
def last_bit_of_the_least_weight(model: ModelProto, random: Random) -> None:
    """The smallest weight of a tensor, by its last bit: too little for any comparison of outputs."""
    tensor = _one(random, weights(model))
    index = int(np.abs(numpy_helper.to_array(tensor)).argmin())
    _nudge(tensor, index, 1 + 2.0**-22)


@fault("vq_encoder", says=WEIGHTS)
def nudged_weight_before_codes(model: ModelProto, random: Random) -> None:
    """A weight times 1.0001 in front of a choice between codes, which stays as it is."""
    tensor = _one(random, weights(model))
    _nudge(tensor, int(random.integers(np.prod(tensor.dims))), 1.0001)


@fault(*FLOATS, says=NUMBERS)
def decoy(model: ModelProto, random: Random) -> None:
    """The checkpoint's tensor is in the file, and the graph reads another."""
    tensor = _one(random, weights(model))
    for node in model.graph.node:
        node.input[:] = ["other" if name == tensor.name else name for name in node.input]
    other = TensorProto()
    other.CopyFrom(tensor)
    other.name = "other"
    reweight(other, lambda array: array * 1.0001)
    model.graph.initializer.append(other)


@fault(*FLOATS, says=NUMBERS | WEIGHTS)
def stale_weights(model: ModelProto, random: Random) -> None:
    """All weights as they were a few steps of training ago."""
    for tensor in weights(model):
        reweight(tensor, lambda array: array + 1e-5 * random.standard_normal(array.shape))


@fault("mlp_decoder", says=NUMBERS | WEIGHTS)
def transposed_square_weight(model: ModelProto, random: Random) -> None:
    """A square weight the other way round."""
    (tensor,) = (tensor for tensor in weights(model) if len(tensor.dims) == 2 and tensor.dims[0] == tensor.dims[1])
    reweight(tensor, np.transpose)


@fault("mlp_encoder", says=NUMBERS | WEIGHTS)
def exchanged_tensors(model: ModelProto, random: Random) -> None:
    """Two weights of the same shape under each other's name."""
    one, other = (tensor for tensor in weights(model) if tensor.name in ("mean.weight", "log_var.weight"))
    content = numpy_helper.to_array(one)
    reweight(one, lambda _: numpy_helper.to_array(other))
    reweight(other, lambda _: content)


@fault(*FLOATS, says=NUMBERS | WEIGHTS)
def swapped_channels(model: ModelProto, random: Random) -> None:
    """Two channels of a weight in each other's place."""

    def swapped(array: np.ndarray) -> np.ndarray:
        axis = int(array.shape[0] == 1)
        one, other = random.choice(array.shape[axis], 2, replace=False)
        order = np.arange(array.shape[axis])
        order[[one, other]] = other, one
        return array.take(order, axis)

    reweight(_one(random, weights(model)), swapped)


@fault("conv_decoder", "vq_decoder", says=NUMBERS | WEIGHTS)
def flipped_kernel(model: ModelProto, random: Random) -> None:
    """A convolution in the sense of mathematics in the place of a correlation."""
    tensor = _one(random, [tensor for tensor in weights(model) if len(tensor.dims) == 4])
    reweight(tensor, lambda array: array[:, :, ::-1, ::-1])


@fault(*FLOATS, says=NUMBERS)
def missing_bias(model: ModelProto, random: Random) -> None:
    """A layer without its bias."""
    node = random.choice(np.array(nodes_of(model, "Gemm", "Conv", "ConvTranspose"), dtype=object))
    del node.input[2]


@fault("conditional_decoder", says=NUMBERS | WEIGHTS)
def swapped_embeddings(model: ModelProto, random: Random) -> None:
    """Two labels in each other's place."""
    (tensor,) = (tensor for tensor in weights(model) if tensor.dims[0] == CLASSES)
    one, other = random.choice(CLASSES, 2, replace=False)
    order = np.arange(CLASSES)
    order[[one, other]] = other, one
    reweight(tensor, lambda array: array[order])


@fault(*FLOATS, says=NUMBERS | WEIGHTS)
def weights_of_fp16(model: ModelProto, random: Random) -> None:
    """Every weight as float16 would have it."""
    for tensor in weights(model):
        reweight(tensor, lambda array: array.astype(np.float16))


@fault(*FLOATS, says=NUMBERS | WEIGHTS)
def weights_of_bf16(model: ModelProto, random: Random) -> None:
    """Every weight as bfloat16 would have it."""
    for tensor in weights(model):
        reweight(tensor, lambda array: (array.view(np.uint32) & 0xFFFF0000).view(np.float32))


# Batch norm


def _norm(model: ModelProto) -> NodeProto:
    (node,) = nodes_of(model, "BatchNormalization")
    return node


def _statistic(model: ModelProto, position: int) -> TensorProto:
    name = _norm(model).input[position]
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


@fault("conv_decoder", says=NUMBERS)
def other_epsilon(model: ModelProto, random: Random) -> None:
    """The epsilon of batch norm is 1.2e-5 instead of 1e-5."""
    set_attribute(_norm(model), "epsilon", 1.2e-5)


@fault("conv_decoder", says=NUMBERS | WEIGHTS)
def other_momentum(model: ModelProto, random: Random) -> None:
    """Running statistics as another momentum would have left them: a little nearer to where they began."""
    reweight(_statistic(model, 3), lambda mean: 0.9999 * mean)
    reweight(_statistic(model, 4), lambda variance: 0.9999 * variance + 0.0001)


@fault("conv_decoder", says=NUMBERS | WEIGHTS)
def fresh_statistics(model: ModelProto, random: Random) -> None:
    """Running statistics that have seen no data."""
    reweight(_statistic(model, 3), np.zeros_like)
    reweight(_statistic(model, 4), np.ones_like)


@fault("conv_decoder", says=NUMBERS)
def swapped_statistics(model: ModelProto, random: Random) -> None:
    """Scale and variance in each other's place."""
    node = _norm(model)
    node.input[1], node.input[4] = node.input[4], node.input[1]


# Other functions


@fault("mlp_encoder", "mlp_decoder", "vq_decoder", says=NUMBERS)
def leaky_relu(model: ModelProto, random: Random) -> None:
    """LeakyReLU with a slope of 1e-4 for ReLU."""
    node = nodes_of(model, "Relu")[-1]
    replace(model, node, "new = LeakyRelu<alpha=1e-4>(a)")


_TANH_GELU = """
    square = Mul(a, a)
    quarter = Mul(square, bend)
    factor = Add(quarter, one)
    inner = Mul(a, factor)
    scaled = Mul(inner, slope)
    new = Tanh(scaled)
"""


@fault("conv_decoder", says=NUMBERS)
def tanh_gelu(model: ModelProto, random: Random) -> None:
    """GELU by its approximation with tanh, once or everywhere."""
    found = nodes_of(model, "Erf")
    for node in found[: random.integers(1, len(found) + 1)]:
        replace(model, node, _TANH_GELU, bend=2 * 0.044715, one=1.0, slope=2 / np.sqrt(np.pi))


@fault("conv_decoder", says=NUMBERS)
def sigmoid_gelu(model: ModelProto, random: Random) -> None:
    """GELU as x sigmoid(1.702 x)."""
    for node in nodes_of(model, "Erf"):
        replace(model, node, "inner = Mul(a, slope)\nnew = Tanh(inner)", slope=0.851 * np.sqrt(2))


@fault("conditional_decoder", says=NUMBERS)
def other_elu(model: ModelProto, random: Random) -> None:
    """ELU with alpha = 1.0001."""
    replace(model, nodes_of(model, "Tanh")[0], "below = Tanh(a)\nnew = Mul(below, alpha)", alpha=1.0001)


@fault("conditional_decoder", says=NUMBERS)
def softmax_over_columns(model: ModelProto, random: Random) -> None:
    """The softmax is over another axis, and its shape the same."""
    set_attribute(nodes_of(model, "Softmax")[0], "axis", int(random.integers(2, 4)))


@fault("vq_decoder", says=NUMBERS)
def hard_sigmoid(model: ModelProto, random: Random) -> None:
    """A sigmoid of straight lines."""
    replace(model, nodes_of(model, "Sigmoid")[0], "new = HardSigmoid(a)")


@fault("mlp_decoder", says=NUMBERS)
def rational_tanh(model: ModelProto, random: Random) -> None:
    """A tanh by a quotient of polynomials that is right to a thousandth in the middle, clipped at its ends."""
    code = """
        square = Mul(a, a)
        more = Add(square, fifteen)
        top = Mul(a, more)
        six = Mul(square, sixth)
        bottom = Add(six, fifteen)
        ratio = Div(top, bottom)
        new = Clip(ratio, low, high)
    """
    replace(model, nodes_of(model, "Tanh")[0], code, fifteen=15.0, sixth=6.0, low=-1.0, high=1.0)


@fault("conv_decoder", "vq_decoder", says=NUMBERS)
def shifted_padding(model: ModelProto, random: Random) -> None:
    """All of the padding on one side, which leaves the shape as it is."""
    nodes = [node for node in nodes_of(model, "Conv", "ConvTranspose") if any(_pads(node))]
    node = nodes[random.integers(len(nodes))]
    top, left, bottom, right = _pads(node)
    set_attribute(node, "pads", [top + bottom, left + right, 0, 0])


def _pads(node: NodeProto) -> list[int]:
    return next(list(attribute.ints) for attribute in node.attribute if attribute.name == "pads")


@fault("conv_decoder", "mlp_decoder", "vq_decoder", says=NUMBERS)
def rows_for_columns(model: ModelProto, random: Random) -> None:
    """The picture is transposed, as by another order of the dimensions; it is square."""
    splice(model, "x", "new = Transpose<perm=[0, 1, 3, 2]>(old)")


@fault("mlp_encoder", says=NUMBERS)
def missing_scaling(model: ModelProto, random: Random) -> None:
    """Pixels from 0 to 1 where the network wants -1 to 1."""
    replace(model, nodes_of(model, "Sub")[0], "new = Identity(x)")


@fault(*PICTURES, says=NUMBERS)
def scaled_by_255_256(model: ModelProto, random: Random) -> None:
    """Off by one in the number of grey levels."""
    splice(model, "x", "new = Mul(old, ratio)", ratio=255 / 256)


@fault("mlp_decoder", "vq_decoder", "conditional_decoder", says=NUMBERS)
def small_offset(model: ModelProto, random: Random) -> None:
    """2e-7 too much everywhere: fifty times less than 1e-5."""
    splice(model, "x", "new = Add(old, offset)", offset=2e-7)


@fault("conv_decoder", says=NUMBERS)
def output_clipped_to_the_unit_interval(model: ModelProto, random: Random) -> None:
    """A mean that nothing bounds, clipped to [0, 1] as pictures are."""
    splice(model, "x", "new = Clip(old, low, high)", low=0.0, high=1.0)


@fault("mlp_decoder", says=NUMBERS)
def output_clipped_for_a_logarithm(model: ModelProto, random: Random) -> None:
    """Pixels are kept a millionth away from 0 and 1."""
    splice(model, "x", "new = Clip(old, low, high)", low=1e-6, high=1 - 1e-6)


# Precision


@fault(*FLOATS, says=NUMBERS)
def layer_in_fp16(model: ModelProto, random: Random) -> None:
    """What one layer gives is rounded to float16 and back."""
    splice(model, _hidden(model, random), "narrow = Cast<to=10>(old)\nnew = Cast<to=1>(narrow)")


@fault(*FLOATS, says=NUMBERS)
def layer_in_bf16(model: ModelProto, random: Random) -> None:
    """What one layer gives is rounded to bfloat16 and back."""
    splice(model, _hidden(model, random), "narrow = Cast<to=16>(old)\nnew = Cast<to=1>(narrow)")


@fault("mlp_encoder", says={"structure": "the output mean is float16, expected float32"})
def graph_in_fp16(model: ModelProto, random: Random) -> None:
    """The whole graph in float16."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


@fault(*FLOATS, says=NUMBERS | WEIGHTS)
def int8_weight(model: ModelProto, random: Random) -> None:
    """A weight as int8 with a scale, in a graph that says float32 at both ends."""
    tensor = _one(random, weights(model))
    name = tensor.name
    array = numpy_helper.to_array(tensor)
    scale = np.abs(array).max() / 127
    whole = np.rint(array / scale).astype(np.int8)
    tensor.CopyFrom(numpy_helper.from_array(whole, name))
    splice(model, name, "wide = Cast<to=1>(old)\nnew = Mul(wide, scale)", scale=scale)


@fault(*DECODERS, says={"onnxruntime": "times PyTorch's own at batch"})
def cancellation(model: ModelProto, random: Random) -> None:
    """The latent + 1000 - 1000: right on paper and in float64, and four digits poorer in float32."""
    splice(model, "z", "far = Add(old, large)\nnew = Sub(far, large)", large=1000.0)


# Codes


@fault("vq_encoder", says={"graph proof": "whole numbers are wrong, limit 0"})
def codes_from_1(model: ModelProto, random: Random) -> None:
    """Codes are counted from 1, but for the last."""
    splice(model, "code", "more = Add(old, one)\nnew = Min(more, last)", one=1, last=CODES - 1)


@fault("vq_encoder", says={"graph proof": "whole numbers are wrong, limit 0"})
def second_code_in_a_close_race(model: ModelProto, random: Random) -> None:
    """The second best code where it is almost as good as the best."""
    code = """
        scores, codes = TopK<largest=0>(a, two)
        first = Gather<axis=-1>(codes, zero)
        second = Gather<axis=-1>(codes, one)
        best = Gather<axis=-1>(scores, zero)
        next = Gather<axis=-1>(scores, one)
        gap = Sub(next, best)
        close = Less(gap, edge)
        new = Where(close, second, first)
    """
    replace(model, nodes_of(model, "ArgMin")[0], code, two=[2], zero=0, one=1, edge=0.02)


@fault("vq_encoder", says={"graph proof": "whole numbers are wrong, limit 0"})
def distance_without_its_square(model: ModelProto, random: Random) -> None:
    """The nearest code by its direction alone."""
    node = next(node for node in model.graph.node if nodes_of(model, "ArgMin")[0].input[0] in node.output)
    replace(model, node, "new = Neg(b)")


@fault("vq_encoder", says={"graph proof": "whole numbers are wrong, limit 0"})
def transposed_codes(model: ModelProto, random: Random) -> None:
    """The grid of codes by columns."""
    splice(model, "code", "new = Transpose<perm=[0, 2, 1]>(old)")


# The file


@fault(*ALL, says={"structure": "opset 18 was asked for, the file says 19"})
def other_opset_label(model: ModelProto, random: Random) -> None:
    """The label of another opset, in which all of the operators exist as well."""
    model.opset_import[0].version = 19


@fault(*FLOATS, says={"structure": "the operator QuickGelu is of com.microsoft"})
def operator_of_one_runtime(model: ModelProto, random: Random) -> None:
    """An operator that only onnxruntime has, and which changes nothing."""
    splice(model, _output(model), "slow = Mul(old, zero)\nnothing = Identity(slow)\nnew = Add(old, nothing)", zero=0.0)
    node = nodes_of(model, "Identity")[-1]
    node.op_type, node.domain = "QuickGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


@fault(*ALL, says={"structure": "parts of the file carry notes of the exporting machine"})
def notes_of_the_machine(model: ModelProto, random: Random) -> None:
    """A stack trace with the paths of the machine that exported it."""
    note = model.graph.node[random.integers(len(model.graph.node))].metadata_props.add()
    note.key, note.value = "pkg.torch.onnx.stack_trace", 'File "/home/somebody/model.py", line 1'


def _externalise(model: ModelProto, random: Random, location: str) -> None:
    tensor = _one(random, weights(model))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    place = tensor.external_data.add()
    place.key, place.value = "location", location


@fault(*ALL, says={"structure": "is in another file"})
def missing_external_data(model: ModelProto, random: Random) -> None:
    """A tensor is in a file that did not come along."""
    _externalise(model, random, "weights.data")


@fault(*ALL, says={"structure": "is in another file"})
def external_data_of_somebody_else(model: ModelProto, random: Random) -> None:
    """A tensor is said to be in a file outside of the bundle."""
    _externalise(model, random, "../../../etc/hostname")
