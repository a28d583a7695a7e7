"""A job without torch: writes real events as its recipe's description, a JSON object, tells it to.

steps          how many steps (3)           seconds        of sleep in each (0)
first_step     after this one (0)           resumed        says that it resumed there
die_at         kills itself at that step    exit           leaves with that code, without a word
deaf           ignores SIGTERM              child          starts a process that would outlive it
garbage        writes lines that are none   output         writes a folder and a trace
stderr         last line on stderr            pause          pauses after its steps
blab           variables whose values it says in an event, in a line that is none, and on stderr
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from opdcore.contract.errors import ErrorInfo
from opdcore.contract.events import (
    ArtifactWritten,
    JobFinished,
    JobStarted,
    Logged,
    Metrics,
    StageFinished,
    StageStarted,
    TraceWritten,
    encode,
    shape,
)
from opdcore.contract.job import Job


class Emitter:
    def __init__(self, job, sink):
        self.job, self.sink, self.line, self.asked = job, sink, 0, False

    def say(self, payload, *, step=None, stage=0):
        self.line += 1
        event = shape(
            payload, attempt=self.job.attempt, line=self.line, stage_index=stage, step=step
        )
        self.sink.write(encode(event) + b"\n")

    def stop(self, *_):
        self.asked = True


def main():
    _, _, path, _, run_dir, _, descriptor = sys.argv
    job = Job.model_validate_json(Path(path).read_bytes())
    told = json.loads(job.recipe.description or "{}")
    with os.fdopen(int(descriptor), "wb", buffering=0) as sink:
        emitter = Emitter(job, sink)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if told.get("deaf") else emitter.stop)
        emit(emitter, told, Path(run_dir))


def emit(emitter, told, run_dir):
    first = told.get("first_step", 0)
    resumed = first if told.get("resumed") else None
    emitter.say(JobStarted(device="cpu", versions={}, steps_by_stage=(20,)), stage=None)
    emitter.say(StageStarted(stage_kind="distill", steps=20, resumed_from_step=resumed))
    if told.get("child"):
        stray = subprocess.Popen(["sleep", "600"])
        (run_dir / "stray.pid").write_text(str(stray.pid))
    (run_dir / "environment.json").write_text(json.dumps(dict(os.environ)))
    for step in range(first + 1, first + told.get("steps", 3) + 1):
        if emitter.asked:
            emitter.say(JobFinished(status="cancelled"), stage=None)
            sys.exit(5)
        if told.get("die_at") == step:
            os.kill(os.getpid(), signal.SIGKILL)
        emitter.say(Metrics(values={"loss": 1 / step, "generated_tokens": 10.0}), step=step)
        time.sleep(told.get("seconds", 0))
    if told.get("garbage"):
        emitter.sink.write(b'Downloading: 100%\n{"attempt": 1}\n\xff\xfe\n')
    for name in told.get("blab", ()):
        said = os.environ[name]
        emitter.say(Logged(level="info", message=f"The token is {said}."))
        emitter.sink.write(f"{said} is no event\n".encode())
        sys.stderr.write(f"401 for {said}\n")
    if told.get("output"):
        write_output(emitter, run_dir)
    if told.get("pause"):
        why = ErrorInfo(code="run.paused", message="It is failing.", remedy="Resume it.")
        emitter.say(JobFinished(status="paused", error=why), stage=None)
        sys.exit(6)
    if "exit" in told:
        sys.stderr.write(told.get("stderr", "") + "\n")
        sys.exit(told["exit"])
    emitter.say(StageFinished(seconds=1.0))
    emitter.say(JobFinished(status="succeeded"), stage=None)


def write_output(emitter, run_dir):
    (run_dir / "output").mkdir(exist_ok=True)
    (run_dir / "output" / "model.safetensors").write_bytes(b"weights")
    (run_dir / "output" / "config.json").write_bytes(b"{}")
    (run_dir / "traces").mkdir(exist_ok=True)
    (run_dir / "traces" / "step-1.parquet").write_bytes(b"PAR1")
    emitter.say(TraceWritten(key="traces/step-1.parquet", rollouts=1), step=1)
    emitter.say(
        ArtifactWritten(artifact_kind="output", key="output", sha256="0" * 64, size_bytes=9)
    )


if __name__ == "__main__":
    main()
