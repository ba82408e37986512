"""What the site has beside the pages in docs/: the README as its home, references made from the code, formulas."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path
from typing import Any

import typer
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import genkit
from genkit import hookspecs
from genkit.cli import app

ROOT = Path(__file__).parents[2]
_FIRST = ["genkit.trained", "genkit.pictures", "genkit.loading", "genkit.interfaces", "genkit.task", "genkit.recipe"]
"""The modules that most people look for; the others follow in the order of the package."""
_FORMULA = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.MULTILINE | re.DOTALL)
_ROLE = re.compile(r":math:<code>(.*?)</code>", re.DOTALL)
_DIRECTIVE = re.compile(r"<p>\.\. math:: (.*?)</p>", re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made here."""
    pages = {
        "index.md": (ROOT / "README.md").read_text(),
        "reference/commands.md": "\n".join(_commands()),
        "reference/hooks.md": "\n".join(_hooks()),
        "reference/api.md": "\n".join(_api()),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Has links between the README and docs/ lead from page to page, and those to other files to the repository."""
    here = ROOT if page.file.src_uri == "index.md" else (ROOT / "docs" / page.file.src_uri).parent

    def target(link: re.Match[str]) -> str:
        path, _, anchor = link[2].partition("#")
        if not path or ":" in path:
            return link[0]
        found = (here / path).resolve()
        if found == ROOT / "README.md":
            path = _up(page) + "index.md"
        elif found.is_relative_to(ROOT / "docs"):
            path = _up(page) + found.relative_to(ROOT / "docs").as_posix()
        return link[1] + path + ("#" + anchor if anchor else "") + link[3]

    formulas = _FORMULA.sub(lambda found: convert(found[1], display="block"), markdown)
    return _LINK.sub(target, formulas)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Sets the formulas of docstrings, as MathML, which browsers show by themselves."""
    html = _ROLE.sub(lambda found: convert(unescape(found[1])), html)
    return _DIRECTIVE.sub(lambda found: convert(unescape(found[1]), display="block"), html)


def _up(page: Page) -> str:
    return "../" * page.file.src_uri.count("/")


def _commands() -> Iterator[str]:
    """Every command with its options, from what the command line itself is made of."""
    group: Any = typer.main.get_command(app)
    yield "# Commands\n"
    yield f"{group.help}\n"
    yield "Every command takes `--disable-plugin` and `--debug`; `--help` shows this page's part of it.\n"
    for name, command in _leaves(group, "genkit"):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        usage = " ".join([name, *(p.metavar or p.name.upper() for p in arguments)])
        yield f"## {name}\n"
        yield f"{command.help}\n"
        yield f"```text\n{usage}{' [OPTIONS]' if options else ''}\n```\n"
        yield "| | | default |\n| --- | --- | --- |"
        for parameter in arguments + options:
            yield f"| {_spelling(parameter)} | {_cell(getattr(parameter, 'help', '') or '')} | {_default(parameter)} |"
        yield ""


def _leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, each in command.commands.items():
        yield from _leaves(each, f"{name} {word}")


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return _code(parameter.metavar or parameter.name.upper())
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.display_type(None).strip('<>').upper()}"
    return _code(", ".join(parameter.opts) + value)


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required or value is None or value is False or callable(value) or value == ():
        return "needed" if parameter.required else ""
    return f"`{value}`"


def _code(text: str) -> str:
    return f"<code>{_cell(text)}</code>"


def _cell(text: str) -> str:
    return escape(text, quote=False).replace("|", "&#124;")


def _hooks() -> Iterator[str]:
    yield "# Hooks\n"
    yield f"{inspect.getdoc(hookspecs)}\n"
    yield from (f"::: genkit.hookspecs.{name}\n" for name in vars(hookspecs) if name.startswith("genkit_"))


def _api() -> Iterator[str]:
    yield "# Python reference\n"
    yield "Everything is imported from `genkit` itself.\n"
    modules = [module for module in genkit._HOMES if module.startswith("genkit.")]
    for module in sorted(modules, key=lambda module: _FIRST.index(module) if module in _FIRST else len(_FIRST)):
        yield f"## {module.removeprefix('genkit.')}\n"
        yield from (f"::: {module}.{name}\n    options:\n      heading_level: 3\n" for name in genkit._HOMES[module])
