"""`rice_jax.main`, which also writes the examples of every training step to `examples-PROCESS.jsonl` in the workdir."""

import json

import jax
from absl import app, flags

from rice_jax import main
from rice_jax.config.command_line import parse_flags
from rice_jax.parallel import mesh
from rice_jax.train import loop


def recording_batch(devices, local):
    with open(f"{main.WORKDIR.value}/examples-{jax.process_index()}.jsonl", "a") as file:
        file.write(json.dumps(local["index"].tolist()) + "\n")
    return mesh.global_batch(devices, local)


if __name__ == "__main__":
    loop.global_batch = recording_batch
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main.main, flags_parser=parse_flags)
