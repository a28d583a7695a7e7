"""`manage.py worker`: this host's worker, with a thread for each device and one to spare."""

from __future__ import annotations

from django.core.management.base import BaseCommand

from webapp.celery import app
from webapp.services.machines import queue_name
from workers import inventory


class Command(BaseCommand):
    help = "Execute runs on this host's devices until stopped."
    requires_system_checks = []  # they are about pages

    def handle(self, **_: object) -> None:
        host = inventory.host()
        queues = f"{app.conf.task_default_queue},{queue_name(host)}"
        # Threads, since the work is a child process of its own; one more than devices, so that a
        # wake-up is answered while all are busy.
        app.worker_main(
            [
                *("worker", "--pool", "threads", "--loglevel", "info"),
                *("--concurrency", str(len(inventory.devices()) + 1)),
                *("--hostname", f"stillroom@{host}", "--queues", queues),
                *("--without-gossip", "--without-mingle"),
            ]
        )
