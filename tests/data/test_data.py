"""Rows, sources, order and position of training examples."""

import json
import logging
import re
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from paths import ROOT

from sdjax.data import builder, sources
from sdjax.data.pipeline import Batches, drop_overlong
from sdjax.data.rows import Broken, RowError, convert_rows, distinct, text_field, unseen
from sdjax.errors import UserError
from sdjax.io import progress
from sdjax.records import Example


def examples(count: int) -> list[Example]:
    return [
        Example(
            id=f"test-{i}",
            messages=({"role": "user", "content": "q" * (i + 1)},),
            answer="1",
            task="t",
        )
        for i in range(count)
    ]


def ids(batch: list[Example]) -> list[str]:
    return [e.id for e in batch]


def convert(row: dict, number: int) -> Example:
    message = {"role": "user", "content": text_field(row, "prompt")}
    answer = text_field(row, "reward", "answer")
    return Example(id=str(number), messages=(message,), answer=answer, task="t")


GOOD = {"prompt": "p", "reward": {"answer": "a"}}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "p"}', "field 'reward.answer' is missing"),
        ('{"prompt": "p", "reward": {"answer": null}}', "field 'reward.answer' is missing"),
        ('{"prompt": " ", "reward": {"answer": "a"}}', "field 'prompt' is empty"),
        ('{"prompt": 3, "reward": {"answer": "a"}}', "field 'prompt' is int, not text"),
        ('{"prompt": "p"', "is not JSON (Expecting ',' delimiter, column 15)"),
        ('{"prompt": "p', "is not JSON (Unterminated string starting, column 12)"),
        ('{"question": "p"}', "field 'prompt' is missing (the columns are question)"),
        ("[1]", "is a JSON list, not an object"),
        ("[" * 100_000, "is not JSON"),
        ('{"prompt": "p", "prompt": "q"}', "is not JSON (the key 'prompt' occurs twice)"),
        ('{"prompt": "p",}', "is not JSON"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_field_or_skipped_and_listed(tmp_path, line, says):
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n\n{line}\n{json.dumps(GOOD)}\n")
    with pytest.raises(UserError) as error:
        convert_rows(str(file), sources.read_rows(str(file)), convert, "error")
    assert f"{file}:3: {says}" in str(error.value)
    kept, skipped = convert_rows(str(file), sources.read_rows(str(file)), convert, "skip")
    assert ids(kept) == ["1", "4"]
    assert [(s.file, s.row) for s in skipped] == [(str(file), 3)]
    assert skipped[0].reason.startswith(says)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (b'[{"a": 1},\n {"a": 2},\n {"a": ', "3: is not JSON (Expecting value, line 3, column 8)"),
        (b'[{"a": 1}, {"a": 2} {"a": 3}]', "2: is not JSON (Expecting ',' delimiter, column 21)"),
        (b'[{"a": 1}, {"a": "\xff"}, {}]', "2: is not JSON ('utf-8' codec can't decode"),
        (b"[", "1: is not JSON (Expecting value, column 2)"),
    ],
)
def test_a_broken_element_of_an_array_is_named(tmp_path, rows, says):
    file = tmp_path / "rows.json"
    file.write_bytes(rows)
    with pytest.raises(UserError) as error:
        list(sources.read_rows(str(file)))
    assert f"{file}:{says}" in str(error.value) and "mend the row" in str(error.value)


def test_a_file_without_rows_or_without_usable_rows_is_an_error(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("")
    with pytest.raises(UserError, match="has no rows"):
        convert_rows(str(file), sources.read_rows(str(file)), convert, "skip")
    file.write_text("{}\n{}\n")
    with pytest.raises(UserError, match="none of its 2 rows is usable; first: row 1: field"):
        convert_rows(str(file), sources.read_rows(str(file)), convert, "skip")


def test_a_converter_may_leave_rows_out(tmp_path):
    rows = [(1, GOOD), (2, GOOD)]
    kept, skipped = convert_rows("f", rows, lambda r, n: convert(r, n) if n == 2 else None, "error")
    assert ids(kept) == ["2"] and skipped == ()


@pytest.mark.parametrize("name", ["rows.jsonl", "lines.json", "array.json", "rows.parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path, name):
    rows = [
        {"prompt": "[1, 2]", "n": 1, "nested": {"a": "é\n"}},
        {"prompt": "x", "n": 2, "nested": {"a": ""}},
    ]
    file = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif name.startswith("array"):
        file.write_text(" " + json.dumps(rows))
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    assert list(sources.read_rows(str(file))) == list(enumerate(rows, start=1))


ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "é", "answer": "4"}]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
        b"\xef\xbb\xbf\r\n " + json.dumps(ROWS, indent=2).replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + "\n".join(map(json.dumps, ROWS)).encode(),
        "\r\n".join(map(json.dumps, ROWS)).encode() + b"\r\n\r\n",
        json.dumps(ROWS, ensure_ascii=False).encode(),
    ],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_marks_ends_of_lines_and_indents_change_no_row(tmp_path, text, name):
    (tmp_path / name).write_bytes(text)
    assert [row for _, row in sources.read_rows(str(tmp_path / name))] == ROWS


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rows.json", json.dumps(ROWS).encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        ("rows.jsonl", json.dumps(ROWS[0]).encode("utf-32"), "is UTF-32 text: save it as UTF-8"),
        ("rows.jsonl", json.dumps(ROWS[0]).encode("utf-16-le"), "save it as UTF-8"),
        ("rows.jsonl.gz", b"\x1f\x8b", "is none of .jsonl, .json, .parquet, .csv: unpack it"),
        ("rows.tsv", b"a\tb", "is none of .jsonl, .json, .parquet, .csv: convert it"),
        ("rows.json", b'[{"a": 1}, {"a": 1, "a": 2}]', "2: is not JSON (the key 'a' occurs twice)"),
        ("rows.json", b'[{"a": 1},]', "2: is not JSON"),
    ],
)
def test_a_file_in_another_form_says_what_to_do(tmp_path, name, text, says):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError) as error:
        list(sources.read_rows(str(tmp_path / name)))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_an_object_over_several_lines_is_a_row(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[0], indent=2))
    assert list(sources.read_rows(str(tmp_path / "rows.json"))) == [(1, ROWS[0])]


def test_structs_kept_as_json_text_in_parquet_are_decoded(tmp_path):
    file = tmp_path / "rows.parquet"
    row = {"prompt": '[{"role": "user", "content": "hi"}]', "extra_info": '{"a": 1}', "other": "{}"}
    pq.write_table(pa.Table.from_pylist([row]), file)
    ((_, read),) = sources.read_rows(str(file))
    assert read["prompt"] == [{"role": "user", "content": "hi"}]
    assert read["extra_info"] == {"a": 1} and read["other"] == "{}"


def test_a_tfds_folder_gives_back_the_rows_it_was_built_from(tmp_path):
    rows = [
        {"prompt": f"p{i}", "nested": {"a": [i, None, "[]"]}, "text": "[1]", "n": i, "bad": "\x00é"}
        for i in range(5)
    ] + [{"prompt": "last", "text": "", "bad": "null"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    built = builder.build("some_rows", {"a": str(file), "b": str(file)}, str(tmp_path / "data"))
    assert built.info.splits["a"].num_examples == 6
    folder = tmp_path / "data" / "some_rows" / "1.0.0"
    assert any(f.suffix != ".json" and "array_record" in f.name for f in folder.iterdir())
    read = [row for _, row in sources.read_rows(f"{folder}:b")]
    absent = {"nested": None, "n": None}
    assert read == [*rows[:5], rows[5] | absent]
    with pytest.raises(UserError, match=r"choose a split, .*:SPLIT with one of a, b"):
        list(sources.read_rows(str(folder)))


def test_a_tfds_build_stops_at_a_broken_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": "1"}\n{"a": \n')
    with pytest.raises(UserError, match=r"rows.jsonl:2: is not JSON"):
        builder.build("broken_rows", {"a": str(file)}, str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere.json", "no such file"),
        ("pyproject.toml", "is none of"),
        ("hf://datasets/only-a-name", "should read hf://datasets/OWNER/NAME"),
        ("https://localhost:1/rows.parquet", "cannot be fetched"),
        ("tests", "is no TFDS data directory"),
        ("openai/gsm8k", "no such file: a data set of the hub reads hf://datasets/openai/gsm8k"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(source, says, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=says):
        list(sources.read_rows(source))


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    file = tmp_path / "rows.parquet"
    file.write_text("no parquet")
    with pytest.raises(UserError, match=r"rows.parquet: cannot be read as parquet"):
        list(sources.read_rows(str(file)))


def test_a_web_file_is_fetched_once(tmp_path, monkeypatch):
    import http.server
    import threading

    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            asked.append(args)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/rows.jsonl"
        assert [list(sources.read_rows(url)) for _ in range(2)] == [[(1, {"a": 1})]] * 2
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(asked) == 1


def test_held_out_questions_that_training_has_are_left_out_and_listed():
    everything = examples(4)
    kept, left_out = unseen(everything, everything[1:3], "file")
    assert ids(kept) == ["test-0", "test-3"]
    assert [s.row for s in left_out] == [1, 2]


def test_repeated_questions_are_used_once_and_counted():
    kept, note = distinct([*examples(3), *examples(2)], "file")
    assert ids(kept) == ["test-0", "test-1", "test-2"]
    assert "2 rows repeat" in note[0].reason
    assert distinct(examples(3), "file")[1] == ()


def test_each_epoch_visits_every_example_once_in_another_order():
    batches = Batches(examples(12), 4, seed=3)
    epochs = [[i for _ in range(3) for i in ids(next(batches))] for _ in range(3)]
    assert all(sorted(epoch) == sorted(ids(examples(12))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_set_smaller_than_a_batch_still_fills_it():
    batch = next(Batches(examples(3), 8, seed=0))
    assert len(batch) == 8
    assert {ids(batch).count(i) for i in ids(examples(3))} == {2, 3}


def test_the_seed_decides_the_order():
    first = [ids(next(Batches(examples(50), 8, seed=s))) for s in (0, 0, 1)]
    assert first[0] == first[1] != first[2]


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_order_of_a_batch_is_the_same_on_any_number_of_hosts(hosts):
    whole = Batches(examples(20), 8, seed=5)
    shares = [Batches(examples(20), 8, seed=5, host=h, hosts=hosts) for h in range(hosts)]
    for _ in range(6):
        assert ids(next(whole)) == [i for share in shares for i in ids(next(share))]


def test_a_saved_position_goes_on_exactly_there():
    batches = Batches(examples(10), 4, seed=1)
    for _ in range(7):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    expected = [ids(next(batches)) for _ in range(5)]
    again = Batches(examples(10), 4, seed=1)
    again.set_state(state)
    assert [ids(next(again)) for _ in range(5)] == expected


def test_a_batch_that_hosts_cannot_share_is_an_error():
    with pytest.raises(UserError, match="divisible by 3 hosts"):
        Batches(examples(9), 8, seed=0, hosts=3)


def test_overlong_prompts_are_left_out_and_returned_or_an_error():
    def length(example: Example) -> int:
        return len(example.messages[0]["content"])

    kept, overlong = drop_overlong(examples(6), length, 4, "skip")
    assert ids(kept) == [f"test-{i}" for i in range(4)]
    assert ids(overlong) == ["test-4", "test-5"]
    with pytest.raises(UserError, match="example test-4 has 5 tokens, over max_prompt_tokens"):
        drop_overlong(examples(6), length, 4, "error")
    with pytest.raises(UserError, match="every one of the 6 prompts is longer"):
        drop_overlong(examples(6), length, 0, "skip")
    with pytest.raises(UserError, match=r"^rollout.max_prompt_tokens is 0: every one"):
        drop_overlong(examples(6), length, 0, "skip", "rollout.max_prompt_tokens")


def test_a_long_preparation_says_how_far_it_is(caplog, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.02)
    caplog.set_level(logging.INFO, logger="sdjax.io.progress")

    def slowly(example: Example) -> int:
        time.sleep(0.01)
        return 1

    drop_overlong(examples(9), slowly, 4, "skip")
    rows = ((number, {"question": "q", "answer": "a"}) for number in range(1, 9))
    convert_rows("f.jsonl", rows, lambda row, number: slowly(row), "error")
    said = [record.getMessage() for record in caplog.records]
    assert any(re.fullmatch(r"tokenising: [1-8] of 9 prompts", line) for line in said), said
    assert any(re.fullmatch(r"reading f.jsonl: [1-7] rows", line) for line in said), said


def test_a_broken_row_is_no_example():
    with pytest.raises(UserError, match="f:7: reason"):
        convert_rows("f", [(7, Broken("reason"))], convert, "error")
    with pytest.raises(RowError):
        text_field({"a": [1]}, "a", "b")
