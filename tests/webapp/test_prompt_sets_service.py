"""Import of prompt sets: canonical, hashed, all or nothing; each bad row named by its place."""

import errno
import hashlib
import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.exceptions import PermissionDenied
from django.core.files.uploadedfile import SimpleUploadedFile

from opdcore.contract.errors import BadInput
from opdcore.contract.prompt import Prompt
from tests.webapp.rows import make_run
from webapp.models import AuditEntry, PromptSet
from webapp.services import prompt_sets


def jsonl(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture
def take_in(project, member):
    def upload(content, *, file="sums.jsonl", name="sums", actor=member):
        given = SimpleUploadedFile(file, content)
        return prompt_sets.upload(given, name=name, project=project, actor=actor)

    return upload


def test_json_lines_are_stored_canonically_under_their_hash(take_in, member):
    row = take_in(jsonl({"answer": "4", "prompt": "2 + 2 = ?"}, {"prompt": "Größe?"}))
    with prompt_sets.open_stored(row) as file:
        stored = file.read()
    assert stored.decode() == '{"prompt":"2 + 2 = ?","answer":"4"}\n{"prompt":"Größe?"}\n'
    assert (row.state, row.rows, row.sha256) == ("ready", 2, hashlib.sha256(stored).hexdigest())
    assert (row.stats["answers"], row.stats["characters_max"]) == (1, 9)
    assert AuditEntry.objects.get(verb="create").actor == member


def test_columns_of_public_sets_are_mapped_and_said(take_in):
    row = take_in(jsonl({"question": "How many?", "answer": "48 + 24\n#### 72", "id": 3}))
    assert prompt_sets.first_prompt(row) == Prompt(prompt="How many?", answer="48 + 24\n#### 72")
    assert row.stats["columns"] == {"prompt": "question", "answer": "answer"}
    assert row.stats["left_out"] == ["id"]


def test_a_broken_line_7_is_named_and_nothing_is_imported(take_in, settings):
    good = jsonl({"prompt": "a"})
    row = take_in(good * 6 + b'{"prompt": "a"\n' + good)
    assert (row.state, row.rows, row.storage_key) == ("failed", 0, "")
    assert [error["line"] for error in row.errors] == [7]
    assert "no JSON" in row.errors[0]["message"]
    assert not (settings.STATE_DIR / "prompts").exists()
    assert list((settings.STATE_DIR / "uploads").iterdir()) == []


def test_an_empty_prompt_is_an_error_of_its_column(take_in):
    row = take_in(jsonl({"question": "a"}, {"question": "  "}))
    assert row.errors[0]["line"] == 2
    assert row.errors[0]["column"] == "question"
    assert row.errors[0]["message"] == "The prompt is empty."


def test_bytes_that_are_not_utf8_are_an_error_of_their_line(take_in):
    row = take_in(jsonl({"prompt": "a"}) + b'{"prompt": "Gr\xf6\xdfe"}\n')
    assert row.errors[0]["line"] == 2
    assert "0xf6" in row.errors[0]["message"]
    assert "iconv" in row.errors[0]["remedy"]


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b'{"prompt": "a\\ud800b"}\n', "half a character"),
        (b'{"prompt": "a", "id": ' + b"1" * 5000 + b"}\n", "4,300 digits"),
        (b"[" * 100_000 + b"\n", "nested too deeply"),
    ],
)
def test_json_that_python_cannot_keep_is_an_error_of_its_line(take_in, raw, fault):
    row = take_in(jsonl({"prompt": "a"}) + raw)
    assert (row.state, [error["line"] for error in row.errors]) == ("failed", [2])
    assert fault in row.errors[0]["message"]


def test_text_in_utf16_leaves_no_nul_in_the_error(take_in):
    row = take_in('{"prompt": "Größe"}\n'.encode("utf-16-le"))
    assert row.state == "failed"
    assert "\0" not in row.errors[0]["value"]


def test_a_disk_that_takes_no_more_leaves_neither_row_nor_file(take_in, monkeypatch, settings):
    def full(self):
        yield b"{"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SimpleUploadedFile, "chunks", full)
    with pytest.raises(BadInput, match="No space left on device") as caught:
        take_in(jsonl({"prompt": "a"}))
    assert caught.value.info.code == "prompt_set.not_kept"
    assert not PromptSet.objects.exists()
    assert list((settings.STATE_DIR / "uploads").iterdir()) == []


def test_a_wrong_type_names_column_and_value(take_in):
    row = take_in(jsonl({"prompt": {"text": "a"}}))
    assert (row.errors[0]["column"], row.errors[0]["value"]) == ("prompt", '{"text": "a"}')


def test_a_row_without_a_prompt_says_which_names_are_understood(take_in):
    row = take_in(jsonl({"promt": "a"}))
    assert row.errors[0]["message"] == "The row has no prompt."
    assert "question" in row.errors[0]["remedy"]


def test_the_first_fifty_errors_are_kept_and_all_are_counted(take_in):
    row = take_in(b"x\n" * 70)
    assert (len(row.errors), row.error_count) == (50, 70)


def test_csv_cells_may_hold_line_breaks(take_in):
    row = take_in(b'question,answer,tags\n"a\nb",1,"x, y"\nc,2,\n', file="sums.csv")
    assert prompt_sets.page_of(row, start=0, count=5) == [
        Prompt(prompt="a\nb", answer="1", tags=("x", "y")),
        Prompt(prompt="c", answer="2"),
    ]


def test_a_csv_row_with_too_many_cells_names_its_line(take_in):
    row = take_in(b'question,answer\n"a\nb",1\nc,2,3\n', file="sums.csv")
    assert row.errors[0]["line"] == 4
    assert "3 cells" in row.errors[0]["message"]


def test_csv_that_is_not_utf8_is_an_error_of_its_line(take_in):
    row = take_in(b"question\na\nGr\xf6sse\n", file="sums.csv")
    assert row.errors[0]["line"] == 3


def test_parquet_is_read(take_in, tmp_path):
    path = tmp_path / "sums.parquet"
    pq.write_table(pa.table({"problem": ["a", "b"], "solution": ["1", None]}), path)
    row = take_in(path.read_bytes(), file="sums.parquet")
    assert (row.rows, row.stats["answers"]) == (2, 1)


def test_a_torn_parquet_file_is_an_error(take_in):
    row = take_in(b"PAR1 torn", file="sums.parquet")
    assert "no readable Parquet" in row.errors[0]["message"]


def test_chats_are_taken_in_both_spellings(take_in):
    row = take_in(jsonl({"conversations": [{"from": "human", "value": "hi"}]}))
    assert prompt_sets.first_prompt(row).messages[0].role == "user"


def test_versions_count_up_by_name(take_in):
    assert take_in(jsonl({"prompt": "a"})).version == 1
    assert take_in(jsonl({"prompt": "b"})).version == 2


def test_equal_content_is_no_new_version(take_in):
    take_in(jsonl({"prompt": "a"}))
    again = take_in(jsonl({"prompt": "a"}))
    assert again.state == "failed"
    assert "equals sums v1" in again.errors[0]["message"]


@pytest.mark.parametrize(("content", "file", "code"), [
    (b"", "a.jsonl", "prompt_set.empty"),
    (b"x", "a.xlsx", "prompt_set.format"),
])  # fmt: skip
def test_a_file_that_cannot_be_taken_in_leaves_no_row(take_in, content, file, code):
    with pytest.raises(BadInput) as caught:
        take_in(content, file=file)
    assert caught.value.info.code == code
    assert not PromptSet.objects.exists()


def test_a_file_above_the_limit_is_refused(take_in, settings):
    settings.PROMPT_SET_MAX_BYTES = 10
    with pytest.raises(BadInput, match="at most"):
        take_in(jsonl({"prompt": "a" * 20}))


def test_a_viewer_may_not_upload(take_in, viewer):
    with pytest.raises(PermissionDenied):
        take_in(jsonl({"prompt": "a"}), actor=viewer)


def test_an_unused_set_is_deleted_and_restored(take_in, member):
    row = take_in(jsonl({"prompt": "a"}))
    prompt_sets.delete(row, actor=member)
    assert not PromptSet.objects.present().exists()
    prompt_sets.restore(row, actor=member)
    assert PromptSet.objects.ready().get() == row


def test_a_used_set_is_not_deleted(take_in, project, member):
    row = take_in(jsonl({"prompt": "a"}))
    make_run(project, held_out_set=row)
    with pytest.raises(BadInput, match="used by 1 run"):
        prompt_sets.delete(row, actor=member)


def test_an_import_whose_process_has_gone_is_given_up(project):
    row = PromptSet.objects.create(
        project=project, name="a", version=1, state="importing", format="jsonl", source_name="a"
    )
    PromptSet.objects.update(done_at="2026-01-01T00:00:00Z")
    row.refresh_from_db()
    assert prompt_sets.give_up_if_silent(row).state == "failed"


@pytest.mark.slow
def test_two_hundred_thousand_rows_are_taken_in_and_tell_how_far_they_are(
    project, member, monkeypatch
):
    told = []
    monkeypatch.setattr(prompt_sets, "_tell", lambda row, done, rows: told.append((done, rows)))
    content = b"".join(jsonl({"question": f"{n} + 1?", "answer": n}) for n in range(200_000))
    row = prompt_sets.upload(
        SimpleUploadedFile("many.jsonl", content),
        name="many",
        project=project,
        actor=member,
        in_thread=False,
    )
    assert (row.state, row.rows) == ("ready", 200_000)
    assert told == sorted(told)
    assert len(told) > 2


@pytest.mark.django_db(transaction=True)
def test_a_large_file_is_taken_in_beside_the_request(project, member):
    given = SimpleUploadedFile("sums.jsonl", jsonl({"prompt": "a"}))
    row = prompt_sets.upload(given, name="a", project=project, actor=member, in_thread=True)
    assert row.state == "importing"
    deadline = time.monotonic() + 20
    while row.state == "importing" and time.monotonic() < deadline:
        time.sleep(0.05)
        row.refresh_from_db()
    assert (row.state, row.rows) == ("ready", 1)
