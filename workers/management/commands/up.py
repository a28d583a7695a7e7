"""`manage.py up`: the whole application on this machine, until Ctrl-C."""

from __future__ import annotations

import os
import webbrowser
from argparse import ArgumentParser
from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from opdcore.contract.errors import StillroomError
from workers.application import (
    AlreadyRunning,
    Application,
    free_port,
    only_one,
    prepare,
    stop_on_signals,
)


class Command(BaseCommand):
    help = "Start Stillroom on this machine: broker, worker and web server, until Ctrl-C."
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
        parser.add_argument(
            "--port",
            type=int,
            default=int(os.environ.get("PORT", "8000")),
            help="port, or the first one to try (PORT in the environment, else 8000)",
        )
        parser.add_argument("--no-demo", action="store_true", help="neither demo pair nor log-in")
        parser.add_argument("--open", action="store_true", help="open the page in a browser")

    def handle(self, *, host: str, port: int, **options: bool) -> None:
        port = free_port(host, port)
        application = Application(host=host, port=port, tell=self._tell)
        try:
            with only_one(Path(settings.STATE_DIR), application.url):
                self._up(application, seeded=not options["no_demo"], shown=options["open"])
        except AlreadyRunning as other:
            self._banner(other.url, "is already running at")
        except StillroomError as error:
            raise CommandError(str(error)) from error

    def _up(self, application: Application, *, seeded: bool, shown: bool) -> None:
        prepare(self._tell)
        login = self._seed() if seeded else []
        stop_on_signals(application.stopping)

        def ready() -> None:
            if application.stopping.is_set():
                return
            self._banner(application.url, "is running at", *login, "Stop it with Ctrl-C.")
            if shown:
                webbrowser.open(application.url)

        application.run(ready=ready)
        self._tell("Stopped")

    def _seed(self) -> list[str]:
        from webapp.services import demo

        return demo.seed(tell=self._tell)

    def _tell(self, text: str) -> None:
        self.stdout.write(f"  {text}")
        self.stdout.flush()

    def _banner(self, url: str, verb: str, *lines: str) -> None:
        rows = [f"Stillroom {verb}", "", f"    {url}", "", *lines]
        width = max(map(len, rows)) + 4
        self.stdout.write("")
        self.stdout.write("=" * width)
        for row in rows:
            self.stdout.write(f"  {row}".rstrip())
        self.stdout.write("=" * width)
        self.stdout.flush()
