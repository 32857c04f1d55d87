"""A run with its directory in a bucket, with a real client and a local server."""

import json
import logging

import pytest
import several
import tiny

from sdjax.errors import UserError
from sdjax.io import storage
from sdjax.main import main

CONFIG = """
from sdjax.config import *
from sdjax.tasks.arithmetic import Arithmetic
config = Train(out="gs://bucket/runs/a", steps=2,
    task=Arithmetic(options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
                    size=50, held_out=4),
    model=Model(path="MODEL", compute_dtype="float32", remat="none"),
    rollout=Rollout(prompts_per_step=2, group_size=2, max_prompt_tokens=300,
                    max_completion_tokens=8, temperature=0.7),
    reprompt=Reprompt(max_tokens=400, success_threshold=-1.0),
    optim=Optim(microbatch=2, lr=1e-3, warmup_steps=0), checkpoint=Checkpoint(every=1),
    eval=Eval(every=0, k=1, examples=2, batch=2, max_completion_tokens=8),
    log=Log(progress=False))
"""


@pytest.fixture(scope="module")
def bucket():
    """Returns gs://bucket/ of a Cloud Storage server on this machine."""
    from etils import epath
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    plain = objects.download

    def download(request, response, storage, *args, **kwargs):
        """Adds the generation of an object, as Cloud Storage does.

        A checkpoint's writer that reads its manifest again (under load it does) needs it.
        """
        plain(request, response, storage, *args, **kwargs)
        if response.status < 400:
            found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = found["generation"]

    port = several.free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, f"http://127.0.0.1:{port}")
        patch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")  # nobody: no credentials are looked for
        patch.setattr(objects, "download", download)
        yield epath.Path("gs://bucket")
    server.stop()


@pytest.fixture(scope="module")
def run(bucket, tmp_path_factory):
    """Returns the directory of a run that stopped after the first step and was resumed."""
    folder = tmp_path_factory.mktemp("bucket")
    model = tiny.model_folder(folder / "model", num_hidden_layers=1)
    file = folder / "c.py"
    file.write_text(CONFIG.replace("MODEL", str(model)))
    assert main(["--config", str(file), "--steps", "1"]) == 0
    assert main(["--config", str(file), "--resume"]) == 0
    return bucket / "runs" / "a", file


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.heavy
def test_a_run_in_a_bucket_writes_all_that_a_local_one_does(run):
    place, _ = run
    found = {entry.name for entry in place.iterdir()}
    assert found >= {"config.json", "metrics.jsonl", "rollouts.jsonl", "evaluations.json"}
    assert found >= {"answers", "checkpoints", "model", "tensorboard"}
    assert [m["step"] for m in lines(place / "metrics.jsonl")] == [0, 1, 2]
    assert [r["step"] for r in lines(place / "rollouts.jsonl")] == [1] * 4 + [2] * 4
    assert json.loads((place / "config.json").read_text())["steps"] == 2
    assert {entry.name for entry in (place / "checkpoints").iterdir()} == {"1", "2"}


@pytest.mark.heavy
def test_a_checkpoint_in_a_bucket_is_exported_into_one(run, tmp_path):
    place, _ = run
    file = tmp_path / "export.py"
    file.write_text(
        "from sdjax.config import *\n"
        "config = Export(run='gs://bucket/runs/a', out='gs://bucket/models/a')\n"
    )
    assert main(["--config", str(file)]) == 0
    made = place.parent.parent / "models" / "a"
    names = {entry.name for entry in made.iterdir()}
    assert names == {entry.name for entry in (place / "model").iterdir()}
    for name in names:
        assert (made / name).read_bytes() == (place / "model" / name).read_bytes(), name


@pytest.mark.heavy
def test_a_run_in_a_bucket_is_not_overwritten(run, capsys):
    place, file = run
    before = (place / "metrics.jsonl").read_bytes(), (place / "config.json").read_bytes()
    assert main(["--config", str(file)]) == 2
    assert "holds a run; pass --resume" in capsys.readouterr().err
    after = (place / "metrics.jsonl").read_bytes(), (place / "config.json").read_bytes()
    assert after == before


@pytest.mark.heavy
def test_a_bucket_that_refuses_is_one_line_with_the_path(run, capsys):
    _, file = run
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    assert main(["--config", str(file), "--out", "gs://no-such-bucket/run"]) == 2
    said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("sdjax: error: ")]
    assert len(said) == 1 and "gs://no-such-bucket/run" in said[0] and "your rights" in said[0]


@pytest.mark.heavy
def test_what_could_not_be_copied_is_kept_and_named(bucket, tmp_path):
    folder = storage.Folder(bucket / "kept", tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    folder.push()
    assert (bucket / "kept" / "metrics.jsonl").read_text() == "{}\n"
    folder.place = type(folder.place)("gs://no-such-bucket/kept")
    (tmp_path / "metrics.jsonl").write_text("{}\n{}\n")
    with pytest.raises(UserError, match=f"what the run made is in {tmp_path}"):
        folder.push()
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n{}\n"


def test_a_second_writer_of_a_checkpoint_reads_what_the_first_has_written(bucket):
    import tensorstore

    database = {"driver": "ocdbt", "base": f"{bucket}/database/"}
    for name in ("first", "second"):
        writer = tensorstore.KvStore.open(database, context=tensorstore.Context()).result()
        writer.write(name, name.encode()).result()
    assert sorted(writer.list().result()) == [b"first", b"second"]


@pytest.mark.heavy
def test_only_what_changed_is_copied_again(bucket, tmp_path):
    folder = storage.Folder(bucket / "changes", tmp_path)
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("1")
    folder.push()
    (bucket / "changes" / "a").write_text("not copied again")
    (tmp_path / "b").write_text("22")
    folder.push()
    assert (bucket / "changes" / "a").read_text() == "not copied again"
    assert (bucket / "changes" / "b").read_text() == "22"


@pytest.mark.parametrize(
    ("out", "words"),
    [("ftp://host/run", "must be a local path or begin with gs://"), ("gs://b/x", "pip install")],
)
def test_a_place_that_cannot_be_used_is_named(monkeypatch, out, words):
    monkeypatch.setitem(storage.LIBRARIES, "gs", "no_such_library")
    with pytest.raises(UserError, match=words):
        storage.place(out)
