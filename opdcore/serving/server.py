"""A vLLM server as a process of the job: started on a free port of this machine, watched, and stopped.

It ends with the job, whatever happens to the job, and sees none of its secrets. What it says is in a log
file of the run's folder. It knows no request.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from opdcore.contract.errors import EngineFailure
from opdcore.contract.serving import Endpoint

# Where the environment with vLLM is looked for, in this order; `make vllm` makes the second.
VARIABLE = "STILLROOM_VLLM_PYTHON"
BESIDE = Path(__file__).resolve().parents[2] / ".venv-vllm" / "bin" / "python"
MODEL = "model"
# Of a GPU's memory, where the server has it alone, and where the job trains on it too.
SHARE_ALONE, SHARE_BESIDE = 0.9, 0.4
# Compiling kernels for a large model takes minutes.
LONGEST_START_SECONDS = 900.0
# More than its keeper gives it.
STOP_SECONDS = 15.0
CPU_ARGUMENTS = ("--dtype", "float32", "--enforce-eager")
_SECRETS = ("TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL", "DATABASE_URL", "REDIS_URL")
# Where a log names an error; what follows from it comes later, and an interpreter's last words explain none.
_CAUSE = re.compile(r"(?<!`)\b\w*(?:Error|Exception): .+")


@dataclass(frozen=True)
class Serving:
    """What a server is to do: a folder, how long its texts may be, and how many logprobs it may tell.

    `beside` a trainer on the same GPU it can sleep, which leaves the memory to the other.
    """

    folder: Path
    longest: int
    most_logprobs: int = 20
    devices: tuple[str, ...] = ()
    takes_weights: bool = False
    student_top_k: bool = False
    beside: bool = False
    memory_share: float | None = None

    def arguments(self, port: int) -> list[str]:
        """The command line, after the program's name."""
        told = {
            "--model": str(self.folder),
            "--served-model-name": MODEL,
            "--host": "127.0.0.1",
            "--port": str(port),
            "--max-model-len": str(self.longest),
            "--max-logprobs": str(self.most_logprobs),
            # The folder's own sampling defaults would change what is drawn.
            "--generation-config": "vllm",
            # Of the distribution that tokens are drawn from.
            "--logprobs-mode": "processed_logprobs",
        }
        given = [part for pair in told.items() for part in pair]
        given += ["--enable-scale-out"] if self.student_top_k else []
        return [*given, *(self._gpu_arguments() if self.on_gpu else CPU_ARGUMENTS)]

    def _gpu_arguments(self) -> Iterator[str]:
        share = self.memory_share or (SHARE_BESIDE if self.beside else SHARE_ALONE)
        yield from ("--gpu-memory-utilization", f"{share:g}")
        yield from ("--tensor-parallel-size", str(len(self.devices)))
        if self.sleeps:
            yield "--enable-sleep-mode"

    @property
    def sleeps(self) -> bool:
        """Whether it gives its memory to the trainer between two steps."""
        return self.on_gpu and self.beside and self.takes_weights

    @property
    def on_gpu(self) -> bool:
        return any(name.startswith("cuda") for name in self.devices)

    def environment(self, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The job's, without its secrets, with the server's devices and thread."""
        kept = {name: value for name, value in inherited.items() if not _is_secret(name)}
        # Without compiled modules each of a server's processes takes half a minute to import them.
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        told = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
        if self.takes_weights:
            told["VLLM_SERVER_DEV_MODE"] = "1"
        if self.on_gpu:
            told["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
            told["CUDA_VISIBLE_DEVICES"] = ",".join(_gpus(self.devices, inherited))
        else:
            # Bound to cores, two servers would share one and leave the others idle.
            told |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            told["VLLM_CPU_KVCACHE_SPACE"] = "1"
        return kept | told


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Server:
    """One process; a context manager. `restart` starts it anew at the same port."""

    serving: Serving
    log: Path
    port: int = field(default_factory=_free_port)
    process: subprocess.Popen[bytes] | None = None
    # Where the log of this start begins.
    _since: int = field(default=0, init=False)

    @property
    def endpoint(self) -> Endpoint:
        """Where it answers."""
        return Endpoint(base_url=f"http://127.0.0.1:{self.port}", model=MODEL)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the process; it is not ready yet."""
        self.process = self._launch(f"--parent={os.getpid()}")

    def _launch(self, kept: str, *, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """The server under its keeper, which is told for how long to keep it."""
        python = environment_of_vllm()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        keeper = [str(Path(__file__).with_name("keeper.py")), kept]
        program = [python, "-m", "vllm.entrypoints.openai.api_server"]
        with self.log.open("ab") as log:
            self._since = log.tell()
            return subprocess.Popen(
                [python, *keeper, *program, *self.serving.arguments(self.port)],
                env=self.serving.environment(), cwd=self.log.parent, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=pass_fds,
            )  # fmt: skip

    def readying(self) -> Iterator[float]:
        """Yields seconds passed until it answers; raises EngineFailure where it ends or takes too long."""
        since = time.monotonic()
        while not self._answers():
            passed = time.monotonic() - since
            if not self.is_alive or passed > LONGEST_START_SECONDS:
                raise self._failure(
                    "ended" if not self.is_alive else f"took over {passed:.0f} seconds"
                )
            yield passed
            time.sleep(0.5)

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def revive(self) -> bool:
        """Starts it anew where it has ended; whether it had."""
        if self.is_alive:
            return False
        self.start()
        return True

    def stop(self) -> None:
        """Ends the process and those that it has started."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _answers(self) -> bool:
        asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            asked.request("GET", "/health")
            return asked.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            asked.close()

    def _failure(self, what: str) -> EngineFailure:
        said = self.log.read_bytes()[self._since :].decode(errors="replace")
        cause = _CAUSE.search(said)
        told = cause.group()[:400].rstrip(".") if cause else "see its log"
        return EngineFailure(
            "serving.not_started",
            f"The vLLM server of {self.serving.folder.name} {what} before it answered: {told}.",
            remedy=f"Read {self.log}; a model that vLLM cannot serve is loaded "
            "by the job where no server is asked for.",
        )


def environment_of_vllm() -> str:
    """The Python that has vLLM; raises EngineFailure where there is none."""
    named = os.environ.get(VARIABLE)
    candidates: Sequence[str] = [named] if named else [str(BESIDE)]
    for python in candidates:
        if Path(python).exists():
            return python
    raise EngineFailure(
        "serving.no_vllm",
        f"There is no environment with vLLM: {candidates[0]} does not exist.",
        remedy=f"Run `make vllm` on this host, or name its Python in {VARIABLE}.",
    )


def _gpus(devices: Sequence[str], inherited: Mapping[str, str]) -> Iterator[str]:
    """The GPUs as the driver counts them; a job that sees some alone counts those from 0."""
    visible = inherited.get("CUDA_VISIBLE_DEVICES")
    for name in devices:
        index = name.partition(":")[2] or "0"
        yield visible.split(",")[int(index)] if visible else index


def _is_secret(name: str) -> bool:
    return any(word in name.upper() for word in _SECRETS)
