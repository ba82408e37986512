"""What ``compare_runtimes`` found, as people read it: a table, remarks, and a page of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from genkit.parity import Cell, Parity
from genkit.verification import TIMED

COLUMNS = (
    "graph",
    "runtime",
    "rms error",
    "largest",
    "wrong codes",
    "by default",
    *(f"batch {rows}" for rows in TIMED),
    "verdict",
    "",
)


def rows_of(parity: Parity) -> list[tuple[str, ...]]:
    """A row of ``COLUMNS`` for every cell. Errors are multiples of PyTorch's own."""
    return [
        (
            cell.graph,
            " ".join(filter(None, (cell.runtime, cell.version))),
            _figure(cell.rms),
            _figure(cell.max),
            "-" if cell.wrong is None else str(cell.wrong),
            _by_default(cell),
            *(_time(cell.seconds.get(rows)) for rows in TIMED),
            cell.verdict,
            cell.reason,
        )
        for cell in parity.cells
    ]


def remarks_of(parity: Parity) -> Iterator[str]:
    """What has no place in the table: how a default fails that holds otherwise, and which runtimes are missing."""
    for cell in parity.cells:
        if cell.ok and cell.by_default and cell.by_default.reason:
            yield f"by default: {cell.graph}: {cell.runtime}: {cell.by_default.reason}"
    for info in parity.missing:
        yield f"not asked: {info.name}; {info.problem}"


def page_of(parity: Parity, title: str) -> str:
    """One file of HTML with everything in it: it loads nothing, and runs nothing."""
    answer = "is verified" if parity.ok else "does not compute everywhere what was exported"
    remarks = [*parity.failures, *remarks_of(parity)]
    sections = [
        f"<h1>{escape(title)} {answer}</h1>",
        f"<p>{_LEGEND}</p>" if parity.cells else "",
        _region("runtimes by graph", _overview(parity.cells)) if parity.cells else "",
        "<h2>Remarks</h2>" + _list(remarks) if remarks else "",
        "<h2>Every figure</h2>" + _region("every figure", _figures(parity)) if parity.cells else "",
        "<h2>What depends on no runtime</h2>" + _region("what depends on no runtime", _checks(parity)),
    ]
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(filter(None, sections)))


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2g}" if value < 100 else f"{float(f'{value:.2g}'):,.0f}"


def _by_default(cell: Cell) -> str:
    if cell.by_default is None:
        return "-"
    return "none" if cell.by_default.rms is None else _figure(cell.by_default.rms)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _overview(cells: Sequence[Cell]) -> str:
    """The matrix of runtime by graph: in each cell the verdict, and the error where there is one."""
    found = {(cell.runtime, cell.graph): cell for cell in cells}
    graphs = list(dict.fromkeys(cell.graph for cell in cells))
    body = []
    for runtime in dict.fromkeys(cell.runtime for cell in cells):
        of = (found[runtime, graph] for graph in graphs)
        row = "".join(f'<td class="{_class(each.verdict)}">{_verdict(each)}</td>' for each in of)
        body.append(f'<tr><th scope="row">{escape(runtime)}</th>{row}</tr>')
    return _table("Runtimes by graph", ["runtime", *graphs], body)


def _verdict(cell: Cell) -> str:
    error = "" if cell.rms is None else f" <small>{_figure(cell.rms)}&times;</small>"
    return f"{cell.verdict}{error}"


def _figures(parity: Parity) -> str:
    body = []
    for graph, runtime, *figures, verdict, reason in rows_of(parity):
        numbers = "".join(f'<td class="number">{escape(each)}</td>' for each in figures)
        end = f'<td class="{_class(verdict)}">{escape(verdict)}</td><td class="text">{escape(reason)}</td>'
        body.append(f'<tr><th scope="row">{escape(graph)}</th><td>{escape(runtime)}</td>{numbers}{end}</tr>')
    return _table("Every graph in every runtime, with the seconds of a call", [*COLUMNS[:-1], "remark"], body)


def _checks(parity: Parity) -> str:
    body = []
    for check in parity.report.checks:
        verdict = "ok" if check.ok else "failed"
        what = f'<th scope="row">{escape(check.graph or "bundle")}</th><td>{escape(check.subject)}</td>'
        body.append(
            f'<tr>{what}<td class="{_class(verdict)}">{verdict}</td><td class="text">{escape(check.detail)}</td></tr>'
        )
    return _table("The files, the graphs and their proofs", ["graph", "check", "verdict", "found"], body)


def _table(caption: str, columns: Iterable[str], body: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    rows = "\n".join(body)
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"


def _region(name: str, table: str) -> str:
    """A wide table, which scrolls by itself on a narrow screen, also by the keyboard."""
    return f'<div class="wide" role="region" aria-label="{name}" tabindex="0">{table}</div>'


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _class(verdict: str) -> str:
    return {"ok": "good", "unsupported": "neutral"}.get(verdict, "bad")


_LEGEND = (
    "Errors are multiples of PyTorch's own rounding error in float32, of the output where they are largest. A runtime "
    "is <em>ok</em> within the limits, <em>unsupported</em> where it says that it cannot hold the graph, which is no "
    "failure. <em>By default</em> is the rms error of the library as it comes, where it has to be set to keep float32."
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --line: #d8dce1; --head: #f3f5f7;
  --good: #116329; --good-back: #e3f5e7; --bad: #a40e26; --bad-back: #fdeaec;
  --neutral: #59636e; --neutral-back: #eef0f2 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e6ea; --paper: #15181c; --line: #3a4149; --head: #20252b;
    --good: #7ee2a0; --good-back: #14301f; --bad: #ffaab2; --bad-back: #401a20;
    --neutral: #a8b1bb; --neutral-back: #272d34 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p, li { max-width: 70ch; overflow-wrap: anywhere }
ul { padding-left: 1.25rem }
table { border-collapse: collapse }
caption { text-align: left; color: var(--neutral); font-size: .875rem; padding-bottom: .4rem }
th, td { border: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top }
thead th { background: var(--head); font-weight: 600 }
tbody th { font-weight: 600 }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
td.good { color: var(--good); background: var(--good-back) }
td.bad { color: var(--bad); background: var(--bad-back); font-weight: 600 }
td.neutral { color: var(--neutral); background: var(--neutral-back) }
small { white-space: nowrap; opacity: .85 }
.wide { overflow-x: auto }
td.text { min-width: 20rem }
@media (max-width: 40rem) { th, td { padding: .3rem .4rem; font-size: .8125rem } small { display: block } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: runtimes</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
