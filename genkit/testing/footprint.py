"""What importing a plugin does to everybody else in the process: measured in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from genkit.testing.footprint import report; report(sys.argv[2])"
)
_DEFAULT_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def footprint(plugin: str) -> dict[str, str]:
    """What is otherwise after a plugin and all that it registers have been imported: the step at which, by name.

    Raises:
        RuntimeError: if the process that imports it fails, with the end of what that said.
    """
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps(sys.path), plugin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.strip().splitlines()[-3:]))
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(plugin: str) -> None:
    """What the process does: imports the plugin step by step, and prints what each step changed."""
    import rich.style  # noqa: F401  # it draws a number; what it, torch, and every command have done is done
    import torch  # noqa: F401

    import genkit.cli  # noqa: F401
    from genkit.plugins import GROUP, load_plugins

    changed: dict[str, str] = {}
    before = _state()

    def compare(step: str) -> None:
        nonlocal before
        after = _state()
        changed.update({name: step for name in after if after[name] != before[name] and name not in changed})
        before = after

    others = {point.name for point in entry_points(group=GROUP)} - {plugin}
    registry = load_plugins(others).registry
    compare("importing the plugin's module and registering")
    for entry in registry.entries.values():
        entry.load()
        compare(f"importing the {entry.kind} {entry.name!r}")
    print(json.dumps(changed))  # noqa: T201  # the answer to the process that asks


def _state() -> dict[str, Any]:
    """Everything that is one in a process, by the name that an author knows it by."""
    import random

    import numpy as np
    import torch

    return {
        "the random state of torch": torch.get_rng_state().tolist(),
        "the random state of numpy": str(np.random.get_state()),
        "the random state of Python": random.getstate(),
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.get_default_device()": torch.get_default_device(),
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.is_anomaly_enabled()": torch.is_anomaly_enabled(),
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision(),
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        "torch.backends.cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "the argument checks of torch.distributions": torch.distributions.Distribution._validate_args,
        "numpy.geterr()": np.geterr(),
        "the handlers or the level of the root logger": (logging.root.handlers[:], logging.root.level),
        "the handlers of SIGINT or SIGTERM": [signal.getsignal(number) for number in _DEFAULT_SIGNALS],
        "the working directory": Path.cwd(),
        "os.umask()": _umask(),
    }


def _umask() -> int:
    mask = os.umask(0o77)
    os.umask(mask)
    return mask
