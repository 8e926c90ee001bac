"""Files of a spool: what was written is read, what is torn is recognized, and who writes is known."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from logged_predictions import record, spooled

from pipelines.core import prediction_spool
from pipelines.core.prediction_spool import FORMAT, RawImage, Record, parse, prediction_frame


def same(found: Record, expected: Record) -> bool:
    return all(np.array_equal(getattr(found, one.name), getattr(expected, one.name)) for one in fields(Record))


def test_what_was_written_is_read_to_the_last_bit(tmp_path: Path) -> None:
    image = RawImage(sha256="ab" * 32, data=b"\n\0image")
    data = spooled(tmp_path, [record(0), record(1)], [image]).read_bytes()
    found = parse(data)
    assert found.images == (image,)
    assert all(map(same, found.records, (record(0), record(1))))
    assert found.records[0].embedding.dtype == np.float32
    assert found.lost_bytes == 0
    assert prediction_spool.num_records(data) == 2


def test_a_file_that_is_cut_anywhere_keeps_the_whole_records_before(tmp_path: Path) -> None:
    data = spooled(tmp_path, [record(0), record(1)]).read_bytes()
    ends = (len(FORMAT), len(FORMAT) + len(prediction_frame(record(0))), len(data))
    for length in range(len(data) + 1):
        found = parse(data[:length])
        whole = sum(end <= length for end in ends[1:])
        assert len(found.records) == whole
        assert found.lost_bytes == max(0, length - ends[whole])


@pytest.mark.parametrize("place", [0, 1, 5, 9, 40, -1], ids=["kind", "length", "checksum", "line", "words", "number"])
def test_a_flipped_bit_is_recognized(place: int, tmp_path: Path) -> None:
    frame = bytearray(prediction_frame(record(1)))
    frame[place] ^= 1
    found = parse(spooled(tmp_path, [record(0)], rest=bytes(frame)).read_bytes())
    assert len(found.records) == 1
    assert found.lost_bytes == len(frame)


def test_a_file_of_another_version_is_known(tmp_path: Path) -> None:
    assert prediction_spool.readable(FORMAT)
    assert prediction_spool.readable(b"")
    assert not prediction_spool.readable(FORMAT.replace(b"1", b"2"))


def test_a_file_is_locked_as_long_as_somebody_writes_it(tmp_path: Path) -> None:
    file, path = prediction_spool.create(tmp_path)
    assert prediction_spool.files(tmp_path) == [path]
    with prediction_spool.taken(path) as mine:
        assert not mine
    os.close(file)
    with prediction_spool.taken(path) as mine, prediction_spool.taken(path) as other:
        assert (mine, other) == (True, False)
    path.unlink()
    with prediction_spool.taken(path) as mine:
        assert not mine


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    assert spooled(tmp_path, [record()]).stat().st_mode & 0o077 == 0
