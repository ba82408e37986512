"""The conformance kit: what genkit promises of every plugin, as ordinary pytest tests of yours.

>>> from genkit.testing import conformance
>>> TestConformance = conformance("waves")

in a file of your tests is all. It needs ``pip install "genkit-torch[testing]"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

try:
    import pytest

    pytest.register_assert_rewrite("genkit.testing.models", "genkit.testing.others")  # for what their asserts say
except ImportError as error:
    raise ImportError(f'it needs pytest: pip install "genkit-torch[testing]" ({error})') from error

from genkit.testing.checks import Checks, PluginChecks
from genkit.testing.models import ModelChecks
from genkit.testing.others import DatasetChecks, ExporterChecks, RuntimeChecks, TrackerChecks
from genkit.testing.subjects import REFERENCE, Suite

__all__ = ["REFERENCE", "conformance"]


def conformance(
    plugin: str | None, *, settings: Mapping[str, Sequence[str]] | None = None, skip: Sequence[str] = ()
) -> type[Checks]:
    """A class of tests over everything that a plugin registers, for pytest to collect under a name with ``Test``.

    A model is trained for two epochs on the first observations of its data, resumed, measured, exported and proven. An
    encoder, a decoder, a prior or a loss that is in no model of the plugin is put in its place in ``REFERENCE``: the
    components of ``mnist_vae``, on 160 pictures of shape (1, 8, 8) and with a latent of shape (4,). Each test has the
    name of its check and its registration, so that ``pytest -k "decoder-waves and gradients"`` does what it says.

    >>> TestConformance = conformance(
    ...     "waves",
    ...     settings={
    ...         "decoder-waves": ["dataset.shape=[3, 16, 16]", "latent_shape=[8]", "decoder.width=4"],
    ...         "model-ocean": ["encoder.width=4"],
    ...     },
    ... )

    Args:
        plugin: the name of its entry point, of ``genkit plugins``; None: everything that is installed.
        settings: by registration, changes to the recipe that it is tested in, as ``--set`` takes them: smaller
            networks, other shapes, other components beside it.
        skip: registrations that are not tested.

    Raises:
        UnknownName: for a plugin that is not installed, or a registration that it does not make.
    """
    suite = Suite.of(plugin, settings or {}, skip)
    kinds: list[type[Checks]] = [PluginChecks]
    kinds += [ModelChecks] if suite.trained else []
    kinds += [DatasetChecks] if suite.of_kind("dataset") else []
    kinds += [ExporterChecks] if suite.of_kind("exporter") else []
    kinds += [RuntimeChecks] if suite.of_kind("runtime") else []
    kinds += [TrackerChecks] if suite.of_kind("tracker") else []
    return type("TestConformance", tuple(kinds), {"suite": suite, "__doc__": f"What genkit promises of {plugin}."})
