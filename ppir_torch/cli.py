"""The command line: `ppir run` (YAML groups and overrides), `ppir register` (two files), `ppir points`, `ppir info`.

Only typer is imported here; torch, hydra and pydantic are loaded by the command that needs them. What can be chosen
stands in the registries; help texts name it as {losses}, {transforms}, ..., filled in when a help text is shown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from . import __version__
from .errors import ConfigError, PpirError, RegistrationFailed
from .interruption import Interrupted, leave_on_interrupts, raise_instead_of_leaving

if TYPE_CHECKING:
    from .config.images import RunConfig
    from .config.points import PointsConfig

__all__ = ["app", "main"]

# Tracebacks stay plain: typer's show local variables, and those may hold an image.
app = typer.Typer(name="ppir", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

PACKAGES = ("torch", "crypten", "tenseal", "SimpleITK", "hydra-core", "pydantic")


class Command(TyperCommand):
    """A command whose help texts name what the registries hold, and that takes every option once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an option given twice: the first would be forgotten without a word, `--backend bfv` too."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in order:
            once = isinstance(parameter, TyperOption) and not parameter.multiple
            if once and order.count(parameter) > 1:
                error = ConfigError(f"{parameter.opts[0]}: given twice, once is needed")
                _print_error(error)
                raise typer.Exit(error.exit_code)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; {names} in braces are filled in first."""
        from .config.registries import names_for_help

        for parameter in self.params:
            if isinstance(parameter, TyperOption | TyperArgument) and parameter.help:
                parameter.help = parameter.help.format_map(names_for_help())
        super().format_help(ctx, formatter)


def main() -> None:
    """Entry point of the `ppir` command."""
    # Before torch loads: on a busy machine threads that spin while they wait make it several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    leave_on_interrupts()
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ppir_torch {__version__}")
        raise typer.Exit


@app.callback()
def ppir(
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Register two medical images that may not be shown to each other."""
    from .reporting.console import show_log

    show_log()


@app.command(cls=Command)
def run(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides: experiment=demo backend=bfv seed=3")
    ] = None,
    multirun: Annotated[bool, typer.Option("--multirun", "-m", help="Run every combination of key=a,b.")] = False,
    config_dir: Annotated[
        Path | None, typer.Option(help="A folder with further YAML groups, e.g. experiment/.")
    ] = None,
    saved: Annotated[
        Path | None, typer.Option("--config", help="A config.yaml that a run has saved; overrides win over it.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the composed configuration and run nothing.")] = False,
) -> None:
    """Run what the YAML groups under configs/ (or one saved configuration) and the overrides describe."""
    with _error_lines():
        from .config.compose import compose_runs

        runs = compose_runs(overrides or [], sweep=multirun, extra=config_dir, saved=saved)
        if show:
            for _, config in runs:
                typer.echo(_yaml(config), nl=False)
            return
        if not multirun:
            _run_one(runs[0][1], None, runs[0][0])
            return
        _run_all(runs)


@app.command(cls=Command)
def register(
    moving: Annotated[Path, typer.Argument(help="party_1's image: NIfTI, NRRD, MHA, PNG or a DICOM folder.")],
    fixed: Annotated[Path, typer.Argument(help="party_2's image.")],
    preset: Annotated[str | None, typer.Option(help="For whom; other options win over it. {presets}")] = None,
    transform: Annotated[str | None, typer.Option(help="{transforms} (default affine)")] = None,
    backend: Annotated[str, typer.Option(help="{backends}")] = "clear",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; default: a new one.")] = None,
    sampler: Annotated[str | None, typer.Option(help="{samplers} (default none)")] = None,
    fraction: Annotated[float | None, typer.Option(help="Share of the points, in (0, 1] (default 0.1).")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda (not for {without_device})")] = None,
    loss: Annotated[str | None, typer.Option(help="{losses} (default {loss})")] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="{optimizers}; by default what suits the loss"),
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(help="auto (from the size; the default), or shrinks, coarse to fine: 8,4,2 or 8x8x1,4x4x1,1"),
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="centres (default), centre_of_mass, identity, atlas (MNI's head) or an ITK file")
    ] = None,
    turns: Annotated[
        float | None, typer.Option(help="Degrees by which the images may lie turned: the start is tried from turns.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="ITK transform to compare with.")] = None,
    reference: Annotated[Path | None, typer.Option(help="ITK transform of the clear run, to compare with.")] = None,
    moving_mask: Annotated[Path | None, typer.Option(help="What counts of the moving image; told to nobody.")] = None,
    fixed_mask: Annotated[Path | None, typer.Option(help="Foreground of the fixed image.")] = None,
    disclose_mask: Annotated[bool, typer.Option("--disclose-mask", help="party_1 may learn the mask's shape.")] = False,
    disclose_centre_of_mass: Annotated[
        bool, typer.Option("--disclose-centre-of-mass", help="party_1 may learn the fixed image's centre of mass.")
    ] = False,
    disclose_atlas_map: Annotated[
        bool, typer.Option("--disclose-atlas-map", help="party_1 may learn the fixed image's affine map to the atlas.")
    ] = False,
    releases: Annotated[
        Path | None, typer.Option(help="party_2's SQLite file of released values; default: the site's own.")
    ] = None,
    max_values: Annotated[
        int | None, typer.Option(help="Cap on released values, over all runs; default: 5 % of the foreground voxels.")
    ] = None,
    noise: Annotated[float, typer.Option(help="party_2's noise on every product, as a share of J (0.01 to 0.03).")] = 0,
    threads: Annotated[int, typer.Option(help="Of each process.")] = 2,
) -> None:
    """Register MOVING to FIXED, without any YAML."""
    with _error_lines():
        from .config.images import load_config
        from .runs.shorthands import base_values, merged, start_group

        base = base_values(None, preset)
        backend_settings = {"kind": backend} | ({} if device is None else {"device": device})
        data = {"moving": moving, "fixed": fixed, "moving_mask": moving_mask, "fixed_mask": fixed_mask}
        data |= {"truth": truth, "reference": reference}
        consent = {"disclose_mask": disclose_mask, "disclose_centre_of_mass": disclose_centre_of_mass}
        consent |= {"disclose_atlas_map": disclose_atlas_map}
        given = {
            "transform": _chosen(transform),
            "backend": backend_settings,
            "sampler": _chosen(sampler),
            "loss": _chosen(loss),
            "optimizer": _chosen(optimizer),
            "pyramid": {"levels": None if levels is None else _levels(levels)},
            "data": data | consent,
            "start": start_group(None if start is None else _start(start), turns, base.get("start")),
            "budget": {"file": releases, "max_values": max_values, "noise": noise},
            "seed": seed,
            "threads": threads,
            "output": output,
        }
        values = merged(base, given)
        if fraction is not None:
            values["sampler"] = {"kind": "none", **values.get("sampler", {}), "fraction": fraction}
        config = load_config(values)
        _run_one(config, None, [f"backend={backend}"])


@app.command(cls=Command)
def points(
    moving: Annotated[Path, typer.Option(help="party_1's points, mm: .csv, .txt, .fcsv, .mrk.json or .npy.")],
    fixed: Annotated[Path, typer.Option(help="party_2's points, in the same order.")],
    backend: Annotated[str, typer.Option(help="{points_backends}")] = "clear",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; default: a new one.")] = None,
    scale: Annotated[bool, typer.Option("--scale", help="A similarity, not a rigid transform.")] = False,
    columns: Annotated[str | None, typer.Option(help="Columns x, y[, z] of both .csv files: col,row")] = None,
    fixed_columns: Annotated[str | None, typer.Option(help="The same of party_2's file, where it differs.")] = None,
    closest: Annotated[
        bool, typer.Option("--closest", help="No common order: iterative closest points, in clear only.")
    ] = False,
    residual: Annotated[
        bool, typer.Option("--residual/--no-residual", help="party_2 discloses its sum of squares, for the residual.")
    ] = True,
    share_transform: Annotated[bool, typer.Option("--share-transform", help="party_2 learns the transform.")] = False,
    truth: Annotated[Path | None, typer.Option(help="ITK transform to compare with (an experiment).")] = None,
    figure: Annotated[
        bool, typer.Option("--figure", help="Draw both sets of a private run, too (an experiment: it reads both).")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda (not for {without_device})")] = None,
    releases: Annotated[
        Path | None, typer.Option(help="party_2's SQLite file of released values; default: the site's own.")
    ] = None,
    max_values: Annotated[
        int | None, typer.Option(help="Cap on released values, over all runs; default: a quarter of the coordinates.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Of each process.")] = 1,
) -> None:
    """Align two point sets, rigid or similarity: only the cross-covariance of the two is computed together."""
    with _error_lines():
        from .config.points import load_points_config

        config = load_points_config(
            {
                "moving": moving,
                "fixed": fixed,
                "moving_columns": columns,
                "fixed_columns": columns if fixed_columns is None else fixed_columns,
                "transform": "similarity" if scale else "rigid",
                "correspondence": "closest" if closest else "known",
                "backend": {"kind": backend} | ({} if device is None else {"device": device}),
                "disclose_spread": residual,
                "share_transform": share_transform,
                "budget": {"file": releases, "max_values": max_values},
                "truth": truth,
                "figure": figure,
                "threads": threads,
                "output": output,
            }
        )
        _run_one(config, None, [f"backend={backend}"])


@app.command(cls=Command)
def audit(
    run: Annotated[Path | None, typer.Argument(help="Folder of a private run: what its values told party_1.")] = None,
    releases: Annotated[Path | None, typer.Option(help="party_2's SQLite file; default: the site's own.")] = None,
) -> None:
    """What was released: of one run, by level (party_1's ledger); of every image, over all runs (party_2's count)."""
    with _error_lines():
        from .reporting.audit import print_ledger, print_releases

        if run is not None:
            print_ledger(run)
        if run is None or releases is not None:
            from .parties.budget import default_path, open_ledger_rows

            path = releases or default_path()
            if not path.exists():
                typer.echo(f"{path}: no such file; nothing was released yet")
                return
            given = open_ledger_rows(path)
            rows = [[r.peer, r.image[:12], f"{r.count:,}", str(r.runs), r.first, r.last] for r in given]
            print_releases(path, rows)


@app.command(cls=Command)
def info() -> None:
    """Versions, device and protocols: what to put in a bug report."""
    from importlib.metadata import PackageNotFoundError, version

    typer.echo(f"ppir_torch {__version__}, Python {sys.version.split()[0]}")
    for package in PACKAGES:
        try:
            typer.echo(f"{package} {version(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package} is not installed")
    import torch

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "not available"
    typer.echo(f"CUDA: {cuda}")
    from .config.registries import backends, from_elsewhere

    for entry in backends():
        typer.echo(f"{entry.name}: {entry.title}")
    for line in from_elsewhere():
        typer.echo(line)


@contextmanager
def _error_lines() -> Iterator[None]:
    """What the user can mend becomes a line and an exit code; anything else stays an exception."""
    try:
        raise_instead_of_leaving()
        yield
    except PpirError as error:
        _print_error(error)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt as error:
        stop = Interrupted.of(error)
        with suppress(OSError):  # the terminal may be gone
            typer.echo(f"ppir: {stop}", err=True)
        raise typer.Exit(stop.exit_code) from None


def _print_error(error: PpirError) -> None:
    for line in str(error).splitlines():
        typer.echo(f"ppir: error: {line}", err=True)


def _chosen(kind: str | None) -> dict[str, str] | None:
    """The group of a thing that is named; None where nothing is said."""
    return None if kind is None else {"kind": kind}


def _levels(levels: str) -> object:
    """As configurations have them: "4,2x2x1" is a factor for all axes, then one for each."""
    if levels.strip() == "auto":
        return "auto"
    factors = [[int(n) if n.isdecimal() else n for n in part.strip().split("x")] for part in levels.split(",")]
    return [{"shrink": one[0] if len(one) == 1 else one} for one in factors]


def _start(start: str) -> str:
    from .runs.shorthands import NAMED_STARTS

    if start not in NAMED_STARTS and not Path(start).is_file():
        raise ConfigError(f"start: {start!r}, one of {', '.join(NAMED_STARTS)} or a transform file is needed")
    return start


def _run_all(runs: Sequence[tuple[list[str], RunConfig | PointsConfig]]) -> None:
    """Every run of a sweep in its own folder; one that fails does not stop the others."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    failed: list[int] = []
    for number, (overrides, config) in enumerate(runs):
        typer.echo(f"[{number + 1}/{len(runs)}] {' '.join(overrides)}")
        root = config.output or Path("multirun") / stamp
        try:
            _run_one(config, root / str(number), overrides)
        except PpirError as error:
            _print_error(error)
            failed.append(error.exit_code)
    if failed:
        typer.echo(f"ppir: error: {len(failed)} of {len(runs)} runs failed", err=True)
        raise typer.Exit(failed[0])


def _run_one(config: RunConfig | PointsConfig, folder: Path | None, overrides: Sequence[str]) -> None:
    """Run in `folder` (null: the configuration's, or a new one), with the configuration saved beside the results."""
    from .config.guard import asked_backends, refuse_clear
    from .reporting.console import print_result, print_warnings

    refuse_clear(asked_backends(overrides), config.backend.kind)
    prefix, run = _TASKS[config.task]
    folder = _new_folder(folder or config.output, _dated_folder(prefix + config.backend.kind))
    try:
        result = run(config.model_copy(update={"output": folder}), folder)
    except RegistrationFailed as failed:
        print_warnings(failed.values)
        raise
    print_result(result, folder)
    print_warnings(result)


def _run_images(config: Any, folder: Path) -> Mapping[str, Any]:
    from .runs.images import run

    _save(config, folder)
    return run(config, folder)


def _run_points(config: Any, folder: Path) -> Mapping[str, Any]:
    from .runs.points import run_points

    result = run_points(config, folder)  # one that fails leaves what an earlier run wrote
    _save(config, folder)
    return result


_TASKS: dict[str, tuple[str, Callable[[Any, Path], Mapping[str, Any]]]] = {
    "images": ("", _run_images),
    "points": ("points-", _run_points),
}


def _save(config: RunConfig | PointsConfig, folder: Path) -> None:
    (folder / "config.yaml").write_text(_yaml(config), encoding="utf-8")


def _dated_folder(name: str) -> Path:
    now = datetime.now()
    return Path("outputs") / now.strftime("%Y-%m-%d") / f"{now.strftime('%H-%M-%S')}-{name}"


def _new_folder(wanted: Path | None, default: Path) -> Path:
    tries = [default, *(default.with_name(f"{default.name}-{n}") for n in range(2, 100))]  # two runs in one second
    try:
        for folder in tries if wanted is None else [wanted]:
            if wanted is None and folder.exists():
                continue
            folder.mkdir(parents=True, exist_ok=wanted is not None)
            return folder
        raise FileExistsError(17, "a hundred runs in one second")
    except OSError as error:
        shown = repr(str(wanted or default))
        raise ConfigError(f"output: {shown}, a folder that can be written is needed ({error.strerror})") from None


def _yaml(config: RunConfig | PointsConfig) -> str:
    from omegaconf import OmegaConf

    return str(OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json"))))
