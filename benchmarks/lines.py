"""``python -m benchmarks.lines [--pythae DIR]``: what each in-box model cost, in lines of code.

A model costs its recipe and whatever its components reach in their own package, less what a model above it in the list
has paid for already. Blank lines, comments and docstrings are not counted. With ``--pythae``, the folder of an unpacked
pythae, the lines of its model and configuration files of the same variant stand beside it, counted alike. Those hold no
networks, which are separate files there, while the lines here include them. Datasets are not counted on either side.
"""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import genkit

ORDER = {
    "mnist_vae": "vae",
    "mnist_ae": "ae",
    "mnist_binary_vae": None,
    "mnist_conv_vae": None,
    "mnist_beta_tc": "beta_tc_vae",
    "mnist_iwae": "iwae",
    "mnist_vamp": "vamp",
    "mnist_cvae": None,
    "mnist_wae": "wae_mmd",
    "mnist_hvae": None,
    "mnist_flow": "vae_iaf",
    "mnist_vqvae": "vq_vae",
    "mnist_gan": None,
    "mnist_aae": "adversarial_ae",
}
"""The recipes, those first that others build on, and the same variant in pythae, where it has it."""

Place = tuple[str, str]
"""A module and a name at its top level."""


class Package:
    """The top-level definitions of the modules of one package, and which of them each one mentions."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.definitions: dict[Place, tuple[Path, ast.AST]] = {}
        self.imports: dict[Place, Place] = {}
        root = Path(inspect.getfile(sys.modules[name])).parent
        for path in root.rglob("*.py"):
            module = ".".join((name, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(name):
                    self.imports |= {(module, a.asname or a.name): (node.module or "", a.name) for a in node.names}
                for bound in _bound(node):
                    self.definitions[module, bound] = (path, node)

    def reached(self, place: Place) -> Iterator[Place]:
        """``place`` and everything of this package that it mentions, however indirectly."""
        seen: set[Place] = set()
        waiting = [place]
        while waiting:
            here = waiting.pop()
            here = self.imports.get(here, here)
            if here in seen or here not in self.definitions:
                continue
            seen.add(here)
            waiting += [(here[0], n.id) for n in ast.walk(self.definitions[here][1]) if isinstance(n, ast.Name)]
        yield from seen


def _bound(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


@functools.cache
def code_lines(path: Path) -> frozenset[int]:
    """The numbers of the lines that hold code: no blank ones, comments or docstrings."""
    text = path.read_text()
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return frozenset(lines - prose)


_NO_CODE = {getattr(tokenize, kind) for kind in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")}


def lines_of(path: Path, node: ast.stmt) -> set[tuple[Path, int]]:
    """The lines of code of one definition, its decorators included."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return {(path, line) for line in code_lines(path) if first <= line <= (node.end_lineno or first)}


def cost(recipe: genkit.Recipe, registry: genkit.Registry, paid: set[tuple[Path, int]]) -> int:
    """The lines of ``recipe`` and its networks, prior and loss that are not in ``paid``, which they join."""
    lines: set[tuple[Path, int]] = set()
    for kind, choice in recipe.components.items():
        if kind != "dataset":
            factory = registry.get(kind, choice.use).load()
            package = Package(factory.__module__.partition(".")[0])
            for place in package.reached((factory.__module__, factory.__qualname__)):
                lines |= lines_of(*package.definitions[place])
    init = Path(inspect.getfile(sys.modules[f"genkit_{registry.get('model', recipe.name).plugin}"]))
    for call in (node for node in ast.walk(ast.parse(init.read_text())) if isinstance(node, ast.Call)):
        if call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value == recipe.name:
            lines |= lines_of(init, call)
    new = lines - paid
    paid |= lines
    return len(new)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lines", description=__doc__)
    parser.add_argument("--pythae", type=Path, metavar="DIR", help="holds pythae/models, e.g. an unpacked wheel")
    options = parser.parse_args()
    registry = genkit.load_plugins().registry
    names = list(ORDER) + sorted(set(registry.names("model")) - ORDER.keys())
    paid: set[tuple[Path, int]] = set()
    print(f"| model | lines | {'pythae |' if options.pythae else ''}")
    print(f"| --- | ---: | {'---: |' if options.pythae else ''}")
    for name in names:
        own = cost(registry.get("model", name).load(), registry, paid)
        variant = ORDER.get(name)
        other = ""
        if options.pythae:
            files = (options.pythae / "pythae" / "models" / variant).glob("*_*.py") if variant else []
            other = f"{sum(len(code_lines(path)) for path in files if path.name != '__init__.py') or '-'} |"
        print(f"| `{name}` | {own} | {other}")


if __name__ == "__main__":
    main()
