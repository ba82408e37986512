"""The command line. Each command parses, calls the library, and prints; nothing is decided here."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genkit.errors import GenkitError, InvalidOption, PluginWarning, SaidElsewhere, VerificationFailed, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from genkit.bundle import Manifest, Report
    from genkit.parity import Parity
    from genkit.plugins import Plugins
    from genkit.session import Plan

app = typer.Typer(
    name="genkit",
    help="Train generative models, look at what they make, and export them with numbers that are proven to match.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
new = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Begin something of your own.")
app.add_typer(new, name="new")

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
_UNBOUNDED = 2**31
"""A width that no table reaches, for output that a program reads."""


@functools.cache
def stdout() -> Console:
    """Where results go. A help text is printed without it, and so without the time that its import takes."""
    from rich.console import Console

    return Console(highlight=False)


@functools.cache
def stderr() -> Console:
    """Where warnings and errors go."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


class _Flags:
    """The options that every command takes."""

    debug = False
    disabled: tuple[str, ...] = ()
    plugins: Plugins | None = None
    """Those that the command has loaded, of which one may be to blame for an error."""


_COMMON = {
    "disable_plugin": Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave a plugin unloaded.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
}


def command(function: Callable[..., None], group: typer.Typer = app) -> Callable[..., None]:
    """Makes a function a command, with the options that every command takes."""

    @functools.wraps(function)
    def wrapper(*args: Any, disable_plugin: list[str] | None = None, debug: bool = False, **kwargs: Any) -> None:
        _Flags.debug, _Flags.disabled = debug, tuple(disable_plugin or ())
        function(*args, **kwargs)

    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    for name, annotation in _COMMON.items():
        default = False if name == "debug" else None
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions accept one
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    group.command(name=function.__name__.rstrip("_"))(wrapper)
    return wrapper


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit status."""
    _Flags.debug, _Flags.disabled, _Flags.plugins = False, (), None
    words = list(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("always", PluginWarning)
        warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
        try:
            return app(args=words, prog_name="genkit", standalone_mode=False) or 0
        except _UsageError as error:
            return _failed(_explained(error, words), 2)
        except SaidElsewhere as error:
            return error.status
        except GenkitError as error:
            return _failed(_blaming(error) or str(error), error.status)
        except KeyboardInterrupt:
            return _failed("interrupted", 130)
        except BrokenPipeError:
            sys.stderr.close()
            return 1
        except ModuleNotFoundError as error:
            return _failed(_blaming(error) or _missing(error), 2)
        except OSError as error:
            return _failed(_blaming(error) or f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
        except typer.Exit as error:
            return error.exit_code
        except SystemExit as error:
            blaming = _blaming(error)  # only the command itself may say that all is well
            if blaming is None:
                raise
            return _failed(blaming, 1)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            if type(error).__name__ == "OutOfMemoryError":
                return _failed(f"the device is out of memory ({lines[0]}); try a smaller --batch-size", 1)
            message = f"{type(error).__name__}: {lines[0]}\nRun it again with --debug to see where."
            return _failed(_blaming(error) or message, 1)


def _blaming(error: BaseException) -> str | None:
    """The message about an error that is the fault of a plugin."""
    blamed = _Flags.plugins.blame(error) if _Flags.plugins else None
    if blamed is None:
        return None
    plugin, place = blamed
    what = str(error) if isinstance(error, GenkitError) else f"{type(error).__name__}: {plain(str(error))}"
    message = f"{plugin}{', ' if place else ''}{place}: {what}"
    if "pip install" in what:  # it knows its remedy
        return message
    remedy = f"pip install -U {plugin.distribution}, or another component; --debug shows more."
    return f"{message}\nUnless you can mend that: {remedy}"


def _explained(error: Any, words: Sequence[str]) -> str:
    """What is wrong with the command line, with the offending words, and where to read on."""
    message = error.format_message()
    for option in getattr(getattr(error, "param", None), "opts", ()):
        if option in words[:-1]:
            value = words[words.index(option) + 1]
            message = message.replace(f"Invalid value for {option!r}", f"{option} {value}")
    path = error.ctx.command_path if getattr(error, "ctx", None) else "genkit"
    return f"{message}\nTry `{path} --help`."


def _missing(error: ModuleNotFoundError) -> str:
    from genkit.bundle import DEPLOYMENT

    return (
        f"{error.name} is not installed; to train and export: `pip install genkit-torch`\n"
        f"To verify and run bundles without torch: `{DEPLOYMENT}`"
    )


def _failed(message: str, status: int) -> int:
    if _Flags.debug:
        traceback.print_exc()
    stderr().print(f"error: {message}", soft_wrap=True, markup=False)
    return status


def _show_warning(
    default: Callable[..., None], message: Any, category: type[Warning], *where: Any, **more: Any
) -> None:
    if issubclass(category, PluginWarning):
        stderr().print(f"warning: {message}", soft_wrap=True, markup=False)
    else:
        default(message, category, *where, **more)


def _say(text: str) -> None:
    stdout().print(text, soft_wrap=True, markup=False)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; one that goes to a pipe neither wraps nor truncates."""
    if stdout().is_terminal:
        stdout().print(_rich_table(columns, rows), markup=False)
        return
    print(plain_table(columns, rows))


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as it goes to a pipe."""
    from rich.console import Console

    unbounded = Console(file=io.StringIO(), width=_UNBOUNDED, highlight=False)
    with unbounded.capture() as text:
        unbounded.print(_rich_table(columns, rows), markup=False)
    return "\n".join(line.rstrip() for line in text.get().splitlines())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, show_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def _plugins() -> Plugins:
    from genkit.plugins import load_plugins

    _Flags.plugins = load_plugins(_Flags.disabled)
    return _Flags.plugins


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `genkit train` wrote.")]
CheckpointName = Annotated[str, typer.Option(metavar="last|best|N", help="The last, the best, or that of epoch N.")]
DataDir = Annotated[Path | None, typer.Option(help="Where data sets lie, or go. Default: the cache.")]
DeviceName = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(min=0, help="Of all noise.")]
Condition = Annotated[int | None, typer.Option(min=0, metavar="LABEL", help="The label of all; default: each in turn.")]
WebRuntime = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="The npm package onnxruntime-web. Default: that in node_modules."),
]


@command
def train(
    model: Annotated[str | None, typer.Option(metavar="NAME", help="A model of `genkit models`.")] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="Start from a recipe file instead.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Observations a step.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(metavar="N", help="Compute each batch in N parts, one after another.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate, above 0.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to train. Default: auto, or as it was begun.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="fp32|tf32|bf16", help="Of the networks' arithmetic.")
    ] = None,
    step: Annotated[
        str | None,
        typer.Option(
            metavar="eager|compiled|graph|compiled_graph",
            help="How a step is executed: as it is written, in compiled kernels, recorded and replayed, or both.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, data order and noise.")] = None,
    data_dir: DataDir = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Change the recipe, e.g. encoder.hidden=800.")
    ] = None,
    init_from: Annotated[Path | None, typer.Option(metavar="RUN", help="Start from that run's weights.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The folder to write. Default: runs/<model>-<time>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    tracker: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|none", help="Follow the run with it; once or more. --resume remembers."),
    ] = None,
) -> None:
    """Train a model."""
    from genkit import progress, session
    from genkit.run import read_recipe
    from genkit.training.team import joined

    if model and recipe:
        raise InvalidOption("--model and --recipe: name one of them")
    plugins = _plugins()
    shortcuts = {
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": lr,
        "precision": precision,
        "step": step,
        "seed": seed,
    }
    started = time.perf_counter()
    with joined() as team:
        plan = team.once(
            lambda: session.plan(
                plugins.registry,
                model=read_recipe(recipe) if recipe else model,
                settings=set_ or [],
                training={name: value for name, value in shortcuts.items() if value is not None},
                out=out,
                resume=resume,
            )
        )
        outcome = "finished"
        if not plan.finished:
            if team.leads:
                plugins.observe("progress", progress.for_console(stdout()))
            _, outcome = session.carry_out(
                plan, plugins, device=device, data_dir=data_dir, init_from=init_from, trackers=tracker, team=team
            )
    if team.leads:
        _say_how_it_ended(plan, outcome, time.perf_counter() - started)
    if outcome != "finished":
        raise typer.Exit(128 + signal.Signals[outcome])


def _say_how_it_ended(plan: Plan, outcome: str, seconds: float) -> None:
    if outcome != "finished":
        _say(f"Interrupted by {outcome}; everything up to this step is saved. To go on:")
        _say(f"  genkit train --out {plan.path} --resume")
        return
    if plan.finished:
        _say(f"The run {plan.path} is finished: it has had its {plan.recipe.training.epochs} epochs.")
    else:
        minutes, seconds = divmod(round(seconds), 60)
        _say(f"Trained {plan.recipe.name} in {minutes} min {seconds} s: {plan.path}")
    _say_next(plan.path)


def _say_next(run: Path) -> None:
    pictures = sorted(run.glob("*/epoch_*.png"))[-1:] + [p for p in (run / "loss.png",) if p.exists()]
    if pictures:
        _say("Look at " + " and ".join(map(str, pictures)))
    _say(f"Next:\n  genkit sample {run}\n  genkit export {run}")


@command
def sample(
    source: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="A run, or an exported bundle.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 64,
    seed: Seed = 0,
    condition: Condition = None,
    checkpoint: CheckpointName = "last",
    device: DeviceName = "auto",
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Default: samples.png in or beside it.")] = None,
) -> None:
    """Draw from the prior and write a grid of what is decoded."""
    import torch

    from genkit import inference, pictures, session
    from genkit.loading import load_bundle

    plugins = _plugins()
    if (source / "manifest.json").exists():
        x = torch.from_numpy(load_bundle(source, disabled=plugins.absent).sample(n, seed, condition))
        bundle = source.resolve()
        target = out or bundle.with_name(f"{bundle.name}-samples.png")
    else:
        loaded = session.load(source, plugins.registry, checkpoint, device, data_dir)
        x = inference.sample(loaded.model, n, seed=seed, condition=condition)
        target = out or source / "samples.png"
    _write_picture(target, pictures.draw_rows([x]))


@command
def reconstruct(
    run: RunPath,
    n: Annotated[int, typer.Option("-n", min=1, help="How many test observations.")] = 8,
    seed: Seed = 0,
    checkpoint: CheckpointName = "last",
    device: DeviceName = "auto",
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Default: RUN/reconstructions.png.")] = None,
) -> None:
    """Write test observations over their reconstructions."""
    from genkit import pictures, session

    loaded = session.load(run, _plugins().registry, checkpoint, device, data_dir)
    picture = pictures.reconstructions(loaded.model, loaded.task.data, n, seed=seed)
    _write_picture(out or run / "reconstructions.png", picture)


def _write_picture(path: Path, picture: Any) -> None:
    from genkit.files import write_atomically

    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InvalidOption(f"--out {path}: the ending {path.suffix!r} is no picture's; use .png, .jpg or .webp")
    if not path.parent.is_dir():
        raise InvalidOption(f"--out {path}: there is no folder {path.parent}; make it first")
    write_atomically(path, picture.save)
    _say(str(path))


@command
def encode(
    run: RunPath,
    index: Annotated[int, typer.Option(min=0, metavar="I", help="Which observation.")] = 0,
    all_: Annotated[bool, typer.Option("--all", help="All of them, into --out.")] = False,
    split: Annotated[str, typer.Option(metavar="train|test", help="Of which set.")] = "train",
    checkpoint: CheckpointName = "last",
    device: DeviceName = "auto",
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.npz", help="With --all: where to.")] = None,
) -> None:
    """Print one observation's latent parameters, or write all of them."""
    import numpy as np

    from genkit import inference, session
    from genkit.data import length, take
    from genkit.files import write_atomically
    from genkit.random import seeded

    if split not in ("train", "test"):
        raise InvalidOption(f"--split {split}: it is train or test")
    if all_ and (out is None or out.suffix != ".npz"):
        raise InvalidOption(f"--out {out}: --all writes arrays; name a file that ends in .npz")
    if out and not all_:
        raise InvalidOption(f"--out {out}: one observation is printed; give --all to write all of them")
    loaded = session.load(run, _plugins().registry, checkpoint, device, data_dir)
    dataset = loaded.task.data.train if split == "train" else loaded.task.data.test
    size = length(dataset)
    if index >= size:
        raise InvalidOption(f"--index {index}: the {split} set has {size} observations; it goes up to {size - 1}")
    with seeded(0):
        x, labels = take(dataset, range(size) if all_ else [index])
    parameters = inference.encode(loaded.model, x, labels)
    if out:
        arrays = {name: value.numpy() for name, value in parameters.items()}
        if labels is not None:
            arrays["label"] = labels.numpy()
        write_atomically(out, functools.partial(np.savez, **arrays))  # type: ignore[arg-type]  # names of outputs
        _say(f"{out}: " + ", ".join(f"{name} {list(value.shape)}" for name, value in arrays.items()))
        return
    label = "" if labels is None else f", label {int(labels[0])}"
    _say(f"{split} observation {index}{label}, after {loaded.checkpoint.position.epoch} epochs")
    for name, value in parameters.items():
        _say(name)
        for row in value.flatten().split(10):
            _say(" ".join(f"{v:8.4f}" if row.is_floating_point() else f"{v:8d}" for v in row.tolist()))


@command
def evaluate(
    run: RunPath,
    samples: Annotated[int, typer.Option(min=0, metavar="K", help="Importance samples; 0: no likelihood.")] = 64,
    seed: Seed = 0,
    checkpoint: CheckpointName = "last",
    device: DeviceName = "auto",
    data_dir: DataDir = None,
    as_json: AsJSON = False,
) -> None:
    """Measure the test set: the loss and its terms, the likelihood, the reconstructions, the active units."""
    from genkit import session

    loaded = session.load(run, _plugins().registry, checkpoint, device, data_dir)
    result = session.evaluate(loaded, samples=samples, seed=seed)
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    terms = result["terms"].items()
    rows = [[f"test {name}", "not finite" if value is None else f"{value:.4f}"] for name, value in terms]
    likelihood, error, units = (result[key] for key in ("log_likelihood", "reconstruction_error", "active_units"))
    for label, measured in ((f"log p(x), nats, K = {samples}", likelihood), ("reconstruction error", error)):
        spread = f" ± {measured['standard_error']:.4f}" if measured.get("standard_error") is not None else ""
        rows.append([label, _measured(measured, "{value:.4f}") + spread])
    rows.append(["active units", _measured(units, "{value} of {of}")])
    data = ", ".join(f"{key} {value}" for key, value in result["dataset"].items() if key != "use" and value is not None)
    rows.append(["data", f"{result['observations']} of {result['dataset']['use']}" + (f" ({data})" if data else "")])
    _table([result["model"], f"after {result['epoch']} epochs"], rows)


def _measured(result: dict[str, Any], template: str) -> str:
    return template.format(**result) if result["value"] is not None else str(result["reason"])


@command
def export(
    run: RunPath,
    checkpoint: CheckpointName = "last",
    out: Annotated[Path | None, typer.Option(metavar="BUNDLE", help="Default: RUN/bundle.")] = None,
    format_: Annotated[str, typer.Option("--format", help="An exporter of `genkit components`.")] = "onnx",
    opset: Annotated[int, typer.Option(help="The ONNX operator set, 18 or newer.")] = 18,
    precision: Annotated[
        list[str] | None,
        typer.Option(metavar="fp32|fp16|int8", help="Graphs in that precision as well; once or more. fp32 always is."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the inputs of the proof.")] = 0,
    data_dir: DataDir = None,
    web: Annotated[
        bool, typer.Option("--web", help="With a page to play with it in a browser, in BUNDLE/web.")
    ] = False,
    web_runtime: WebRuntime = None,
) -> None:
    """Write a bundle of graphs that are proven to match, or nothing."""
    from genkit import session
    from genkit.bundle import Bundle
    from genkit.loading import sampling_chain
    from genkit.web import add_page, find_runtime

    if web_runtime and not web:
        raise InvalidOption(f"--web-runtime {web_runtime}: it is for the page; give --web as well")
    runtime = find_runtime(web_runtime) if web else None
    precisions = session.reduced_precisions(precision or [])
    plugins = _plugins()
    loaded = session.load(run, plugins.registry, checkpoint, "cpu", data_dir)
    target = out or run / "bundle"
    report = session.export(loaded, plugins, target, format_=format_, opset=opset, seed=seed, precisions=precisions)
    if runtime:
        add_page(target, runtime)
    _print_report(report)
    _print_reduced(Bundle.open(target).manifest, precisions)
    _say(f"Exported {target}")
    _say(f"Next:\n  genkit verify {target}")
    if runtime:
        _say(f"  genkit preview {target}")
    with contextlib.suppress(GenkitError):  # a prior that only the run can draw from
        sampling_chain(Bundle.open(target))
        _say(f"  genkit sample {target}")


@command
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `genkit export` wrote.")],
    runtime: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|all", help="One or more of `genkit runtimes`. Default: onnxruntime."),
    ] = None,
    time_limit: Annotated[float, typer.Option(metavar="SECONDS", help="After which the answer is no.")] = 600,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="With all runtimes: write the table as one page, too.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Check a bundle again: its files, its graphs and their numbers. Needs no torch."""
    from genkit.registry import ALL_RUNTIMES
    from genkit.verification import verify

    if ALL_RUNTIMES in (runtime or []):
        _compare(bundle, time_limit, html, as_json)
        return
    if html:
        raise InvalidOption("--html is the page of all runtimes: give --runtime all with it")
    report = verify(bundle, runtime or ["onnxruntime"], seconds=time_limit, disabled=_Flags.disabled)
    if as_json:
        print(report.to_json(), end="")
    else:
        _print_report(report)
    if not report.ok:
        raise VerificationFailed(
            f"{bundle} is not what was exported: {report.failures[0]} "
            f"({len(report.failures)} of {len(report.checks)} checks failed); do not deploy it, export it again"
        )
    if not as_json:
        _say(f"{bundle} is verified")


def _compare(bundle: Path, time_limit: float, html: Path | None, as_json: bool) -> None:
    """What ``verify`` does for all runtimes: a table of graph by runtime."""
    from genkit.files import write_atomically
    from genkit.matrix import page_of
    from genkit.parity import compare_runtimes

    if html and not html.resolve().parent.is_dir():
        raise InvalidOption(f"--html {html}: there is no folder {html.parent}")
    parity = compare_runtimes(bundle, seconds=time_limit, disabled=_Flags.disabled)
    if html:
        write_atomically(html, page_of(parity, bundle.resolve().name).encode())
    if as_json:
        print(parity.to_json(), end="")
    else:
        _print_report(parity.report)
        _say("")
        _print_parity(parity)
    if not parity.ok:
        raise VerificationFailed(
            f"{bundle} does not compute everywhere what was exported: {parity.failures[0]} "
            f"({len(parity.failures)} of {len(parity.report.checks) + len(parity.cells)} failed)"
        )
    if not as_json:
        _say(f"{bundle} is verified")


@command
def preview(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `genkit export` wrote.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: one that is free.")] = 8000,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    web_runtime: WebRuntime = None,
) -> None:
    """Play with a bundle in the browser, until Ctrl-C. Needs no torch."""
    import webbrowser

    from genkit.web import Preview

    with contextlib.suppress(KeyboardInterrupt), Preview(bundle, port, web_runtime) as server:
        _say(f"{server.url} shows {bundle}; Ctrl-C ends it")
        stdout().file.flush()
        if open_:
            webbrowser.open(server.url)
        server.serve_forever()


def _print_parity(parity: Parity) -> None:
    from genkit.matrix import COLUMNS, remarks_of, rows_of

    _table(COLUMNS, rows_of(parity))
    for remark in remarks_of(parity):
        _say(remark)


def _print_reduced(manifest: Manifest, precisions: Sequence[str]) -> None:
    """What each reduced graph saves and what it costs: a line for each of its outputs."""
    if not precisions:
        return
    rows, remarks = [], []
    for graph in manifest.reduced:
        size, loss = f"{graph.size / 1e6:.3g} of {graph.fp32_size / 1e6:.3g} MB", "-"
        if graph.loss is None:
            remarks.append(f"{graph.name} has no test loss: {graph.no_loss}")
        else:
            loss = f"{graph.loss.change:+.2g} ({100 * graph.loss.change / abs(graph.loss.fp32):+.2g} %)"
        for name, output in graph.outputs.items():
            found = output.measured
            error = f"{found.rms:.2g}" if found.agreement is None else f"{found.agreement:.2%} agree"
            psnr = "" if found.psnr is None else f"{found.psnr:.1f} dB"
            rows.append([graph.name, graph.precision, size, name, error, psnr, loss])
            size = loss = ""
    _table(["reduced graph", "precision", "size", "output", "rms error", "PSNR", "test loss"], rows)
    reduced = tuple(f"_{precision}" for precision in precisions)
    remarks += [f"no {absent.name}: {absent.reason}" for absent in manifest.absent if absent.name.endswith(reduced)]
    for remark in remarks:
        _say(remark)


def _print_report(report: Report) -> None:
    rows = [[c.graph, c.subject, "ok" if c.ok else "FAILED", c.detail] for c in report.checks]
    _table(["graph", "check", "", ""], rows)


@command
def models(as_json: AsJSON = False) -> None:
    """List the models that can be trained."""
    registry = _plugins().registry
    entries = [registry.get("model", name) for name in registry.names("model")]
    if as_json:
        print(json.dumps([{"plugin": e.plugin, **e.load().to_mapping()} for e in entries], indent=2))
        return
    _table(["model", "plugin", "description"], [[e.name, e.plugin, e.load().description] for e in entries])


@command
def components(as_json: AsJSON = False) -> None:
    """List the components, exporters, runtimes and trackers."""
    from genkit.registry import KINDS

    registry = _plugins().registry
    entries = [registry.get(kind, name) for kind in KINDS[1:] for name in registry.names(kind)]
    if as_json:
        print(json.dumps([{"kind": e.kind, "name": e.name, "plugin": e.plugin} for e in entries], indent=2))
        return
    _table(["kind", "name", "plugin"], [[e.kind, e.name, e.plugin] for e in entries])


@command
def runtimes(as_json: AsJSON = False) -> None:
    """List the runtimes: the version of each, or what installs it."""
    from genkit.parity import list_runtimes

    found = list_runtimes(_Flags.disabled)
    if as_json:
        print(json.dumps(list(map(asdict, found)), indent=2))
        return
    rows = [[info.name, info.plugin, info.version or "-", info.problem or info.precision] for info in found]
    _table(["runtime", "plugin", "version", "precision, or what is missing"], rows)


@command
def plugins(as_json: AsJSON = False) -> None:
    """List the installed plugins, what each registered, and what went wrong."""
    found = list(_plugins().plugins.values())
    if as_json:
        keys = ("name", "distribution", "version", "module", "api", "state", "disabled", "problems")
        data = [
            {key: getattr(p, key) for key in keys} | {"entries": [{"kind": e.kind, "name": e.name} for e in p.entries]}
            for p in found
        ]
        print(json.dumps(data, indent=2))
        return
    rows = []
    for p in found:
        registered = ", ".join(f"{e.kind} {e.name}" for e in p.entries)
        rows.append([p.name, p.distribution, p.version, p.api or "-", p.state, registered, "; ".join(p.problems)])
    _table(["plugin", "distribution", "version", "API", "state", "registered", "problems"], rows)


@command
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model of `genkit models`.")], as_json: AsJSON = False
) -> None:
    """Show a model's recipe, and every option that can be set."""
    from genkit.assemble import describe_options, resolve

    registry = _plugins().registry
    recipe = resolve(registry.get("model", name).load(), registry)
    options = describe_options(recipe, registry)
    if as_json:
        print(json.dumps({"recipe": recipe.to_mapping(), "options": options}, indent=2))
        return
    _say(recipe.to_yaml())
    _table(["--set", "type", "value"], [[o["key"], o["type"], o["value"]] for o in options])


@functools.partial(command, group=new)
def plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="E.g. genkit-waves; also the name of the folder.")],
    kind: Annotated[
        str,
        typer.Option(metavar="model|component|dataset|exporter|runtime|tracker", help="What its example contributes."),
    ] = "component",
) -> None:
    """Write the package of a new plugin, with a working example and its tests."""
    from genkit.scaffold import new_plugin

    made = new_plugin(name, kind, Path())
    _say(f"Wrote {made.path}: {kind} {made.plugin}")
    _say("Next:")
    for line in made.commands:
        _say(f"  {line}")
