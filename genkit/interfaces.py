"""What a component is: the four interfaces, and the small values that pass between them.

Every component is an ``nn.Module`` and an abstract base class. A component's factory takes the ``Spec`` first, then
keyword options with defaults and type hints; that signature is its whole configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from genkit.errors import InvalidComponent
from genkit.task import Data, Graph, NoGraph, Turn

if TYPE_CHECKING:
    from genkit.latent import LatentModel


@dataclass(frozen=True)
class Spec:
    """What the components of one model agree on.

    Args:
        event_shape: of one observation, e.g. ``(1, 28, 28)``.
        latent_shape: of one latent, e.g. ``(20,)``.
        value_range: the range of ``x`` inside the model; None: real-valued and unscaled.
        classes: how many labels the data has, for models that use them; 0: none.
    """

    event_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    value_range: tuple[float, float] | None = (0.0, 1.0)
    classes: int = 0


class Batch(NamedTuple):
    """``x``: float ``(B, *event_shape)`` in ``spec.value_range``; ``condition``: int64 labels ``(B,)``, or None."""

    x: Tensor
    condition: Tensor | None = None


def divided(batch: Batch, parts: int) -> list[Batch]:
    """A batch in up to ``parts`` parts that are as alike in size as can be."""
    if parts == 1:
        return [batch]
    parts = min(parts, len(batch.x))
    conditions = [None] * parts if batch.condition is None else batch.condition.tensor_split(parts)
    return [Batch(x, condition) for x, condition in zip(batch.x.tensor_split(parts), conditions, strict=True)]


class Terms:
    """What one turn computed on one batch, per observation. The core does the reduction and the logging.

    Args:
        objective: ``(B,)``, what the turn minimises; a scalar where it is a term of the whole batch.
        terms: named tensors of the same shapes, for the metrics.
    """

    def __init__(self, objective: Tensor, **terms: Tensor) -> None:
        if "loss" in terms:
            raise InvalidComponent("a term is named 'loss', which is the objective's name in the metrics; rename it")
        for name, value in (("objective", objective), *terms.items()):
            if not isinstance(value, Tensor):
                raise InvalidComponent(f"the term {name!r} is {value!r}; give a tensor, one value an observation")
        self.objective = objective
        self.terms: dict[str, Tensor] = terms

    @property
    def total(self) -> Tensor:
        """The scalar that is differentiated: the mean of the objective over the batch."""
        return self.objective.mean()


class Pass(NamedTuple):
    """What one forward pass leaves behind.

    ``z`` is ``(K, B, *latent_shape)`` with K = ``loss.samples``, always present; ``posterior`` has batch ``(B,)``, and
    is None in a model without an encoder; ``likelihood`` has batch ``(K, B)``; ``prior`` has batch ``()`` or ``(B,)``.
    """

    batch: Batch
    posterior: Distribution | None
    z: Tensor
    likelihood: Distribution
    prior: Distribution


class Component(nn.Module):
    """What encoders, decoders, priors and losses share. One without parameters or options needs no ``__init__``."""

    def __init__(self, spec: Spec | None = None) -> None:
        super().__init__()

    def prepare(self, model: LatentModel, data: Data) -> None:
        """Called once, when all components and the data exist and before any weights are loaded.

        For what the spec alone cannot tell: a module shared with another component (a codebook, tied weights), a start
        from statistics of the training set, its size.
        """

    def graphs(self, spec: Spec) -> Sequence[Graph | NoGraph]:
        """Further exportable graphs that this component offers, e.g. a learned prior's noise -> z.

        A graph named ``encoder`` or ``decoder`` takes the place of the one that the model makes by itself.
        """
        return ()


class Encoder(Component, ABC):
    """x -> the parameters of q(z|x) -> q(z|x)."""

    outputs: ClassVar[tuple[str, ...]]
    """Names of what ``forward`` returns; they become the names of the exported graph's outputs."""

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``x`` ``(B, *event_shape)`` -> tensors ``(B, ...)``. This is what is traced, so: tensors only."""

    @abstractmethod
    def posterior(self, *params: Tensor) -> Distribution:
        """The parameters -> q(z|x), batch ``(B,)``, event ``latent_shape``."""


class Decoder(Component, ABC):
    """z -> the parameters of p(x|z) -> p(x|z)."""

    outputs: ClassVar[tuple[str, ...]]
    """Names of what ``forward`` returns. ``x`` names a parameter that is the likelihood's mean itself."""

    @abstractmethod
    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``z`` ``(B, *latent_shape)`` -> tensors ``(B, ...)``."""

    @abstractmethod
    def likelihood(self, *params: Tensor) -> Distribution:
        """The parameters, with leading dimensions ``(B,)`` or ``(K, B)`` -> p(x|z) with these as its batch."""


class Prior(Component, ABC):
    """p(z)."""

    @abstractmethod
    def forward(
        self, condition: Tensor | None = None, posterior: Callable[..., Distribution] | None = None
    ) -> Distribution:
        """p(z) with batch ``()``, or ``(B,)`` given a condition, and event ``latent_shape``.

        ``posterior`` is the model's function x -> q(z|x), for priors that are mixtures of posteriors. It is passed
        in and never stored.
        """

    def noise(self) -> Mapping[str, Distribution]:
        """What ``transport`` takes: names, and the distribution of one draw of each (batch ``()``).

        A learned prior that has both is exported as the graph ``prior``, from noise to latents. Where p(z) is a
        factorised normal, Laplace, Gumbel or uniform distribution, that graph is made without them.
        """
        return {}

    def transport(
        self,
        *noise: Tensor,
        condition: Tensor | None = None,
        posterior: Callable[..., Distribution] | None = None,
    ) -> Tensor:
        """Noise ``(B, *event)``, in the order of ``noise()`` -> latents ``(B, *latent_shape)`` of p(z)."""
        raise NotImplementedError(f"{type(self).__name__} gives no map from noise to latents")


class Loss(Component, ABC):
    """What is minimised. Define ``forward`` for one turn over everything, or ``turns`` for anything else."""

    samples: int = 1
    """K, the latent samples drawn per observation."""

    def __init__(self, spec: Spec | None = None) -> None:
        super().__init__(spec)
        if type(self).forward is Loss.forward and type(self).turns is Loss.turns:
            raise TypeError(f"{type(self).__name__} must define forward(step) or turns(model)")

    def forward(self, step: Pass) -> Terms:
        """One forward pass of the model -> the objective and its terms."""
        raise NotImplementedError(f"{type(self).__name__} computes its terms in its turns")

    def turns(self, model: LatentModel) -> Sequence[Turn]:
        """The turns of one step. The default is one, over every trainable parameter of the model and the loss."""
        parameters = [p for module in (model, self) for p in module.parameters() if p.requires_grad]
        return [Turn("main", lambda batch: self(model(batch, self.samples)), parameters)]


def divergence(posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
    r""":math:`\mathrm{KL}(q(z|x)\,\|\,p(z))` in nats, ``(B,)``.

    The closed form where ``torch.distributions`` has one registered; else the estimate
    :math:`\frac1K \sum_k \log q(z_k|x) - \log p(z_k)` from the samples ``z`` ``(K, B, *latent_shape)`` of q.
    """
    try:
        return kl_divergence(posterior, prior)
    except NotImplementedError:
        return (posterior.log_prob(z) - prior.log_prob(z)).mean(0)


def named(component: Encoder | Decoder, params: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
    """What ``component`` made of ``rows`` rows, one tensor ``(rows, ...)`` for each of its ``outputs``.

    In float32 also where it ran in bfloat16.
    """
    if not isinstance(params, tuple | list) or len(params) != len(component.outputs):
        given = f"{len(params)} tensors" if isinstance(params, tuple | list) else f"a {type(params).__name__}"
        raise InvalidComponent(
            f"{type(component).__name__}.forward returned {given}; its outputs = {component.outputs} name the tensors "
            "of a tuple, one each",
            culprit=type(component).forward,
        )
    for name, value in zip(component.outputs, params, strict=True):
        if not isinstance(value, Tensor) or value.shape[:1] != (rows,):
            given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"the type {type(value).__name__}"
            raise InvalidComponent(
                f"{type(component).__name__}.forward was given {rows} rows, and its output {name!r} has {given}; give "
                f"a tensor whose first dimension is {rows}",
                culprit=type(component).forward,
            )
    return tuple(p.float() if p.dtype in (torch.bfloat16, torch.float16) else p for p in params)


def fitting(
    method: Callable[..., Distribution], distribution: Distribution, event: tuple[int, ...], *batches: tuple[int, ...]
) -> Distribution:
    """What a component's ``method`` gave: a distribution of that event shape and one of these batch shapes.

    Raises:
        InvalidComponent: where it has others, and would go on to be summed over the wrong dimensions.
    """
    if isinstance(distribution, Distribution):
        batch_shape, event_shape = distribution.batch_shape, distribution.event_shape
        if event_shape == event and batch_shape in batches:
            return distribution
    expected = f"batch {' or '.join(str(list(batch)) for batch in batches)} and event {list(event)}"
    kind = type(distribution).__name__
    if not isinstance(distribution, Distribution):
        raise InvalidComponent(
            f"{method.__qualname__} gave a {kind}; it gives a torch.distributions.Distribution of {expected}",
            culprit=method,
        )
    given = f"{kind} of batch {list(batch_shape)} and event {list(event_shape)}"
    remedy = ""
    if any(batch_shape + event_shape == (*batch, *event) for batch in batches) and len(event_shape) < len(event):
        remedy = f"; wrap it: Independent({kind}(...), {len(event) - len(event_shape)})"
    raise InvalidComponent(f"{method.__qualname__} gave {given}; the model needs {expected}{remedy}", culprit=method)


@contextmanager
def unvalidated() -> Iterator[None]:
    """Switches off the argument checks of ``torch.distributions`` inside the block.

    They cost a host synchronisation each, cannot be traced, and turn a diverging loss into a stray ValueError.
    """
    before: Any = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
