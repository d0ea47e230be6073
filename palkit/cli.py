"""palkit: which images should the expert label next?

What a command needs is imported when it runs: torch and the rest take seconds, and help should not.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rich.console import Console
from rich.markup import escape

from palkit.errors import ConfigError, DataError, DataNotice, PalkitError, brief
from palkit.progress import bars

if TYPE_CHECKING:
    from palkit.config import ExperimentConfig
    from palkit.studies.execution import Executed

console = Console(stderr=True, highlight=False)


def say(text: object) -> None:
    """Print a line as it is, however long."""
    console.print(text, markup=False, soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """The argument parser, one sub-command per job."""
    top = argparse.ArgumentParser(prog="palkit", description=str(__doc__).partition("\n")[0])
    commands = top.add_subparsers(required=True)

    def command(execute: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(execute.__name__.removeprefix("_"), help=help)
        made.set_defaults(execute=execute)
        return made

    fetch = command(_fetch, "fetch and verify the embedded weights and data, and data sets by name")
    fetch.add_argument("datasets", nargs="*", metavar="DATASET", help="to download too, e.g. eurosat or hf:owner/name")
    manifest = command(_manifest, "check your own images and write a manifest with fixed splits")
    manifest.add_argument("source", help="folder, manifest or name of a data set")
    manifest.add_argument("out", type=Path, help="manifest to write, .csv or .parquet")
    manifest.add_argument("--drop-duplicates", action="store_true", help="leave out copies of images")
    manifest.add_argument("--group", metavar="REGEX", help="what in a path must not be divided by a split: the patient")
    manifest.add_argument("--unlabelled", action="store_true", help="sub-folders are no classes")
    manifest.add_argument("--classes", nargs="+", metavar="NAME", help="all classes in their order, as of grades")
    chosen = command(_select, "images to label next, of features or images of your own")
    chosen.add_argument(
        "dataset", help="file of features (.npy, .npz, .parquet), folder, manifest or name of a data set"
    )
    chosen.add_argument("--labels", type=Path, metavar="CSV", help="what is labelled: columns id and label")
    chosen.add_argument(
        "--probs", type=Path, metavar="FILE", help="class probabilities of a model of yours: .npy, or probs in .npz"
    )
    chosen.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="all classes, as the columns of probs")
    chosen.add_argument("--strategy", default="auto", help="default: auto")
    chosen.add_argument("-n", "--number", type=int, default=10, help="of images (default: 10)")
    chosen.add_argument("--per-group", type=int, metavar="N", help="of one group (patient, slide), at most")
    chosen.add_argument("--seed", type=int, default=0)
    chosen.add_argument("--out", type=Path, metavar="CSV", help="table to write instead of showing it")
    run = command(_run, "one active-learning run, e.g. run strategy=badge adapter.name=lora seed=1")
    run.add_argument("values", nargs="*", metavar="KEY=VALUE", help="config fields; text as it is, others as YAML")
    predict = command(_predict, "classes and probabilities of new images, by a fitted model")
    predict.add_argument("model", type=Path, help="folder of a run (or its hash), a session or a saved model")
    predict.add_argument("images", help="folder, manifest or name of a data set")
    predict.add_argument("out", type=Path, help="table to write, .csv or .parquet")
    exported = command(_export, "a fitted model and its labels as a folder that timm loads and the hub shows")
    exported.add_argument("model", type=Path, help="folder of a run (or its hash), a session or a saved model")
    exported.add_argument("out", type=Path, metavar="FOLDER", help="folder to make")
    served = command(_serve, "a labelling session for Label Studio: predictions, task order, labels, fits, live")
    served.add_argument("images", help="folder, manifest or name of a data set; or folder of a session to go on with")
    served.add_argument("--port", type=int, default=9090, help="default: 9090")
    served.add_argument("--host", default="127.0.0.1", help="address to serve at (default: this machine alone)")
    served.add_argument("--tasks", type=Path, metavar="JSON", help="tasks to write, for import into Label Studio")
    served.add_argument(
        "--images-url", metavar="URL", help="what ids are appended to in tasks (default: local files of Label Studio)"
    )
    doctor = command(_doctor, "what this machine is, how fast it is, and what palkit chooses on it")
    doctor.add_argument("--compile", action="store_true", help="measure torch.compile too")
    embed = command(_embed, "compute the frozen inputs of a config's runs, here or on a Ray cluster")
    embed.add_argument("--workers", type=int, default=2, help="shards at a time (ray)")
    sweep = command(_sweep, "execute what is missing of a grid of runs")
    sweep.add_argument("name", nargs="?", default="default", help="name in notebooks/sweeps/, or a file, .yaml or .yml")
    sweep.add_argument("--jobs", type=int, help="runs at a time (default: one per CPU)")
    sweep.add_argument("--time-limit", type=float, metavar="SECONDS", help="that a run may take (default: no limit)")
    sweep.add_argument("--no-notebooks", action="store_true", help="run without executing a notebook per run")
    sweep.add_argument("--watch", action="store_true", help="show a table of all runs while they are computed")
    sweep.add_argument("--dry-run", action="store_true", help="print the grid, time and memory; start nothing")
    watched = command(_watch, "show the table of a sweep that another process computes")
    studied = command(_study, "execute the notebooks over the results of a sweep")
    compared = command(_reproduce, "compare the results of a sweep with the committed reference")
    compared.add_argument("--results", type=Path, metavar="FOLDER", help="to compare (default: of the sweep's study)")
    compared.add_argument("--reference", type=Path, metavar="FOLDER", help="to compare with (default: figures/NAME)")
    renewed = command(
        _reference, "for contributors: make your results of a profile the reference, in figures/ and notebooks/"
    )
    renewed.add_argument("name", help="of the profile; all of its runs must be complete")
    for one in (manifest, predict):
        one.add_argument("--skip-unreadable", action="store_true", help="leave out files that cannot be read")
    for one in (doctor, embed, served):
        one.add_argument("values", nargs="*", metavar="KEY=VALUE", help="config fields, as for run")
    for one, here, part in ((embed, "this process", "worker"), (sweep, "processes of this machine", "run")):
        one.add_argument("--engine", choices=("local", "ray"), default="local", help=f"{here}, or Ray")
        one.add_argument("--address", help="of a running Ray cluster; without it, Ray starts on this machine (ray)")
        one.add_argument("--gpus", type=float, help=f"GPU share of a {part}, as 0.25 (ray; default: 1 on cuda)")
    for one in (watched, studied, compared):
        one.add_argument("name", nargs="?", default="default", help="its name, or its file")
    for one in (chosen, run, predict, served, doctor, embed, sweep, watched, studied, renewed):
        one.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if all went well, 1 after an error that was explained."""
    options = _options(arguments)
    try:
        with _notes():
            if "device" in options:
                from palkit.models.devices import choose_device

                options.device = choose_device(options.device)
            return options.execute(options)
    except PalkitError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments as parsed; KEY=VALUE may stand on both sides of an option, which sub-commands do not take."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if rest and ("values" not in options or any(one.startswith("-") for one in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.values = [*options.values, *rest]
    return options


@contextmanager
def _notes() -> Iterator[None]:
    """Print what is to be said of a data set as lines of their own, each once, however often it is loaded."""
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if not issubclass(category, DataNotice):
            usual(message, category, *place)
        elif str(message) not in said:
            said.add(str(message))
            console.print(f"[yellow]note:[/] {escape(str(message))}", soft_wrap=True)

    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.simplefilter("always", DataNotice)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _fetch(options: argparse.Namespace) -> int:
    from palkit.data import load_dataset
    from palkit.models.backbones import embedded_weights

    with console.status("fetching the embedded weights"):
        weights = embedded_weights()
    say(f"weights  {weights}  verified")
    for name in ("fashion_mnist", "fashion_mnist_lt", "digits"):
        pool = load_dataset(name)
        say(f"data     {name}: {len(pool)} images, {len(pool.class_names)} classes, verified")
    for name in options.datasets:
        pool = load_dataset(name)
        say(f"data     {name}: {len(pool)} images, {len(pool.class_names)} classes")
        say(pool.counts().to_string())
    return 0


def _manifest(options: argparse.Namespace) -> int:
    from palkit.data import load_dataset
    from palkit.data.manifest import check_suffix, examine, write_manifest

    check_suffix(options.out)
    pool = load_dataset(
        options.source, group=options.group, unlabelled=options.unlabelled, classes=options.classes, decode=True
    )
    findings = examine(pool)
    for line in findings.report():
        say(line)
    if len(findings.unreadable) and not options.skip_unreadable:
        raise DataError(
            f"{options.out} was not written: {len(findings.unreadable)} files cannot be read, see above. "
            "Replace them, or leave them out with --skip-unreadable."
        )
    pool = findings.cleaned(options.drop_duplicates)
    written = write_manifest(pool, options.out, ordered=bool(options.classes))
    say(f"manifest: {written}, {len(pool)} images")
    return 0


def _config(options: argparse.Namespace) -> "ExperimentConfig":
    """Config of the arguments."""
    from palkit.config import config_from_dict

    return config_from_dict(_values(options))


def _values(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of the arguments."""
    from palkit.config import typed

    values = {}
    for item in options.values:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{brief(item)} is not KEY=VALUE.")
        values[key] = typed(key, value)
    return values


def _doctor(options: argparse.Namespace) -> int:
    from palkit.experiments.doctor import diagnose
    from palkit.experiments.setting import pool_of
    from palkit.studies.advice import advised

    def show(name: str, finding: str) -> None:
        console.print(f"[bold]{name:12}[/] {escape(finding)}", soft_wrap=True)

    config = _config(options)
    for name, finding in diagnose(config, options.device, compile=options.compile):
        show(name, finding)
    pool = pool_of(config)
    show("strategy", advised(pool.labels[pool.rows("pool")], config.adapter.name != "linear_probe"))
    return 0


def _embed(options: argparse.Namespace) -> int:
    from palkit.experiments.dispatch import DispatchConfig
    from palkit.experiments.setting import setting
    from palkit.models.adapters import first_trained_block
    from palkit.scoring.inputs import Executor, compute_here
    from palkit.storage.checks import Count, checked

    config, device = _config(options), options.device
    checked("--workers", options.workers, Count)
    DispatchConfig(engine=options.engine, address=options.address, gpus=options.gpus)  # refuses what does not fit
    execute: Executor = compute_here
    if options.engine == "ray":
        from palkit.scoring.cluster import compute_on_ray

        gpus = float(device.startswith("cuda")) if options.gpus is None else options.gpus
        execute = partial(compute_on_ray, workers=options.workers, address=options.address, gpus=gpus)
    with bars(console) as progress:
        here = setting(config, device, progress)
        if not here.backbone.depth:
            raise ConfigError(f"dataset {config.dataset!r} holds features: there is nothing to compute.")
        for start_block in sorted({here.backbone.depth, first_trained_block(config.adapter, here.backbone.depth)}):
            began = time.perf_counter()
            shards = here.cache.shards(start_block, execute)
            seconds = time.perf_counter() - began
            what = "features" if start_block == here.backbone.depth else f"tokens entering block {start_block}"
            rows, shape = len(shards), " x ".join(map(str, shards.shape[1:]))
            console.print(f"{what}: {rows:,} rows of {shape} {shards.stored.name}, {rows / seconds:,.0f} rows/s")
            say(f"  {here.cache.folder(start_block)}")
    return 0


def _select(options: argparse.Namespace) -> int:
    from palkit.config import config_from_dict
    from palkit.data import from_features, holds_features, load_dataset
    from palkit.data.features import probs_of
    from palkit.errors import DataError
    from palkit.labelling.selection import matched, next_batch, read_labels
    from palkit.storage.files import atomic_path
    from palkit.strategies import get_strategy

    first = options.strategy if get_strategy(options.strategy).cold_start else "typiclust"
    names: dict[str, Any] = {"dataset": options.dataset, "strategy": options.strategy, "initial": first}
    names |= {"adapter": "linear_probe"}
    bound = {} if options.per_group is None else {"per_group": options.per_group}
    names |= {"batch_size": options.number, "seed": options.seed, "pool_size": None, "strategy_options": bound}
    config = config_from_dict(names)
    own, classes = Path(options.dataset).expanduser(), options.classes
    if holds_features(options.dataset):
        pool = from_features(own, classes or None, splits=False)
        probs, beside, images = probs_of(own) if own.suffix.lower() != ".npy" else (None, [], [])
        classes = classes or beside
    else:
        pool, probs, beside, images = load_dataset(options.dataset), None, [], []
    if options.probs is not None:
        probs, beside, images = probs_of(options.probs)
        if probs is None:
            raise DataError(f"{options.probs} holds no array probs.")
    if probs is not None:
        probs, classes = matched(probs, beside, images, pool, classes)
    labels = read_labels(options.labels) if options.labels else {}
    given = {"labels": labels, "probs": probs, "classes": classes}
    with bars(console) as progress:
        table = next_batch(config, pool, options.device, **given, progress=progress)
    if options.out is None:
        print(table.to_csv(index=False), end="")
    else:
        with atomic_path(options.out) as temporary:
            table.to_csv(temporary, index=False)
        say(f"chosen: {options.out}, {len(table)} images")
    if table["predicted"].eq("").all() and first != options.strategy:
        say(f"without labels of two classes there is no model yet, so {first} chose")
    return 0


def _run(options: argparse.Namespace) -> int:
    from palkit.data import ORDINAL
    from palkit.experiments.experiment import rounds, run_directory

    config, device = _config(options), options.device
    shown = ("accuracy", "kappa") if config.dataset in ORDINAL else ("accuracy",)
    with bars(console) as progress:
        for round_ in rounds(config, device=device, progress=progress):
            metrics = ", ".join(f"{name} {round_.metrics[name]:.3f}" for name in shown)
            seconds = round_.costs["fit_s"] + round_.costs["score_s"]
            console.print(f"round {round_.number}: {round_.labels} labels, {metrics}, {seconds:.1f} s")
    say(f"results: {run_directory(config, device).path}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from palkit.data.manifest import check_suffix
    from palkit.experiments.classifier import new_images
    from palkit.labelling.session import load_model
    from palkit.storage.files import atomic_path

    check_suffix(options.out)
    model = load_model(options.model, options.device)
    pool = new_images(options.images, skip_unreadable=options.skip_unreadable)
    with bars(console) as progress:
        table = model.predict(pool, progress)
    with atomic_path(options.out) as temporary:
        if options.out.suffix.lower() == ".parquet":
            table.to_parquet(temporary)
        else:
            table.to_csv(temporary, index=False)
    for name, count in table["predicted"].value_counts().items():
        say(f"{name}: {count} images")
    say(f"predictions: {options.out}, {len(table)} images")
    return 0


def _export(options: argparse.Namespace) -> int:
    import pandas as pd

    from palkit.experiments.export import empty_folder, export_model
    from palkit.labelling.session import found_run, load_model, stored_session
    from palkit.storage.formats import read_table

    empty_folder(options.out)  # before anything is computed
    session, folder = stored_session(options.model), found_run(options.model)
    model = load_model(folder) if session is None else session.model()
    labels: pd.DataFrame | None = None
    metrics: Mapping[str, float] = {}
    if session is not None:
        last = session.rounds()[-1]
        labels, metrics = pd.DataFrame({"id": last.ids, "label": last.labels}), last.metrics
    elif (folder / "rounds.parquet").exists():  # which a model that was saved elsewhere has not
        end, bought = read_table(folder / "rounds.parquet").iloc[-1], read_table(folder / "selections.parquet")
        labels = bought.loc[bought["round"] <= end["round"], ["id", "label", "round"]]
        labels["label"] = [model.class_names[code] for code in labels["label"]]
        metrics = {str(name): float(value) for name, value in end.items()}
    made = export_model(model, options.out, labels, metrics)
    say(f"model and {'no' if labels is None else len(labels)} labels: {made}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    import asyncio

    from palkit.labelling.exchange import label_studio_config
    from palkit.labelling.serve import ANNOTATOR, Backend, Studio, bind, serve, write_tasks
    from palkit.labelling.session import ASKED, open_session, stored_session

    values, images = _values(options), Path(options.images).expanduser()
    asked = {name: values[name] for name in ASKED if name in values}
    session = stored_session(images, options.device, ANNOTATOR, **asked)
    if session is None:
        session = open_session(options.images, ANNOTATOR, device=options.device, **values)
    elif others := [one for one in options.values if one.partition("=")[0] not in ASKED]:
        raise ConfigError(f"{images} is a session, which goes on as it was: leave out {others[0]}.")
    elif not session.rounds():
        raise ConfigError(f"the session in {images} has no fit yet. Give its images, with the fields it began with.")
    if not session.class_names:
        raise ConfigError(f"{options.images} has no classes yet. Name them, as in classes=[tumour,stroma].")
    print(label_studio_config(session.class_names), end="", flush=True)
    if options.tasks is not None:
        place = Path(session.config.dataset).expanduser()
        folder = f"{place.resolve().name}/" if place.is_dir() else ""
        write_tasks(session, options.tasks, options.images_url or f"/data/local-files/?d={quote(folder)}")
        say(f"tasks: {options.tasks}")
    url, key = os.environ.get("LABEL_STUDIO_URL"), os.environ.get("LABEL_STUDIO_API_KEY")
    studio = Studio(url.rstrip("/"), key) if url and key else None
    sockets = bind(options.host, options.port)
    with bars(console) as progress:
        backend = Backend(session, say, studio, progress)
    say(f"serving {session.folder} to Label Studio at {options.host}, port {sockets[0].getsockname()[1]}")
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(backend, sockets))
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from palkit.experiments.dispatch import DispatchConfig, run_sweep
    from palkit.experiments.estimate import expected
    from palkit.experiments.results import write_results
    from palkit.experiments.sweep import load_sweep

    began, sweep, device = time.perf_counter(), load_sweep(options.name), options.device
    same = {name: getattr(options, name) for name in ("jobs", "engine", "address", "gpus", "time_limit", "watch")}
    config = DispatchConfig(notebooks=not options.no_notebooks, **same)
    if options.dry_run:
        for line in expected(sweep, device, config.jobs):
            say(line)
        return 0
    outcomes = run_sweep(sweep, config, device=device, console=console)
    failed = [outcome for outcome in outcomes if outcome.error]
    if len(failed) < len(outcomes):
        say(f"results: {write_results(sweep, device)}")
    console.print(f"{len(outcomes) - len(failed)} complete, {len(failed)} failed, {time.perf_counter() - began:.0f} s")
    return 1 if failed else 0


def _watch(options: argparse.Namespace) -> int:
    from palkit.experiments.sweep import load_sweep, plan
    from palkit.experiments.watch import watch

    with suppress(KeyboardInterrupt):
        watch(plan(load_sweep(options.name), options.device), console)
    return 0


def _study(options: argparse.Namespace) -> int:
    from palkit.experiments.results import read_missing
    from palkit.experiments.sweep import load_sweep
    from palkit.studies import execution

    device, sweep = options.device, load_sweep(options.name)
    failed = _show(execution.execute(options.name, device=device, console=console))
    for line in read_missing(sweep.studies):
        console.print(f"[yellow]note:[/] {escape(line)}", soft_wrap=True)
    say(f"figures:  {sweep.studies}")
    found = execution.reproduction(options.name)
    page = execution.report(options.name, found, device=device)
    say(f"report:   {page or 'none, as 04 could not be executed'}")
    say(found.conclusion)
    return 1 if failed else 0


def _show(notebooks: "Iterator[Executed]") -> bool:
    """Print which notebooks were executed; whether one failed."""
    failed = False
    for notebook in notebooks:
        say(f"notebook: {notebook.path}")
        if notebook.error is not None:
            failed = True
            where = f"{notebook.path.name}, {notebook.error}"
            console.print(f"[red]failed:[/] {escape(where)}\n  The notebook holds the traceback.", soft_wrap=True)
    return failed


def _reproduce(options: argparse.Namespace) -> int:
    from palkit.studies import execution

    found = execution.reproduction(options.name, options.results, options.reference)
    say("\n".join(found.lines()))
    return 0  # a result that differs is a result


def _reference(options: argparse.Namespace) -> int:
    from palkit.studies import execution

    failed = _show(execution.renew_reference(options.name, device=options.device, console=console))
    say("Look at `git diff --stat`, and commit figures/ and notebooks/.")
    return 1 if failed else 0
