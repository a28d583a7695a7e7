"""Addresses of sockets."""

from __future__ import annotations

from django.urls import URLPattern, path

from webapp.consumers import RunConsumer

websocket_urlpatterns: list[URLPattern] = [
    path("ws/runs/<slug:public_id>/", RunConsumer.as_asgi()),
]
