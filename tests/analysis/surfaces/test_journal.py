import errno
import os

import numpy as np
import pytest

from analysis.surfaces.journal import Journal

PLAN = {"what": "a plane", "points": 9}


def groups(count, start=0):
    rng = np.random.default_rng(start)
    return [(i, rng.normal(size=(3, 2, 4))) for i in range(start, start + count)]


def equal(found, expected):
    assert sorted(found) == [i for i, _ in expected]
    for i, values in expected:
        np.testing.assert_array_equal(found[i], values)


def test_what_was_added_is_read_back_from_all_processes(tmp_path):
    journal = Journal(tmp_path / "x.parts", PLAN)
    assert journal.open() is False
    with journal.writer("0") as writer:
        writer.add(groups(2))
        writer.add([(2, np.array([[[np.nan], [np.inf]]]))])
    with journal.writer("1") as writer:
        writer.add(groups(3, start=5))
    found = Journal(tmp_path / "x.parts", PLAN).done()
    equal({k: v for k, v in found.items() if k != 2}, groups(2) + groups(3, start=5))
    np.testing.assert_array_equal(found[2], [[[np.nan], [np.inf]]])


@pytest.mark.parametrize("lost", [1, 8, 60, 195])
def test_a_record_cut_short_does_not_count_and_is_overwritten(tmp_path, lost):
    journal = Journal(tmp_path / "x.parts", PLAN)
    journal.open()
    with journal.writer("0") as writer:
        writer.add(groups(2) + groups(1, start=2))
    path = tmp_path / "x.parts" / "0.journal"
    os.truncate(path, path.stat().st_size - lost)
    again = Journal(tmp_path / "x.parts", PLAN)
    assert again.open() is True
    equal(again.done(), groups(2))
    with again.writer("0") as writer:
        writer.add(groups(2, start=7))
    equal(again.done(), groups(2) + groups(2, start=7))


def test_a_record_whose_bytes_changed_does_not_count(tmp_path):
    journal = Journal(tmp_path / "x.parts", PLAN)
    journal.open()
    with journal.writer("0") as writer:
        writer.add(groups(2))
    path = tmp_path / "x.parts" / "0.journal"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    equal(journal.done(), groups(1))


def test_another_plan_starts_anew(tmp_path):
    journal = Journal(tmp_path / "x.parts", PLAN)
    journal.open()
    with journal.writer("0") as writer:
        writer.add(groups(2))
    other = Journal(tmp_path / "x.parts", PLAN | {"points": 25})
    assert other.open() is False
    assert other.done() == {}


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "x.parts", PLAN)
    journal.open()
    with journal.writer("0") as writer:
        writer.add(groups(2))
        real = os.write

        def full(handle, data):
            real(handle, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"disk is full: make room.*finished points are kept"):
            writer.add(groups(1, start=2))
        monkeypatch.setattr(os, "write", real)
        equal(journal.done(), groups(2))
        writer.add(groups(1, start=2))
    equal(journal.done(), groups(2) + groups(1, start=2))


def test_remove(tmp_path):
    journal = Journal(tmp_path / "x.parts", PLAN)
    journal.open()
    journal.remove()
    assert not (tmp_path / "x.parts").exists()
