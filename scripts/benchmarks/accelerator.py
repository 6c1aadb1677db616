"""Measures what an accelerator does in training, encoding and recognition, within ten minutes.

    python scripts/benchmarks/accelerator.py --out=DIR [--minutes=9] [--batch=4] [--pictures=4] [--config.…]

It runs `scripts/benchmark.py` for ViT-B/32, B/16 and L/14 in bfloat16: the training step of RICE's ICL, of all of RICE,
and of COPE, encoding, attention by the compiler and by cuDNN, the time from a frame to its ranking, and the input of
pictures. What has not ended after `--minutes` is cut off or left out, and named. The tables go to DIR/benchmark.txt,
too, each with its numbers as a line of JSON, and a trace of a training step to DIR/profile. `--batch`, `--pictures`,
and settings apply to all parts: small ones try the script on a CPU.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmark.py"
ENCODERS = {
    "ViT-B/32": {},
    "ViT-B/16": {"patch_size": 16},
    "ViT-L/14": {"patch_size": 14, "width": 1024, "layers": 24, "heads": 16, "embed_dim": 768, "pmd.num_heads": 16},
}
# Of a step. What does not fit on the device is left out.
BATCHES = {"ViT-B/32": "64,192,384", "ViT-B/16": "32,96", "ViT-L/14": "16,48", "COPE": "32,96"}
PICTURES = "256,1024"
SHORT = "--rounds=3", "--seconds=1"


def main(arguments: list[str] | None = None) -> None:
    """Measures all parts.

    Args:
        arguments: the command line; None = `sys.argv[1:]`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="directory of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts (default: 9)")
    parser.add_argument("--batch", help="of all steps, with commas between (default: by the model)")
    parser.add_argument("--pictures", default=PICTURES, help=f"encoded together (default: {PICTURES})")
    options, settings = parser.parse_known_args(arguments)
    batches = dict.fromkeys(BATCHES, options.batch) if options.batch else BATCHES
    options.out.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + 60 * options.minutes, []
    with (options.out / "benchmark.txt").open("w") as file:
        for name, command in parts(options.out, batches, options.pictures).items():
            if problem := run(name, [*command, *settings], end - time.monotonic(), file):
                failed.append(f"{name}: {problem}")
    if failed:
        sys.exit("\n".join(failed))


def parts(out: Path, batches: Mapping[str, str], pictures: str) -> dict[str, list[str]]:
    """What is measured, the most important first: {name: arguments of `scripts/benchmark.py`}.

    Args:
        out: directory for the trace.
        batches: sizes of a batch in training, by model.
        pictures: sizes of a batch that is encoded.
    """
    encoders = {
        name: [f"--config.model.{key}={value}" for key, value in sizes.items()] for name, sizes in ENCODERS.items()
    }
    found = {}
    for name, sizes in encoders.items():
        step = ["step", *SHORT, f"--batch={batches[name]}", *sizes]
        trace = [f"--profile={out / 'profile'}"] if not found else []
        found[f"ICL, {name}"] = [*step, *trace, "--config.loss.pmd_weight=0"]
        found[f"RICE, {name}"] = [*step, "--alone"]
        found[f"encoding, {name}"] = ["encode", *SHORT, f"--batch={pictures}", *sizes]
        if name == "ViT-B/32":
            found["COPE, ViT-B/16"] = ["step", "--config=cope", *SHORT, f"--batch={batches['COPE']}"]
    found |= {
        f"attention, {name}": ["attention", *SHORT, f"--batch={pictures}", *sizes] for name, sizes in encoders.items()
    }
    found |= {f"a frame, {name}": ["live", "--frames=100", *sizes] for name, sizes in encoders.items()}
    return found | {"input": ["data", "--clips=300", "--rounds=3", "--seconds=2"]}


def run(name: str, command: list[str], seconds: float, file) -> str:
    """Runs a part, and copies what it prints; returns what went wrong, "" = nothing.

    Args:
        name: of the part.
        command: arguments of `scripts/benchmark.py`.
        seconds: in which it has to end.
        file: what it prints is written here, too.
    """
    if seconds < 10:
        return "no time was left"
    title = f"\n== {name}: python scripts/benchmark.py {' '.join(command)}"
    print(title, flush=True)
    print(title, file=file, flush=True)
    command = ["timeout", f"{seconds:.0f}", sys.executable, str(BENCHMARK), *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            print(line, end="", file=file, flush=True)
    if not process.returncode:
        return ""
    return "the time was over" if process.returncode == 124 else f"failed with code {process.returncode}"


if __name__ == "__main__":
    main()
