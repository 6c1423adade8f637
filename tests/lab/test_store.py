import json

import pytest
import torch

from weightcast_lab.errors import LabError
from weightcast_lab.store import RunFiles, open_folder, to_json, write_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weightcast_lab.store.os.fsync", full)
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


def test_results_come_back(tmp_path):
    files = RunFiles(tmp_path, "c")
    assert files.load_result(pytest.fail) is None
    files.save_result({"history": {"step": [0]}})
    assert files.load_result(pytest.fail)["history"] == {"step": [0]}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"configuration": "c"}', '{"configuration": "c", "history": 1}']
)
def test_a_damaged_result_counts_as_missing_with_a_warning(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    warnings = []
    assert RunFiles(tmp_path, "c").load_result(warnings.append) is None
    assert str(tmp_path / "result.json") in warnings[0]


def test_a_result_of_another_configuration_counts_as_missing(tmp_path):
    RunFiles(tmp_path, "a").save_result({"history": {"step": [0]}})
    warnings = []
    assert RunFiles(tmp_path, "b").load_result(warnings.append) is None
    assert "has another configuration" in warnings[0]


def test_a_checkpoint_of_another_configuration_is_not_called_damaged(tmp_path):
    RunFiles(tmp_path, "a").save_checkpoint({"epoch": 1})
    warnings, cpu = [], torch.device("cpu")
    assert RunFiles(tmp_path, "a").load_checkpoint(cpu, pytest.fail)["epoch"] == 1
    assert RunFiles(tmp_path, "b").load_checkpoint(cpu, warnings.append) is None
    assert "has another configuration" in warnings[0]
