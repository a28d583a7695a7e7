"""The servers of one run: started or reached, waited for while people are told, revived, and closed.

What is asked of a server may take as long as its patience lasts. A stage's work is therefore done in a
thread of its own while this one listens, so that a run says that it waits while it waits. Without a
server nothing of this happens. It knows no stage and no loss.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from opdcore.contract.events import Logged, Progress
from opdcore.contract.serving import Endpoint, Served
from opdcore.inspection import ModelCard
from opdcore.models import LoadedModel
from opdcore.rendering import Renderer
from opdcore.serving import widening
from opdcore.serving.connection import Away, Connection
from opdcore.serving.model import ServedModel
from opdcore.serving.sampler import ServedSampler
from opdcore.serving.server import Server, Serving
from opdcore.serving.shared import LOG, SharedServer

FOLDER = "serving"
HEARD_SECONDS = 0.2
T = TypeVar("T")


class Servers:
    """Opens servers and closes them with the stack that it is given."""

    def __init__(self, run_dir: Path, *, stack: ExitStack, stop: Callable[[], bool]) -> None:
        self._folder, self._stack, self._stop = run_dir / FOLDER, stack, stop
        self._notices: queue.Queue[Logged] = queue.Queue()
        self._any = False
        self._own: list[Server] = []
        self._models: list[ServedModel] = []

    def sampler(self, served: Served, serving: Serving, student: LoadedModel) -> ServedSampler:
        """The student's own server, whose weights are given to it."""
        model = self.open(
            served.endpoint, serving, student.renderer, student.card, name="student",
            device=student.device,
        )  # fmt: skip
        own = served.endpoint is None
        return ServedSampler(
            model,
            self._folder / "weights",
            on_cpu=own and not serving.on_gpu,
            sleeps=own and serving.sleeps,
        )

    def telling(self, work: Iterator[T], said: Callable[[Logged], T]) -> Iterator[T]:
        """What the work yields, and between it what is heard of the servers, as `said` shapes it."""
        if not self._any:
            yield from work
            return
        threads = torch.get_num_threads()
        end = object()
        with ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(threads)) as worker:
            while True:
                future = worker.submit(next, work, end)
                while not wait([future], HEARD_SECONDS).done:
                    yield from map(said, self._heard())
                yield from map(said, self._heard())
                item = future.result()
                if item is end:
                    return
                yield item  # type: ignore[misc]

    def open(
        self,
        endpoint: Endpoint | None,
        serving: Serving,
        renderer: Renderer,
        card: ModelCard,
        *,
        name: str,
        device: torch.device,
        shared: str | None = None,
    ) -> ServedModel:
        """A model behind a server, which may not be ready yet: an endpoint's, the job's own, or a shared one."""
        self._any = True
        own = None
        if endpoint is None:
            own = self._joined(Path(shared), serving) if shared else self._started(serving, name)
            endpoint = own.endpoint
        connection = Connection(endpoint, listener=self._listener(own), stop=self._stop)
        self._stack.enter_context(connection)
        model = ServedModel(
            connection, renderer, card, serving.folder, device, serving.student_top_k
        )
        self._models.append(model)
        return model

    def ready(self) -> Iterator[Progress | Logged]:
        """Waits for the servers that were started, telling since when; each must be able to do its part."""
        since = time.monotonic()
        for server in self._own:
            for _ in server.readying():
                if self._stop():
                    return
                yield Progress(
                    what=f"starting {len(self._own)} vLLM servers",
                    done=int(time.monotonic() - since), total=None, unit="seconds",
                )  # fmt: skip
        yield from self.telling(self._checked(), lambda told: told)

    def _checked(self) -> Iterator[Logged]:
        """Asks each server for what it will be asked; says nothing itself."""
        for model in self._models:
            model.check()
        yield from ()

    def _started(self, serving: Serving, name: str) -> Server:
        folder = serving.folder
        if not serving.on_gpu:
            folder = widening.widen_folder(folder, self._folder / name)
        server = Server(replace(serving, folder=folder), self._folder / f"{name}.log")
        self._own.append(self._stack.enter_context(server))
        return server

    def _joined(self, folder: Path, serving: Serving) -> Server:
        shared = SharedServer(serving, folder / LOG, folder=folder)
        self._own.append(self._stack.enter_context(shared))
        if shared.joined:
            text = f"The server of the {serving.folder.name} is one that another run has started."
            self._notices.put(Logged(level="info", message=text))
        return shared

    def _listener(self, own: Server | None) -> Callable[[Away | None], None]:
        def heard(away: Away | None) -> None:
            if away is None:
                self._notices.put(Logged(level="info", message="The server answers again."))
                return
            patience = "and is started anew" if own and own.revive() else "and is waited for"
            text = f"The server {away.address} does not answer, {patience}: {away.why}."
            self._notices.put(Logged(level="warning", message=text))

        return heard

    def _heard(self) -> Iterator[Logged]:
        while True:
            try:
                yield self._notices.get_nowait()
            except queue.Empty:
                return
