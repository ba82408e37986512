"""genkit: a plugin-extensible toolkit for generative models on PyTorch.

Every public name is reachable from here and is imported on first use, so that ``import genkit`` alone imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch.distributions import Distribution as Distribution

    from genkit.bundle import DEPLOYMENT as DEPLOYMENT
    from genkit.bundle import DRAWN as DRAWN
    from genkit.bundle import REDUCED as REDUCED
    from genkit.bundle import Absent as Absent
    from genkit.bundle import Accuracy as Accuracy
    from genkit.bundle import Arrays as Arrays
    from genkit.bundle import Bundle as Bundle
    from genkit.bundle import BundledGraph as BundledGraph
    from genkit.bundle import Case as Case
    from genkit.bundle import Check as Check
    from genkit.bundle import Drawn as Drawn
    from genkit.bundle import Errors as Errors
    from genkit.bundle import Exporter as Exporter
    from genkit.bundle import Function as Function
    from genkit.bundle import LossChange as LossChange
    from genkit.bundle import Manifest as Manifest
    from genkit.bundle import ReducedGraph as ReducedGraph
    from genkit.bundle import ReducedOutput as ReducedOutput
    from genkit.bundle import ReducedPrecision as ReducedPrecision
    from genkit.bundle import Report as Report
    from genkit.bundle import Runtime as Runtime
    from genkit.bundle import Score as Score
    from genkit.bundle import TunedRuntime as TunedRuntime
    from genkit.bundle import Value as Value
    from genkit.bundle import manifest_schema as manifest_schema
    from genkit.bundle import seal as seal
    from genkit.bundle import stage as stage
    from genkit.bundle import write_cases as write_cases
    from genkit.data import Transformed as Transformed
    from genkit.data import hold_out as hold_out
    from genkit.data import observations as observations
    from genkit.distributions import Delta as Delta
    from genkit.errors import DataUnavailable as DataUnavailable
    from genkit.errors import Diverged as Diverged
    from genkit.errors import ExportRefused as ExportRefused
    from genkit.errors import GenkitError as GenkitError
    from genkit.errors import InvalidBundle as InvalidBundle
    from genkit.errors import InvalidComponent as InvalidComponent
    from genkit.errors import InvalidOption as InvalidOption
    from genkit.errors import InvalidRun as InvalidRun
    from genkit.errors import NoDensity as NoDensity
    from genkit.errors import PluginWarning as PluginWarning
    from genkit.errors import RuntimeMissing as RuntimeMissing
    from genkit.errors import UnknownName as UnknownName
    from genkit.errors import Unsupported as Unsupported
    from genkit.errors import VerificationFailed as VerificationFailed
    from genkit.errors import unknown as unknown
    from genkit.files import cache_directory as cache_directory
    from genkit.files import write_atomically as write_atomically
    from genkit.hookspecs import API_VERSION as API_VERSION
    from genkit.images import ImageSide as ImageSide
    from genkit.images import LabelledImages as LabelledImages
    from genkit.images import failures_of as failures_of
    from genkit.images import image_data as image_data
    from genkit.images import image_tensor as image_tensor
    from genkit.images import open_image as open_image
    from genkit.interfaces import Batch as Batch
    from genkit.interfaces import Component as Component
    from genkit.interfaces import Decoder as Decoder
    from genkit.interfaces import Encoder as Encoder
    from genkit.interfaces import Loss as Loss
    from genkit.interfaces import Pass as Pass
    from genkit.interfaces import Prior as Prior
    from genkit.interfaces import Spec as Spec
    from genkit.interfaces import Terms as Terms
    from genkit.interfaces import divergence as divergence
    from genkit.interfaces import unvalidated as unvalidated
    from genkit.latent import LatentModel as LatentModel
    from genkit.loading import LoadedBundle as LoadedBundle
    from genkit.loading import load_bundle as load_bundle
    from genkit.npm import npm_package as npm_package
    from genkit.parity import ByDefault as ByDefault
    from genkit.parity import Cell as Cell
    from genkit.parity import Parity as Parity
    from genkit.parity import RuntimeInfo as RuntimeInfo
    from genkit.parity import compare_runtimes as compare_runtimes
    from genkit.parity import list_runtimes as list_runtimes
    from genkit.pictures import picture as picture
    from genkit.plugins import Plugins as Plugins
    from genkit.plugins import load_plugins as load_plugins
    from genkit.proving import prove as prove
    from genkit.recipe import Choice as Choice
    from genkit.recipe import Recipe as Recipe
    from genkit.recipe import TrainingOptions as TrainingOptions
    from genkit.registry import Registry as Registry
    from genkit.run import Run as Run
    from genkit.task import Data as Data
    from genkit.task import Graph as Graph
    from genkit.task import Input as Input
    from genkit.task import NoGraph as NoGraph
    from genkit.task import Task as Task
    from genkit.task import Turn as Turn
    from genkit.trained import TrainedModel as TrainedModel
    from genkit.trained import load as load
    from genkit.trained import train as train
    from genkit.verification import verify as verify

__version__ = "0.1.0"

hookimpl = pluggy.HookimplMarker("genkit")
"""Marks a function of a plugin as the implementation of the hook of its name."""

_HOMES = {
    "genkit.bundle": (
        "DEPLOYMENT",
        "DRAWN",
        "REDUCED",
        "Absent",
        "Accuracy",
        "Arrays",
        "Bundle",
        "BundledGraph",
        "Case",
        "Check",
        "Drawn",
        "Errors",
        "Exporter",
        "Function",
        "LossChange",
        "Manifest",
        "ReducedGraph",
        "ReducedOutput",
        "ReducedPrecision",
        "Report",
        "Runtime",
        "Score",
        "TunedRuntime",
        "Value",
        "manifest_schema",
        "seal",
        "stage",
        "write_cases",
    ),
    "genkit.data": ("Transformed", "hold_out", "observations"),
    "genkit.distributions": ("Delta",),
    "genkit.errors": (
        "DataUnavailable",
        "Diverged",
        "ExportRefused",
        "GenkitError",
        "InvalidBundle",
        "InvalidComponent",
        "InvalidOption",
        "InvalidRun",
        "NoDensity",
        "PluginWarning",
        "RuntimeMissing",
        "UnknownName",
        "Unsupported",
        "VerificationFailed",
        "unknown",
    ),
    "genkit.files": ("cache_directory", "write_atomically"),
    "genkit.images": ("ImageSide", "LabelledImages", "failures_of", "image_data", "image_tensor", "open_image"),
    "genkit.hookspecs": ("API_VERSION",),
    "genkit.interfaces": (
        "Batch",
        "Component",
        "Decoder",
        "Encoder",
        "Loss",
        "Pass",
        "Prior",
        "Spec",
        "Terms",
        "divergence",
        "unvalidated",
    ),
    "genkit.latent": ("LatentModel",),
    "genkit.loading": ("LoadedBundle", "load_bundle"),
    "genkit.npm": ("npm_package",),
    "genkit.parity": ("ByDefault", "Cell", "Parity", "RuntimeInfo", "compare_runtimes", "list_runtimes"),
    "genkit.pictures": ("picture",),
    "genkit.plugins": ("Plugins", "load_plugins"),
    "genkit.proving": ("prove",),
    "genkit.recipe": ("Choice", "Recipe", "TrainingOptions"),
    "genkit.registry": ("Registry",),
    "genkit.run": ("Run",),
    "torch.distributions": ("Distribution",),
    "genkit.task": ("Data", "Graph", "Input", "NoGraph", "Task", "Turn"),
    "genkit.trained": ("TrainedModel", "load", "train"),
    "genkit.verification": ("verify",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", "hookimpl", *_HOME]  # noqa: PLE0604  (names resolve on first use)


def __getattr__(name: str) -> Any:
    try:
        module = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'genkit' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
