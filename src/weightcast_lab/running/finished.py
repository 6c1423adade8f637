"""Which of the runs that are wanted are finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from weightcast_lab.files import Warn
from weightcast_lab.results.records import RUNS, RunRecord, read_runs
from weightcast_lab.running.folders import OTHER
from weightcast_lab.running.jobs import Job


class FinishedRuns:
    """The finished runs of any number of folders, each of whose files is read once."""

    def __init__(self, warn: Warn) -> None:
        """`warn` is told of damaged lines, and of runs that do not count any more."""
        self._warn = warn
        self._folders: dict[Path, dict[tuple[str, int], RunRecord]] = {}

    def of(self, jobs: Iterable[Job]) -> dict[Job, RunRecord]:
        """The finished ones among the jobs, with what they came to."""
        found = {}
        for job in jobs:
            records, name = self._in(job.files.folder), (job.files.method, job.files.seed)
            if name not in records:
                continue
            if records[name].configuration == job.files.configuration:
                found[job] = records[name]
            else:
                del records[name]  # said once
                where = f"{job.files.folder / RUNS}: {job.files.method}, seed {job.files.seed},"
                self._warn(f"{where} {OTHER}: this run is computed again.")
        return found

    def add(self, records: Mapping[Job, RunRecord]) -> None:
        """What has been computed, and appended to the files, since."""
        for job, record in records.items():
            self._in(job.files.folder)[record.method, record.seed] = record

    def _in(self, folder: Path) -> dict[tuple[str, int], RunRecord]:
        if folder not in self._folders:
            records = read_runs(folder / RUNS, self._warn)
            self._folders[folder] = {(record.method, record.seed): record for record in records}
        return self._folders[folder]
