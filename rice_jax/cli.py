"""The command `rice`; each subcommand imports only what it needs."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rice_jax import __version__

HELP = """\
Recognizes the product that a salesperson presents in a livestream clip.

usage: rice COMMAND [...]

A shop:
  convert    convert an encoder (CLIP, SigLIP, …) or a reference checkpoint
  index      embed a shop's pictures into an index
  recognize  find which products of an index a video shows, and when
  serve      recognize over HTTP, with a web page and an API
  search     find products of an index that words describe

A model:
  doctor     check raw data before a long build
  build      build a data set from raw files
  card       write a data card for a built data set
  embed-text embed titles and speech with a text tower
  train      train a model, or resume its run, and evaluate it
  eval       evaluate the newest checkpoint of a run; also called evaluate
  detect     write the boxes that a trained detector finds
  compare    compare evaluated runs on one page
  export     write a model as a folder that transformers loads

`rice COMMAND --help` describes a command.
`rice eval CLIPS.csv --index=DIR` takes a shop's own labeled clips, and so does
`rice train CLIPS.csv --index=DIR --out=RUN`.
Guides: docs/README.md in the repository."""

RUN_HELP = """\
{what}

usage: rice {command} --config=NAME_OR_FILE --workdir=DIR
           [--config.GROUP.SETTING=VALUE ...]

  --config=lpr4m     a config that comes with rice_jax, or a Python file's path
  --config.a.b=c     overrides one setting; docs/settings.md lists them all
  --workdir=DIR      directory of the run: checkpoints, metrics, results, report
{clips}
Several processes (Cloud TPU, Slurm and Open MPI are detected):
  --distributed      join the other processes; --nodistributed: run alone
  --coordinator=HOST:PORT --num_processes=N --process_id=I
                     on other clusters: address of the first process, number of
                     processes, index of this one from 0
  --timeout_seconds=120
                     wait this long for the other processes; one that is silent
                     for longer ends the run

Logging:
  --verbosity=0      also show the log of the libraries

{stopped}"""

MODES = {
    "train": "Trains a model, or resumes its run, and evaluates it before and after.",
    "eval": "Evaluates a run's newest checkpoint or, without one, config.model.init_from.",
    "detect": "Writes the boxes that a trained detector finds in the data set\n"
    "config.data.detect, one JSON line per frame.",
}
STOPPED = {
    "train": "A run can be stopped at any moment; the same command resumes it. On SIGTERM it\n"
    "saves first and exits with 143.",
    "eval": "If it is stopped, the same command evaluates again.",
    "detect": "It can be stopped at any moment; the same command continues.",
}


ON_CLIPS = """
On a shop's own clips: rice {command} CLIPS.csv --index=DIR{out};
rice {command} CLIPS.csv --help describes it.
"""
CLIPS = {"eval": "", "train": " --out=RUN"}
ALIASES = {"evaluate": "eval"}
INTERRUPTED = 130  # exit code, as shells number it


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; Ctrl-C and a reader of stdout that leaves (`| head`) end it without a traceback.

    Args:
        arguments: of the command line, `sys.argv[1:]` by default.
    """
    try:
        try:
            _run_command(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        from rice_jax.logs import end_unread

        end_unread()


def _run_command(arguments: Sequence[str]) -> None:
    command, *rest = arguments or [""]
    command = ALIASES.get(command, command)
    if command in ("", "-h", "--help", "help"):
        print(HELP)
    elif command == "--version":
        print(f"rice_jax {__version__}")
    elif command in CLIPS and _are_of_clips(rest):
        _use_clips(command, rest)
    elif command in MODES:
        _run(command, rest)
    elif command in COMMANDS:
        sys.exit(COMMANDS[command](rest))
    else:
        sys.exit(f"rice {command}: unknown, expected one of {', '.join([*COMMANDS, *MODES])}; see rice --help")


def _run(command: str, arguments: list[str]) -> None:
    if {"-h", "--help", "-help"} & set(arguments):
        on_clips = ON_CLIPS.format(command=command, out=CLIPS[command]) if command in CLIPS else ""
        print(RUN_HELP.format(command=command, what=MODES[command], clips=on_clips, stopped=STOPPED[command]))
        return
    from rice_jax import main as program

    program.start([f"rice {command}", f"--mode={command}", *arguments])


def _are_of_clips(arguments: list[str]) -> bool:
    """Whether arguments name labels of clips rather than a config."""
    return any(not argument.startswith("-") for argument in arguments[:1]) or any(
        argument.partition("=")[0] == "--index" for argument in arguments
    )


def _use_clips(command: str, arguments: list[str]) -> None:
    if command == "eval":
        from rice_jax.commands import evaluate

        evaluate.main(arguments, prog="rice eval")
    else:
        from rice_jax.commands import train_clips

        train_clips.main(arguments, prog="rice train")


def _build(arguments: list[str]) -> None:
    from rice_data import build

    build.main(arguments, prog="rice build")


def _card(arguments: list[str]) -> None:
    from rice_data import card

    card.main(arguments, prog="rice card")


def _embed_text(arguments: list[str]) -> None:
    from rice_jax.commands import embed_text

    embed_text.main(arguments, prog="rice embed-text")


def _doctor(arguments: list[str]) -> int:
    from rice_data import doctor

    return doctor.main(arguments, prog="rice doctor")


def _recognize(arguments: list[str]) -> None:
    from rice_jax import recognize

    recognize.main(arguments, prog="rice recognize")


def _serve(arguments: list[str]) -> None:
    from rice_jax import serve

    serve.main(arguments, prog="rice serve")


def _search(arguments: list[str]) -> None:
    from rice_jax.commands import search

    search.main(arguments, prog="rice search")


def _convert(arguments: list[str]) -> None:
    kind = arguments[0] if arguments else ""
    if kind == "reference":
        from rice_jax.convert import reference

        reference.main(arguments[1:], prog="rice convert reference")
    elif kind == "text":
        from rice_jax.convert import text

        text.main(arguments[1:], prog="rice convert text")
    else:
        from rice_jax.convert import clip

        # A source says itself of which family it is; the name is from when there was one.
        named = kind == "clip"
        clip.main(arguments[named:], prog="rice convert clip" if named else "rice convert")


def _export(arguments: list[str]) -> None:
    from rice_jax.commands import export

    export.main(arguments, prog="rice export")


def _index(arguments: list[str]) -> None:
    from rice_jax.commands.index import job_of

    _report(job_of(arguments))


def _compare(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="rice compare",
        description="Writes a page that compares runs evaluated on the same queries; the first run is the baseline.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="workdir of an evaluated run")
    parser.add_argument("--workdir", type=Path, required=True, help="directory to write compare.html into")
    options = parser.parse_args(arguments)

    def compare() -> None:
        from rice_jax.pages.compare import write_comparison

        path = options.workdir / "compare.html"
        write_comparison(path, options.runs)
        print(path)

    _report(compare)


def _report(job: Callable[[], None]) -> None:
    """Runs a job and logs to stderr; an expected error ends the program with one line."""
    from rice_jax.commands.errors import errors_in_one_line
    from rice_jax.logs import log_to_stderr

    log_to_stderr()
    with errors_in_one_line():
        job()


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "convert": _convert,
    "index": _index,
    "recognize": _recognize,
    "serve": _serve,
    "search": _search,
    "doctor": _doctor,
    "build": _build,
    "card": _card,
    "embed-text": _embed_text,
    "compare": _compare,
    "export": _export,
}


if __name__ == "__main__":
    main()
