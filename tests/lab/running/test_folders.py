import json
import subprocess
import sys
from pathlib import PurePosixPath

import pytest
import torch

from weightcast_lab.errors import LabError
from weightcast_lab.files import to_json, write_atomically
from weightcast_lab.running.folders import RunFiles, computing_in, open_folder


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weightcast_lab.files.os.fsync", full)
    with pytest.raises(LabError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(LabError, match="is a file"):
        open_folder(tmp_path / "out", {})
    with pytest.raises(LabError, match="Not a directory"):
        open_folder(tmp_path / "out" / "below", {})


def test_json_is_readable_and_the_same(tmp_path):
    value = {"a": [1, 2.5, None], "b": {"c": "text with [brackets, and more]", "d": []}}
    text = to_json(value).decode()
    assert json.loads(text) == value
    assert '"a": [1, 2.5, null]' in text


def test_texts_are_kept_as_they_are(tmp_path):
    facts = {"a": "an interval [ 0,  1 ] ]", "b": ["[ 1\n 2 ]", [3, 4]], "c": [[1, 2], [3]]}
    assert json.loads(to_json(facts)) == facts
    open_folder(tmp_path, facts)
    open_folder(tmp_path, facts)


def test_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        to_json({"a": float("nan")})


def test_a_folder_of_another_configuration_is_refused_naming_what_differs(tmp_path):
    first = {"task": "digits", "epochs": 3, "gone": 1}
    open_folder(tmp_path, first)
    open_folder(tmp_path, first)
    with pytest.raises(LabError) as refused:
        open_folder(tmp_path, {"task": "digits", "epochs": 4, "new": 2})
    message = str(refused.value)
    assert "epochs 3 (now 4)" in message
    assert "gone 1 (now None)" in message
    assert "new None (now 2)" in message
    assert "task" not in message.replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("found", "age"),
    [({"format": 99}, "newer"), ({"task": "x"}, "older"), ({"format": "x"}, "older")],
)
def test_a_folder_of_another_version_is_refused(tmp_path, found, age):
    (tmp_path / "config.json").write_bytes(to_json(found))
    with pytest.raises(LabError, match=f"{age} version"):
        open_folder(tmp_path, {"task": "x"})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_configuration_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(LabError, match="damaged"):
        open_folder(tmp_path, {})


def test_runs_without_a_configuration_are_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(LabError, match=r"no config\.json"):
        open_folder(tmp_path, {})


def test_an_old_file_keeps_its_mode_and_a_link_stays_one(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_two_commands_in_one_folder_are_refused(tmp_path):
    """The other is another process, killed without mercy: the folder is free again at once."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from weightcast_lab.running.folders import computing_in\n"
        "with computing_in(Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(LabError, match="Another command computes in"), computing_in(tmp_path):
            pytest.fail("both are in")
    finally:
        other.kill()
        other.communicate()
    with computing_in(tmp_path):
        pass


def test_a_folder_that_is_not_ours_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot be written"), computing_in(tmp_path / "file"):
        pytest.fail("it is a file")


def files_of(folder, configuration="a"):
    return RunFiles(folder, "adamw", 0, configuration)


def test_a_checkpoint_of_another_configuration_is_not_called_damaged(tmp_path):
    files_of(tmp_path, "a").save_checkpoint({"epoch": 1})
    warnings, cpu = [], torch.device("cpu")
    assert files_of(tmp_path, "a").load_checkpoint(cpu, pytest.fail)["epoch"] == 1
    assert files_of(tmp_path, "b").load_checkpoint(cpu, warnings.append) is None
    assert "has another configuration" in warnings[0]


def test_how_far_a_run_is_can_be_read_without_its_weights(tmp_path, monkeypatch):
    assert files_of(tmp_path).epochs_done() == 0
    files_of(tmp_path).save_checkpoint({"epoch": 3, "model": torch.zeros(1000)})
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("all of it is loaded"))
    assert files_of(tmp_path).epochs_done() == 3
    assert files_of(tmp_path, "b").epochs_done() == 0
    (files_of(tmp_path).working_folder / "checkpoint").write_bytes(b"{}\n")
    assert files_of(tmp_path).epochs_done() == 0


UNSAFE = {"epoch": 1, "optimizer": {"param_groups": [{"folder": PurePosixPath("x")}]}}


def test_a_checkpoint_that_could_not_be_loaded_is_refused_at_the_first_save(tmp_path):
    with pytest.raises(LabError, match=r"adamw could not resume .* alone, not pathlib"):
        files_of(tmp_path).save_checkpoint(UNSAFE)
    assert not files_of(tmp_path).has_begun


def test_a_checkpoint_that_may_not_be_loaded_counts_as_none(tmp_path):
    files_of(tmp_path).save_checkpoint({"epoch": 1})
    files_of(tmp_path).save_checkpoint(UNSAFE)  # what came later is not looked at again
    warnings = []
    assert files_of(tmp_path).load_checkpoint(torch.device("cpu"), warnings.append) is None
    assert "starts again from the beginning" in warnings[0]
