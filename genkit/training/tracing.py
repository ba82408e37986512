"""Steps recorded on any device by tracing: one function of everything that torch does in a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genkit.compiling import compiled_graph, not_compiled
from genkit.random import preserved


class Tracer:
    """A ``Recorder`` that follows torch's operations below autograd, optimiser included.

    Args:
        compiled: whether a step becomes kernels of ``torch.compile``, fused wherever the step allows it. Otherwise its
            operations are repeated as they were, without Python's or autograd's part in them.
    """

    def __init__(self, *, compiled: bool) -> None:
        self.compiled = compiled

    def ready(self, step: int, taken: int) -> bool:
        """From the second step of a run on, because the first makes the optimisers' states.

        A resumed run has them and records at once, so that its steps have the kernels that they would have had.
        """
        return step > 0

    def aside(self) -> AbstractContextManager[None]:
        """In the same place."""
        return nullcontext()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Carries ``work`` out, takes it back, and gives what does the same.

        Raises:
            RuntimeError: for what reads a value, or has a shape that depends on values.
            InvalidOption: where the compiler fails.
        """
        with preserved(), _Rehearsal():
            function, tensors = traced(work)
        replay: Callable[[], None] = partial(function, *tensors)
        if self.compiled:
            keep_in_place(function)
            try:
                replay = compiled_graph(function, tensors)
            except RuntimeError as error:
                raise not_compiled("compiled_graph", error) from error
        return torch.no_grad()(replay)  # the gradients are among the operations


def traced(work: Callable[[], None]) -> tuple[fx.GraphModule, list[Tensor]]:
    """The operations of ``work``, which it carries out, as a function of the tensors that it found, and these."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def without_result() -> tuple[()]:
        work()
        return ()

    found = make_fx(without_result)()
    graph, tensors = fx.Graph(), dict[int, Tensor]()
    copies: dict[fx.Node, fx.Node] = {}
    places: dict[int, fx.Node] = {}
    for node in (node for node in found.graph.nodes if node.op == "get_attr"):
        tensor = getattr(found, node.target)
        if id(tensor) not in tensors:
            tensors[id(tensor)] = tensor.detach()
            places[id(tensor)] = graph.placeholder(f"tensor_{len(places)}")
        copies[node] = places[id(tensor)]
    for node in (node for node in found.graph.nodes if node.op != "get_attr"):
        if isinstance(node.target, OpOverload) and node.target.namespace == "profiler":
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return fx.GraphModule(nn.Module(), graph), list(tensors.values())


class _Rehearsal(TorchDispatchMode):
    """A block that leaves memory as it found it, and in which nothing may depend on values that a replay cannot see."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not declare what it takes
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        require_static(func, args)
        for tensor in (leaf for leaf in tree_leaves(written(func, args, kwargs)) if isinstance(leaf, Tensor)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.before:
                with no_dispatch():
                    self.before[storage.data_ptr()] = storage, storage.clone()
        return func(*args, **kwargs)

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]  # nor what it gets back
        for storage, content in self.before.values():
            storage.copy_(content)


def require_static(operator: OpOverload, args: Sequence[Any]) -> None:
    """Raises ``RuntimeError`` for an operator that reads a value, or gives a shape that depends on values."""
    if torch.Tag.data_dependent_output in operator.tags:
        raise RuntimeError(f"{operator._schema.name} reads a value")
    if torch.Tag.dynamic_output_shape not in operator.tags:
        return
    masks = (torch.bool, torch.uint8)
    if operator is torch.ops.aten.index.Tensor and all(place is None or place.dtype not in masks for place in args[1]):
        return
    raise RuntimeError(f"the shape of what {operator._schema.name} gives depends on values")


def written(operator: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operator writes to."""
    if operator is torch.ops.aten.native_batch_norm.default:  # the running statistics, of which its schema is silent
        return list(args[3:5])
    given = dict(zip((argument.name for argument in operator._schema.arguments), args, strict=False)) | dict(kwargs)
    return [
        given.get(argument.name)
        for argument in operator._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def keep_in_place(function: fx.GraphModule) -> None:
    """Has the compiler leave fused optimisers as they are.

    By itself it refuses them, or replaces them by operators that copy all parameters and states.
    """
    for node in function.graph.nodes:
        if isinstance(node.target, OpOverload) and is_fused_optimizer(node.target):
            node.target = _as_it_is(node.target)
    function.recompile()


def is_fused_optimizer(operator: OpOverload) -> bool:
    """Whether it is one of those that write to parameters and states, and give nothing."""
    return operator._schema.name.startswith("aten::_fused_") and not operator._schema.returns


_library = torch.library.Library("genkit", "FRAGMENT")


@cache
def _as_it_is(operator: OpOverload) -> Any:
    """An operator of genkit's that the compiler knows by its signature alone, and for which its code calls this one."""
    from torch._inductor.ir import FallbackKernel
    from torch._inductor.lowering import register_lowering

    name = f"{operator._schema.name.removeprefix('aten::')}_{operator._overloadname}"
    _, _, signature = str(operator._schema).partition("(")
    _library.define(f"{name}({signature}")
    torch.library.register_fake(f"genkit::{name}", lambda *args, **kwargs: None, lib=_library)
    own = getattr(torch.ops.genkit, name).default

    class Call(FallbackKernel):
        @classmethod
        def process_kernel(cls, kernel: Any, *args: Any, **kwargs: Any) -> Any:
            """Has the compiler see what ``own`` gives, because torch has some of its own carried out for that."""
            return super().process_kernel(own, *args, **kwargs)

    lowering: Any = register_lowering(own, type_promotion_kind=None)
    lowering(lambda *args, **kwargs: Call.create(operator, *args, **kwargs))
    return own
