"""Training and trained models from Python: what the commands do, with arrays and pictures in the place of files."""

from __future__ import annotations

import signal
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray
from PIL.Image import Image
from rich.console import Console
from torch import Tensor

from genkit import inference, pictures, progress, session
from genkit.data import from_unit
from genkit.errors import InvalidOption
from genkit.interfaces import Spec
from genkit.latent import LatentModel
from genkit.loading import LoadedBundle, load_bundle
from genkit.plugins import Plugin, Plugins, load_plugins
from genkit.recipe import Recipe
from genkit.run import Run
from genkit.task import Data
from genkit.training.team import joined

_HERE = "this program"
"""Where hooks that no package brought come from."""


def train(
    model: str | Recipe | None = None,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    learning_rate: float | None = None,
    step: str | None = None,
    precision: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    data_dir: str | Path | None = None,
    init_from: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    trackers: Sequence[str] | None = None,
    plugins: Iterable[object] = (),
    disabled: Iterable[str] = (),
    show_progress: bool = True,
) -> TrainedModel:
    """Trains a model, as ``genkit train`` does, and gives it.

    >>> model = genkit.train("mnist_vae", epochs=5, settings={"encoder.hidden": 800}, out="runs/wide")
    >>> model.sample(16, seed=0).shape
    (16, 1, 28, 28)

    Args:
        model: a name of ``genkit models``, or a recipe; with ``resume``, None: the run's own.
        epochs: these and the next six change the recipe's ``training``; None leaves it as it is.
        batch_size: observations a step.
        accumulate: parts that a batch is computed in.
        learning_rate: of the optimiser.
        step: how a step is executed: ``eager``, ``compiled``, ``graph`` or ``compiled_graph``.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        seed: of everything random.
        settings: other changes of the recipe, by the keys of ``genkit show MODEL``.
        device: ``auto``, ``cpu`` or ``cuda``.
        data_dir: where datasets are looked for, and downloaded to.
        init_from: a run, to start from its weights.
        out: the folder of the run; None: a new one, ``runs/<model>-<time>``.
        resume: whether to go on with the run in ``out``. A finished one is given as it is.
        trackers: that follow the run, by name.
        plugins: modules or objects with hooks, which are taken as if they were installed.
        disabled: plugins to leave unloaded.
        show_progress: whether to show it: a live line in a terminal or a notebook, and a line an epoch elsewhere.

    Raises:
        GenkitError: of the kind that says what is wrong, with the remedy.
        KeyboardInterrupt: after an interrupt (in a notebook: Stop). Everything up to that step is saved first; go on
            with ``resume=True``.
    """
    everything = _plugins(plugins, disabled)
    shortcuts = {
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "step": step,
        "precision": precision,
        "seed": seed,
    }
    with joined() as team:
        plan = team.once(
            lambda: session.plan(
                everything.registry,
                model=model,
                settings=settings or {},
                training={name: value for name, value in shortcuts.items() if value is not None},
                out=_path(out),
                resume=resume,
            )
        )
        if not plan.finished:
            if show_progress and team.leads:
                everything.observe("progress", progress.for_console(Console(highlight=False)))
            run, outcome = session.carry_out(
                plan,
                everything,
                device=device,
                data_dir=_path(data_dir),
                init_from=_path(init_from),
                trackers=trackers,
                team=team,
            )
            if outcome != "finished":
                _stop(outcome, run)
    loaded = session.load(plan.path, everything.registry, "last", device or "auto", _path(data_dir))
    return TrainedModel(loaded, everything, Run.open(plan.path))


def load(
    run: str | Path,
    *,
    checkpoint: str | int = "last",
    device: str = "auto",
    data_dir: str | Path | None = None,
    plugins: Iterable[object] = (),
    disabled: Iterable[str] = (),
) -> TrainedModel:
    """The model of a run, with its data.

    >>> genkit.load("runs/first", checkpoint="best").evaluate()["terms"]["loss"]
    62.9...

    Args:
        run: the folder that was trained into.
        checkpoint: ``last``, ``best`` (the lowest test loss), or a number of epochs.
        device: ``auto``, ``cpu`` or ``cuda``.
        data_dir: where the dataset is now; None: where it was.
        plugins: as of ``train``.
        disabled: plugins to leave unloaded.

    Raises:
        InvalidRun: if there is no such run or checkpoint, or it is damaged or another model's.
    """
    everything = _plugins(plugins, disabled)
    loaded = session.load(Path(run), everything.registry, str(checkpoint), device, _path(data_dir))
    return TrainedModel(loaded, everything, Run.open(Path(run)))


class TrainedModel:
    """What ``train`` and ``load`` give. Arrays are numpy's; observations are in [0, 1] where the model has a range.

    It answers as a ``LoadedBundle`` does, by the same names.

    Args:
        loaded: the model at a checkpoint.
        plugins: that it was made of.
        run: that it is of.
    """

    def __init__(self, loaded: session.Loaded, plugins: Plugins, run: Run) -> None:
        self.run = run
        self._loaded, self._plugins = loaded, plugins

    def __repr__(self) -> str:
        epoch = self._loaded.checkpoint.position.epoch
        return f"<genkit.TrainedModel {self.recipe.name} after {epoch} epochs: {self.run.path}>"

    @property
    def recipe(self) -> Recipe:
        """What it was trained by."""
        return self._loaded.recipe

    @property
    def module(self) -> LatentModel:
        """The ``torch.nn.Module``, in evaluation mode: encoder, decoder and prior."""
        return self._loaded.model

    @property
    def spec(self) -> Spec:
        """What its components agreed on: shapes, the value range, the number of labels."""
        return self.module.spec

    @property
    def data(self) -> Data:
        """The training and the test set."""
        return self._loaded.task.data

    def sample(self, n: int, seed: int = 0, condition: int | None = None) -> NDArray[Any]:
        """``n`` observations ``(n, *event_shape)``: means of p(x|z) for latents of the prior.

        Args:
            n: at least 1.
            seed: the same, the same observations.
            condition: the label of all of them; None: each label in turn. For models that take one.

        Raises:
            InvalidOption: for a label that the model does not have.
        """
        if n < 1:
            raise InvalidOption(f"n = {n}: it is at least 1")
        return _array(inference.sample(self.module, n, seed=seed, condition=condition))

    def encode(self, x: ArrayLike, condition: ArrayLike | None = None) -> Any:
        """The posterior's parameters for observations ``(n, *event_shape)``: a named tuple, e.g. ``mean, log_var``.

        Args:
            x: uint8, or floats in [0, 1] where the model has a value range.
            condition: labels ``(n,)`` or one for all, where the encoder takes them.
        """
        x = self._observations(x)
        outputs = inference.encode(self.module, x, self._labels(condition, len(x)))
        kind = namedtuple("Outputs", outputs, rename=True)  # type: ignore[misc]  # the names are the encoder's
        return kind(*map(_array, outputs.values()))

    def decode(self, z: ArrayLike, condition: ArrayLike | None = None, seed: int = 0) -> NDArray[Any]:
        """The observations ``(n, *event_shape)`` of latents ``(n, *latent_shape)``: the mean of p(x|z).

        Args:
            z: latents; whole numbers where they are codes.
            condition: labels ``(n,)`` or one for all, where the decoder takes them.
            seed: for decoders that draw.
        """
        latents = torch.as_tensor(z)
        if latents.is_floating_point():
            latents = latents.float()
        _require(latents, "z", self.spec.latent_shape)
        labels = self._labels(condition, len(latents))
        return _array(inference.decode(self.module, latents, labels, seed=seed))

    def reconstruct(self, x: ArrayLike, condition: ArrayLike | None = None, seed: int = 0) -> NDArray[Any]:
        """X -> a sample of q(z|x) -> the mean of p(x|z), ``(n, *event_shape)``.

        Args:
            x: as of ``encode``.
            condition: labels ``(n,)`` or one for all, where the model takes them.
            seed: of the latents.
        """
        x = self._observations(x)
        return _array(inference.reconstruct(self.module, x, self._labels(condition, len(x)), seed=seed))

    def reconstructions(self, n: int = 8, seed: int = 0) -> Image:
        """A picture of the first ``n`` test observations, over their reconstructions."""
        return pictures.reconstructions(self.module, self.data, n, seed=seed)

    def evaluate(self, samples: int = 64, seed: int = 0) -> dict[str, Any]:
        """What ``genkit evaluate --json`` prints.

        Args:
            samples: importance samples of the likelihood; 0: no likelihood.
            seed: of the latents.
        """
        return session.evaluate(self._loaded, samples=samples, seed=seed)

    def export(
        self,
        out: str | Path | None = None,
        *,
        precisions: Iterable[str] = (),
        format_: str = "onnx",
        opset: int = 18,
        seed: int = 0,
    ) -> LoadedBundle:
        """Writes graphs that are proven to match, as ``genkit export`` does, and opens them.

        >>> model.export("bundle").sample(16).shape
        (16, 1, 28, 28)

        Args:
            out: the bundle; None: ``bundle`` in the run.
            precisions: ``fp16`` and ``int8`` make graphs of that precision as well.
            format_: an exporter of ``genkit components``.
            opset: the ONNX operator set, 18 or newer.
            seed: of the inputs of the proof.

        Raises:
            ExportRefused: where a proof fails; then what was at ``out`` is as it was.
        """
        wanted = session.reduced_precisions(precisions)
        target = _path(out) or self.run.path / "bundle"
        module = self.module.to("cpu")
        try:
            session.export(
                self._loaded, self._plugins, target, format_=format_, opset=opset, seed=seed, precisions=wanted
            )
        finally:
            module.to(self._loaded.device)
        return load_bundle(target, verify=False)

    def _observations(self, x: ArrayLike) -> Tensor:
        tensor = torch.as_tensor(x)
        _require(tensor, "x", self.spec.event_shape)
        if tensor.dtype == torch.uint8:
            return tensor
        tensor, bounds = tensor.float(), self.spec.value_range
        low, high = tensor.min().item(), tensor.max().item()
        if bounds is not None and not 0 <= low <= high <= 1:
            raise InvalidOption(f"x goes from {low:g} to {high:g}, expected floats in [0, 1], or uint8")
        return from_unit(tensor, bounds)

    def _labels(self, condition: ArrayLike | None, n: int) -> Tensor | None:
        if condition is None:
            return None
        classes, labels = self.spec.classes, torch.as_tensor(condition)
        if not classes:
            raise InvalidOption("condition: this model has no labels; leave it out")
        if labels.shape not in ((), (n,)) or labels.is_floating_point():
            found = f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
            raise InvalidOption(f"condition is {found}, expected whole numbers ({n},), or one for all")
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise InvalidOption(f"condition goes from {labels.min()} to {labels.max()}; labels are 0 to {classes - 1}")
        return labels.expand(n)


def _plugins(added: Iterable[object], disabled: Iterable[str]) -> Plugins:
    plugins = load_plugins(disabled)
    for each in added:
        plugins.add(each, Plugin(getattr(each, "__name__", type(each).__name__), _HERE, "-"))
    return plugins


def _stop(outcome: str, run: Run) -> None:
    remedy = f"everything up to this step is saved; to go on: genkit.train(out={str(run.path)!r}, resume=True)"
    if outcome == signal.SIGINT.name:
        raise KeyboardInterrupt(remedy)
    raise SystemExit(128 + signal.Signals[outcome])


def _require(tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
    if tensor.dim() == 0 or tensor.shape[1:] != shape or len(tensor) == 0:
        raise InvalidOption(f"{name} has shape {tuple(tensor.shape)}, expected ({', '.join(('n', *map(str, shape)))})")


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.numpy()
    return array


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
