"""The command line: `demographics ...`. Each command imports what it needs when it runs, so that help is there at once."""

from __future__ import annotations

import json as jsonlib
import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import ConfigError, PipelineError
from pipeline.telemetry import configure_logging
from training.commands import evaluate, export, train

app = typer.Typer(
    name="demographics",
    help="Who comes in: streaming demographics from CCTV cameras, everybody counted once, no picture kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cameras_app = typer.Typer(help="Cameras: check them before they count.", no_args_is_help=True)
app.add_typer(cameras_app, name="cameras")
letters_app = typer.Typer(help="Dead letters: what could not be read, and sending it in again.", no_args_is_help=True)
app.add_typer(letters_app, name="deadletters")
app.command()(train)
app.command()(evaluate)
app.command()(export)

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the report on stdout as JSON; everything else goes to stderr.")
]


def _print_json(document: Any) -> None:
    sys.stdout.write(jsonlib.dumps(document) + "\n")
    sys.stdout.flush()


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=0, help="End after this long; 0: run until Ctrl-C.")] = 0,
    json: JsonOption = False,
    port: Annotated[int | None, typer.Option(help="Port of page and metrics; 8080, or any when that is taken.")] = None,
) -> None:
    """Two RTSP cameras that need no hardware, everything in one process, live page and /metrics."""
    from demo.command import run_demo
    from pipeline.settings import load_settings
    from pipeline.signals import stop_on_signals

    settings = load_settings()
    configure_logging(level="WARNING", json=False)
    document = run_demo(settings, stop_on_signals(), seconds=seconds, port=port)
    if json:
        _print_json(document)


@app.command()
def run(
    cameras: Annotated[
        Path | None, typer.Argument(help="A camera file; see cameras.example.yaml.", metavar="CAMERAS.yaml")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="An address or a file; may be given several times.", metavar="URL|FILE")
    ] = None,
    until_end: Annotated[bool, typer.Option("--until-end", help="Stop when every file or stream has ended.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Play files at their own pace, as cameras would send them, again and again.")
    ] = False,
    json: JsonOption = False,
    port: Annotated[int | None, typer.Option(help="Port of page and metrics; 8080 unless set, 0 for any.")] = None,
) -> None:
    """Run the pipeline in one process on your cameras or files."""
    from pipeline.camera_file import CameraFile
    from pipeline.cameras import cameras_of_sources
    from pipeline.local import run_cameras
    from pipeline.settings import load_settings
    from pipeline.signals import stop_on_signals

    settings = load_settings()
    if (cameras is None) == (not source):
        raise ConfigError(
            "name either a camera file or one or more --source, not both: `demographics run cameras.yaml`"
        )
    if live and cameras is not None:
        raise ConfigError(
            "--live is for --source; in a camera file, write `realtime: true` at the cameras that are files"
        )
    file = CameraFile(cameras) if cameras else None
    wanted = file.cameras if file else cameras_of_sources(source or [], realtime=live)
    configure_logging(level=settings.log_level, json=not sys.stderr.isatty())
    document = run_cameras(
        settings, wanted, stop_on_signals(), until_end=until_end, port=port, table=not json, file=file
    )
    if json:
        _print_json(document)


@app.command()
def ingest(
    cameras: Annotated[
        Path | None,
        typer.Argument(
            help="A camera file, followed when it changes; left out: the cameras of the topic, shared among workers.",
            metavar="CAMERAS.yaml",
        ),
    ] = None,
) -> None:
    """Run the ingest service: cameras to face crops on Kafka."""
    from ingest.__main__ import serve
    from pipeline.camera_file import CameraFile

    settings = _service_settings()
    serve(settings, CameraFile(cameras) if cameras else None)


@app.command()
def infer() -> None:
    """Run the inference service: face crops to predictions. As many as you like."""
    from inference.__main__ import serve

    serve(_service_settings())


@app.command()
def engines(
    model: Annotated[
        Path | None, typer.Option(help="A model's folder; the settings' where left out.", metavar="DIR")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Try them anew, whatever is known of this machine.")] = False,
    json: JsonOption = False,
) -> None:
    """Try every engine that may run the model on this machine; say how far each agrees, how fast it is, which one is taken."""
    from pipeline.engine_table import engines_document, show_engines
    from pipeline.settings import load_settings

    configure_logging(level="WARNING", json=False)
    document = engines_document(load_settings(), model, again=again)
    show_engines(document)
    if json:
        _print_json(document)


@app.command()
def aggregate() -> None:
    """Run the aggregator: predictions to counts in Redis, /metrics, API and live page."""
    from aggregator.__main__ import serve

    serve(_service_settings())


def _service_settings() -> Any:
    from pipeline.settings import load_settings

    settings = load_settings()
    configure_logging(level=settings.log_level, json=True)
    return settings


@cameras_app.command("check")
def cameras_check(
    cameras: Annotated[Path, typer.Argument(help="A camera file; see cameras.example.yaml.", metavar="CAMERAS.yaml")],
    seconds: Annotated[float, typer.Option(min=0.5, max=120, help="How long to look at each camera.")] = 5.0,
    json: JsonOption = False,
    snapshot: Annotated[
        Path | None,
        typer.Option(help="Write a picture of each camera there, faces and rule drawn on it.", metavar="DIR"),
    ] = None,
) -> None:
    """Open each camera; say codec, size, fps, first frame, key frames, faces, and what to change. Exit status 2 if one fails."""
    from ingest.check import check_cameras, show_checks
    from pipeline.cameras import load_cameras
    from pipeline.settings import load_settings

    results = check_cameras(load_cameras(cameras), load_settings().ingest, seconds=seconds, snapshots=snapshot)
    if json:
        _print_json([result.document() for result in results])
    else:
        show_checks(results)
    if any(result.problem for result in results):
        raise typer.Exit(2)


@cameras_app.command("add")
def cameras_add(
    name: Annotated[str, typer.Argument(metavar="ID", help="Its name: the label of its counts.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="Its address, secrets as ${NAME} in single quotes.")],
    keys: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another key of cameras.yaml, its value in YAML."),
    ] = None,
) -> None:
    """Add a camera to the topic, or replace it; the workers begin it without a restart."""
    import yaml

    entry: dict[str, Any] = {"id": name, "url": url}
    for item in keys or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {key}: write KEY=VALUE, such as --set detect_fps=5")
        try:
            entry[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {key}: its value is not YAML") from None
    _publish_cameras([entry], f"camera {name}")
    typer.echo(f"camera {name} added", err=True)


@cameras_app.command("remove")
def cameras_remove(names: Annotated[list[str], typer.Argument(metavar="ID...")]) -> None:
    """Remove cameras from the topic; the workers end them without a restart."""
    from pipeline.camera_topic import publish, read_all

    with _camera_bus() as bus:
        there = read_all(bus)
        if missing := [name for name in names if name not in there]:
            from pipeline.settings import known_names

            raise ConfigError(
                f"camera {name}: there is none of that name; {known_names(there, name)}" for name in missing
            )
        publish(bus, [], remove=names)
    typer.echo(f"removed {', '.join(names)}", err=True)


@cameras_app.command("list")
def cameras_list(json: JsonOption = False) -> None:
    """List the cameras of the topic, as cameras.yaml would have them; secrets are references and stay so."""
    import yaml

    from pipeline.camera_topic import read_all, shown

    with _camera_bus() as bus:
        found = [shown(entry) for entry in read_all(bus).values()]
    if json:
        _print_json(found)
    elif found:
        typer.echo(yaml.safe_dump({"cameras": found}, sort_keys=False).rstrip())
    else:
        typer.echo("no cameras yet; `demographics cameras apply cameras.yaml` adds a file's", err=True)


@cameras_app.command("apply")
def cameras_apply(
    cameras: Annotated[Path, typer.Argument(help="A camera file; see cameras.example.yaml.", metavar="CAMERAS.yaml")],
    prune: Annotated[bool, typer.Option("--prune", help="Remove the cameras that the file does not have.")] = False,
) -> None:
    """Add a file's cameras to the topic, or replace them."""
    from pipeline.camera_topic import read_all
    from pipeline.cameras import entries_of

    entries = entries_of(cameras)
    gone: list[str] = []
    if prune:
        with _camera_bus() as bus:
            gone = sorted(read_all(bus).keys() - {str(entry.get("id")) for entry in entries})
    _publish_cameras(entries, str(cameras), remove=gone)
    typer.echo(f"{len(entries)} cameras applied" + (f", removed {', '.join(gone)}" if gone else ""), err=True)


ReasonWhy = Annotated[str, typer.Option("--reason", help="Why; it is written down, and shown on the page.")]
ByOption = Annotated[str, typer.Option("--by", help="Who; your name on this machine unless given.")]
NameArgument = Annotated[str, typer.Argument(metavar="ID", help="Its name.")]


@cameras_app.command("pause")
def cameras_pause(name: NameArgument, reason: ReasonWhy, by: ByOption = "") -> None:
    """Have whoever runs a camera let go of its stream at once; waits until that is said. Written down in the audit."""
    _switch(name, "paused", reason, by)


@cameras_app.command("resume")
def cameras_resume(name: NameArgument, reason: ReasonWhy, by: ByOption = "") -> None:
    """Have a paused camera looked at again. Written down in the audit."""
    _switch(name, "resumed", reason, by)


@cameras_app.command("audit")
def cameras_audit(json: JsonOption = False) -> None:
    """Show who paused and resumed which camera, when and why."""
    from pipeline.switches import document, history

    with _camera_bus() as bus:
        found = history(bus)
    if json:
        _print_json(document(found))
    for switch in () if json else found:
        typer.echo(f"{switch.camera}: {switch.said}")


SWITCH_S = 20.0


def _switch(name: str, action: str, reason: str, by: str) -> None:
    import getpass
    import socket
    import time

    import msgspec

    from pipeline.errors import TransportError
    from pipeline.switches import Switch, let_go, publish

    who = by or f"{getpass.getuser()}@{socket.gethostname()}"
    said = {"camera": name, "action": action, "at": time.time(), "by": who, "reason": reason.strip()}
    try:
        switch = msgspec.convert(said, Switch)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{action} {name}: {error}; give a camera's id, and --reason in 1 to 200 characters"
        ) from None
    with _camera_bus() as bus:
        publish(bus, switch)
        took = let_go(bus, switch, SWITCH_S)
    if took is None:
        raise TransportError(
            f"camera {name} is {action} by the topic, but no worker has said so within {SWITCH_S:g} s: "
            "see whether that is its id (`demographics report`), and whether its worker runs"
        )
    typer.echo(f"camera {switch.said} ({took:.1f} s)", err=True)


def _camera_bus() -> Any:
    """Open the bus of the settings, with its topics."""
    from contextlib import closing

    from pipeline.distributed import open_bus
    from pipeline.settings import load_settings

    settings = load_settings()
    bus = open_bus(settings.kafka, "demographics-cameras")
    bus.ensure_topics(settings.kafka.topics())
    return closing(bus)


def _publish_cameras(entries: list[dict[str, Any]], source: str, *, remove: list[str] | None = None) -> None:
    from pipeline.camera_topic import checked_entries, publish

    good = checked_entries(entries, source)
    with _camera_bus() as bus:
        publish(bus, good, remove=remove or [])


@app.command()
def predict(
    image: Annotated[
        Path, typer.Argument(help="A picture, a film, or a folder of them.", metavar="IMAGE|VIDEO|FOLDER")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Where to write it with boxes and labels drawn; a folder for a folder.", metavar="OUT"
        ),
    ] = None,
    json: JsonOption = False,
    model: Annotated[Path | None, typer.Option(help="Folder of a model; the setting's unless given.")] = None,
) -> None:
    """Draw boxes with age, gender and ethnicity on pictures and films; exit status 2 if one cannot be read."""
    from pipeline.annotate import annotate
    from pipeline.settings import load_settings

    if out is None and not json:
        raise ConfigError("predict: say where to draw with -o OUT, or ask for --json, or both")
    settings = load_settings()
    document = annotate(image, out, settings, model or settings.inference.model)
    if json:
        _print_json(document)
    problems = [each["problem"] for each in document.get("files", {}).values() if "problem" in each]
    if problems:
        raise ConfigError(problems)


@app.command()
def report(
    window: Annotated[str, typer.Option(help="A rolling window such as 15m, or all.")] = "15m",
    json: JsonOption = False,
) -> None:
    """Show what the page shows in the terminal, straight from Redis: counts, shares, trend, cameras, how the pipeline does."""
    from pipeline.reading import read_report
    from pipeline.settings import load_settings

    document, table = read_report(load_settings(), window)
    if json:
        _print_json(document)
    else:
        from rich.console import Console

        Console().print(table)


@app.command()
def replay(
    start: Annotated[
        str, typer.Option("--from", help="beginning, an offset, or a time such as 2026-11-25T09:00:00+01:00.")
    ] = "beginning",
    into: Annotated[
        str | None, typer.Option(help="Fresh namespace for the counts; kept. One is made up unless given.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare with the live counts, cell by cell; exit status 1 if they differ.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make the counts again from the predictions in Kafka, in a fresh namespace of Redis."""
    from pipeline.replaying import replay_text, run_replay
    from pipeline.settings import load_settings

    configure_logging(level="ERROR", json=False)
    document = run_replay(load_settings(), start, into, verify=verify)
    if json:
        _print_json(document)
    else:
        sys.stdout.write(replay_text(document) + "\n")
    if document.get("difference"):
        raise typer.Exit(1)


ReasonOption = Annotated[
    str | None, typer.Option(help="Only these: schema, checksum, malformed, image, future or key.")
]
TopicOption = Annotated[str | None, typer.Option(help="Only those of this topic: face-crops or predictions.")]
SinceOption = Annotated[str | None, typer.Option(help="Only those of the last while, such as 15m, 2h or 7d.")]


@letters_app.command("list")
def letters_list(
    reason: ReasonOption = None,
    topic: TopicOption = None,
    since: SinceOption = None,
    most: Annotated[int, typer.Option(min=1, help="Show the latest so many; JSON has all.")] = 50,
    json: JsonOption = False,
) -> None:
    """Show the records that could not be read: where they lie and why, never what they hold."""
    from rich.console import Console

    from pipeline.letters import document, table

    bus, letters = _letters(reason, topic, since)
    bus.close()
    if json:
        _print_json(document(letters))
    else:
        Console().print(table(letters, most))


@letters_app.command("requeue")
def letters_requeue(
    reason: ReasonOption = None,
    topic: TopicOption = None,
    since: SinceOption = None,
    json: JsonOption = False,
) -> None:
    """Send those records in again that the log still has: after an upgrade that can read them. Counts nobody twice."""
    from pipeline.letters import requeue

    bus, letters = _letters(reason, topic, since)
    done = requeue(bus, letters)
    bus.close()
    if json:
        _print_json(done._asdict())
    else:
        sys.stdout.write(f"{done.sent} records sent in again, {done.gone} are no longer in the log\n")


def _letters(reason: str | None, topic: str | None, since: str | None) -> Any:
    import time

    from pipeline.distributed import open_bus
    from pipeline.letters import read_letters, wanted
    from pipeline.settings import load_settings, parse_window

    try:
        since_s = None if since is None else parse_window(since)
    except ValueError as error:
        raise ConfigError(f"--since: {error}") from None
    fits = wanted(reason, topic, since_s, time.time())
    bus = open_bus(load_settings().kafka, "demographics-deadletters")
    return bus, read_letters(bus, fits)


@app.command()
def simulate(
    cameras: Annotated[int, typer.Option(min=1, max=100_000, help="How many cameras.")] = 1000,
    people_per_minute: Annotated[float, typer.Option(min=0.01, max=600, help="Before each of them.")] = 10,
    seconds: Annotated[float, typer.Option(min=1, max=86400, help="How long people come.")] = 30,
    predictor: Annotated[
        str, typer.Option(help="stub: the step without the network, every cell is checked; model: with it.")
    ] = "stub",
    redis: Annotated[
        bool,
        typer.Option(
            "--redis", help="Into the Redis of the settings, in a namespace that is deleted; else a Valkey of its own."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Send a scripted crowd through inference, aggregator and Redis: what a core carries, latency, lag, memory, and exactness.

    Exit status 1 where the counters are not the people sent.
    """
    from pipeline.crowd import Crowd
    from pipeline.settings import load_settings
    from pipeline.simulate import run_simulate

    configure_logging(level="ERROR", json=False)
    if predictor not in {"stub", "model"}:
        raise ConfigError(f"--predictor {predictor}: there are stub and model")
    settings = load_settings()
    script = Crowd(
        cameras,
        people_per_minute,
        seconds,
        max_crops=settings.ingest.max_crops,
        crop_interval_s=settings.ingest.crop_interval_s,
    )
    url = settings.redis.url.get_secret_value() if redis else None
    document = run_simulate(settings, script, "stub" if predictor == "stub" else "model", url)
    if json:
        _print_json(document)
    if document["difference"]:
        raise typer.Exit(1)


@app.command()
def doctor(
    cameras: Annotated[
        Path | None,
        typer.Argument(help="A camera file; left out: the cameras of the topic.", metavar="CAMERAS.yaml"),
    ] = None,
    open_cameras: Annotated[bool, typer.Option("--open", help="Open each camera, too.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="One part, such as kafka; may be given several times.", metavar="PART")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not run the network.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 for warnings, too.")] = False,
    json: JsonOption = False,
) -> None:
    """Look at Kafka, Redis, topics, model, cameras, clock and GPU; say what to do. Exit status 1 if something failed."""
    from rich.console import Console

    from pipeline.doctor import Wanted, examine
    from pipeline.findings import PARTS, State, document, table
    from pipeline.settings import known_names

    if unknown := [part for part in only or () if part not in PARTS]:
        raise ConfigError(f"--only {part}: there is no such part; {known_names(PARTS, part)}" for part in unknown)
    configure_logging(level="ERROR", json=False)
    os.environ.pop(
        "TF_CPP_MIN_LOG_LEVEL", None
    )  # the images set it; here, what TensorFlow has to say is in the findings
    parts = tuple(part for part in PARTS if part in only) if only else PARTS
    findings = list(examine(Wanted(cameras, open_cameras=open_cameras, model=not quick, parts=parts)))
    if json:
        _print_json(document(findings))
    else:
        Console(highlight=False).print(table(findings))
    bad = {State.FAILED, State.WARNING} if strict else {State.FAILED}
    if any(finding.state in bad for finding in findings):
        raise typer.Exit(1)


@app.command()
def capacity(
    people_per_minute: Annotated[float, typer.Option(min=0.01, max=600, help="Before each camera.")] = 10,
    json: JsonOption = False,
    write: Annotated[
        Path | None, typer.Option(help="Put the figures between the marks of this Markdown page.", metavar="FILE")
    ] = None,
) -> None:
    """Measure what a camera costs here, and work out what 10, 100, 1,000 and 10,000 of them need. Takes two minutes."""
    from pipeline import capacity as planning
    from pipeline.bench import page
    from pipeline.settings import load_settings

    configure_logging(level="ERROR", json=False)
    costs = planning.run_capacity(load_settings(), people_per_minute)
    if write:
        command = "demographics " + " ".join(sys.argv[1:])
        page.put_between_marks(write, planning.markdown(costs, people_per_minute, command))
    if json:
        _print_json(planning.document(costs, people_per_minute))


@app.command()
def bench(
    only: Annotated[
        list[str] | None, typer.Option(help="One part; may be given several times.", metavar="PART")
    ] = None,
    json: JsonOption = False,
    plot: Annotated[Path | None, typer.Option(help="Draw ratios and limits into this picture.", metavar="FILE")] = None,
    write: Annotated[
        Path | None, typer.Option(help="Put the figures between the marks of this Markdown page.", metavar="FILE")
    ] = None,
    kafka: Annotated[
        str | None,
        typer.Option(help="A broker that nobody else uses: the bus is measured there, too.", metavar="HOST:PORT"),
    ] = None,
) -> None:
    """Measure this machine, part by part; each figure beside its peer and its limit, all in this run."""
    from pipeline.bench import page
    from pipeline.bench.run import run_bench
    from pipeline.settings import load_settings

    configure_logging(level="ERROR", json=False)
    rows = run_bench(load_settings(), only or [], kafka=kafka)
    if plot:
        page.plot(rows, plot)
    if write:
        page.put_between_marks(write, page.markdown(rows, "demographics " + " ".join(sys.argv[1:])))
    if json:
        _print_json([row.document() for row in rows])


def main() -> None:
    """Run a command. What the user can mend is one paragraph on stderr and exit status 2, never a traceback."""
    # The FFmpeg within OpenCV and PyAV writes addresses to stderr at its own discretion: with their passwords.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    threading.excepthook = _thread_failed
    configure_logging(level="WARNING", json=not sys.stderr.isatty())
    try:
        app()
    except PipelineError as error:
        lines = error.problems if isinstance(error, ConfigError) else (str(error),)
        sys.stderr.write(
            "demographics: " + "\n".join(f"{'  ' if n else ''}{line}" for n, line in enumerate(lines)) + "\n"
        )
        sys.exit(2)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Stay silent: whoever runs a thread has logged its failure, with addresses redacted; a traceback is not."""


if __name__ == "__main__":
    main()
