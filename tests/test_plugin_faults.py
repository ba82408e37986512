"""Every fault of a plugin, in packages that pip installed: who is named, where, with what remedy, and what goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import Genkit

DOCUMENTED = Path(__file__).parents[1] / "docs" / "plugins" / "faults.md"
NOT_LOADED = ("broken", "hangs", "newer", "older", "unregistered", "unspelt")
LOADED_WITH_FAULTS = ("acme of genkit-shadowing", "faulty", "misspelt", "shadowing")

LOADING = """
import json, sys, torch  # which would count as a plugin's time
from genkit.cli import main
status = main(["plugins", "--json"])
print(json.dumps([name for name in sys.modules if name.startswith(("genkit_broken", "genkit_hangs", "genkit_newer"))]))
sys.exit(status)
"""

TRAINING = """
import json, sys
from genkit.cli import main
for line in sys.stdin:
    print(json.dumps(main(json.loads(line))), file=sys.stderr)
"""

BROKEN_COMPONENTS = {
    "encoder=untyped": 2,
    "encoder=unset": 2,
    "encoder=lost": 2,
    "encoder=late": 2,
    "encoder=init": 2,
    "encoder=abstract": 2,
    "encoder=forward": 1,
    "encoder=exits": 1,
    "encoder=count": 2,
    "encoder=rows": 2,
    "encoder=event": 2,
    "encoder=unwrapped": 2,
    "loss=number": 2,
    "loss=elements": 2,
    "dataset=shrunk": 2,
}
"""Settings of a model that is good without them, and the exit status with them."""


@pytest.fixture(scope="module")
def documented() -> list[str]:
    """The messages in the documentation."""
    return re.findall(r"`` ?((?:warning|error): .+?) ?``", DOCUMENTED.read_text())


def _said(python: Path, text: str) -> list[str]:
    """The messages in what was printed, without the folder that pip installs into."""
    site = next((python.parents[1] / "lib").glob("python*/site-packages"))
    return [line.replace(str(site), "…") for line in text.splitlines() if line.startswith(("warning: ", "error: "))]


def test_every_fault_in_loading_is_said_once_as_documented_and_costs_no_other_plugin(
    broken_python: Path, documented: list[str]
) -> None:
    done = subprocess.run(
        [broken_python, "-c", LOADING],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GENKIT_PLUGIN_SECONDS": "5"},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = _said(broken_python, done.stderr)
    assert Counter(said) == Counter(m for m in documented if m.startswith("warning: ") and "is switched off" not in m)

    *listing, left_over = done.stdout.strip().splitlines()
    assert json.loads(left_over) == []
    plugins: dict[str, dict[str, Any]] = {p["name"]: p for p in json.loads("\n".join(listing))}
    assert all(plugins[name]["state"] == "loaded" for name in (*LOADED_WITH_FAULTS, "acme", "mnist_vae", "tracks"))
    assert all(plugins[name]["state"] == "failed" and not plugins[name]["entries"] for name in NOT_LOADED)
    assert {name for name, plugin in plugins.items() if plugin["problems"]} == {*NOT_LOADED, *LOADED_WITH_FAULTS}
    assert {"kind": "model", "name": "acme"} in plugins["acme"]["entries"]
    assert plugins["shadowing"]["entries"] == [{"kind": "encoder", "name": "shadow"}]
    assert {name: p["api"] for name, p in plugins.items() if p["api"]} == {
        "acme of genkit-shadowing": "1.0",
        "newer": "9.1",
        "older": "0.3",
    }


def test_every_fault_of_a_component_in_use_is_said_as_documented_and_other_models_train(
    broken_python: Path, documented: list[str], tmp_path: Path
) -> None:
    def train(name: str, *settings: str) -> str:
        return json.dumps(["train", "--model", "acme", *settings, "--out", str(tmp_path / name)])

    requests = [train(setting, "--set", setting) for setting in BROKEN_COMPONENTS]
    done = subprocess.run(
        [broken_python, "-c", TRAINING],
        input="\n".join([*requests, train("good")]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "GENKIT_DISABLE_PLUGINS": ",".join((*NOT_LOADED, "misspelt", "shadowing"))},
    )
    statuses = [int(line) for line in done.stderr.splitlines() if line.isdigit()]
    assert statuses == [*BROKEN_COMPONENTS.values(), 0]
    assert "Traceback" not in done.stderr
    said = _said(broken_python, done.stderr)
    in_use = [message for message in said if message.startswith("error: ") or "is switched off" in message]
    assert Counter(in_use) == Counter(m for m in documented if m.startswith("error: ") or "is switched off" in m)
    remedy = "Unless you can mend that: pip install -U genkit-broken, or another component; --debug shows more."
    assert done.stderr.count(remedy) == len(BROKEN_COMPONENTS)
    assert remedy in DOCUMENTED.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
    assert len((tmp_path / "good" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_person_reads_in_a_table_which_plugins_work_and_leaves_out_the_others(broken: Genkit) -> None:
    done = broken("plugins", "--disable-plugin", "hangs", "--disable-plugin", "faulty")
    rows = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert re.match(r"acme +genkit-acme +1\.2\.3 +- +loaded +encoder conv, ", rows["acme"])
    assert re.match(
        r"acme of genkit-shadowing +genkit-shadowing +2\.0 +1\.0 +loaded ", rows["acme of genkit-shadowing"]
    )
    assert re.match(
        r"newer +genkit-broken +0\.0\.1 +9\.1 +failed +\S+/genkit_newer\.py: it wants version 9\.1 ", rows["newer"]
    )
    assert re.match(r"faulty +genkit-broken +0\.0\.1 +- +disabled$", rows["faulty"])

    quiet = broken("models", GENKIT_DISABLE_PLUGINS=", ".join((*NOT_LOADED, *LOADED_WITH_FAULTS)))
    assert quiet.stderr == ""
    assert "\nacme " in quiet.stdout
    both = broken("plugins", "--disable-plugin", "acme", GENKIT_DISABLE_PLUGINS="hangs")
    assert len(re.findall(r"^acme.* disabled$", both.stdout, re.MULTILINE)) == 2
    unknown = broken("models", "--disable-plugin", "acm", check=False)
    assert unknown.returncode == 2
    assert "did you mean 'acme'?" in unknown.stderr
