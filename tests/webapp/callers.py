"""Scripts that call the API: a client with a user's token, and without anything."""

from django.test import Client

from webapp.services import accounts


def with_token(user):
    _, secret = accounts.create_token("script", actor=user)
    return Client(headers={"Authorization": f"Bearer {secret}"})


def errors_of(answer, status):
    """The errors of a refusal; each of them is whole."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/json"
    found = answer.json()["errors"]
    assert found
    assert all(one["code"] and one["message"] and one["remedy"] for one in found)
    return found


def post(client, path, body=None):
    return client.post(path, body or {}, content_type="application/json")
