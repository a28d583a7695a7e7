"""The embedded server: starts on a socket, comes back when killed, leaves nothing behind."""

import os
import signal

import pytest
import redis

from workers.broker import (
    SOCKET_PATH_LIMIT,
    Broker,
    answers,
    find_server,
    socket_path,
    wait_until,
)


@pytest.fixture
def broker(tmp_path):
    server = Broker(socket_path(tmp_path), log=tmp_path / "broker.log")
    server.start()
    yield server
    server.stop()


def test_a_server_program_is_found():
    assert os.access(find_server(), os.X_OK)


def test_the_server_speaks_the_protocol_on_its_socket(broker):
    client = redis.Redis.from_url(broker.url)
    client.set("a", "1")
    assert client.get("a") == b"1"
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    client.close()


def test_the_server_listens_on_no_port(broker):
    client = redis.Redis.from_url(broker.url)
    assert client.config_get("port") == {"port": "0"}
    client.close()


def test_a_killed_server_is_started_again(broker):
    os.kill(broker.pid, signal.SIGKILL)
    assert wait_until(lambda: broker.ended, 5)
    assert broker.watch()
    assert answers(broker.socket_path)
    assert not broker.watch()


def test_a_server_whose_starter_was_killed_is_replaced(tmp_path, broker):
    successor = Broker(broker.socket_path, log=tmp_path / "broker.log")
    successor.start()
    assert wait_until(lambda: broker.ended, 5)
    assert answers(successor.socket_path)
    successor.stop()


def test_a_stopped_server_leaves_no_socket(tmp_path):
    server = Broker(socket_path(tmp_path), log=tmp_path / "broker.log")
    server.start()
    server.stop()
    assert not server.socket_path.exists()
    assert not answers(server.socket_path)


def test_a_long_state_folder_gets_a_short_socket(tmp_path):
    deep = tmp_path / ("x" * 90)
    path = socket_path(deep)
    assert len(str(path)) < SOCKET_PATH_LIMIT
    assert path == socket_path(deep)
    assert path != socket_path(tmp_path / ("y" * 90))
