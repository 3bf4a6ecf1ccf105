"""Whole lines only: whatever a torn one ends with."""

from __future__ import annotations

from pathlib import Path

from core.journal import append_json, append_line, read_json_lines, read_lines


def test_a_line_torn_after_any_byte_is_left_out_and_cut_off(tmp_path: Path) -> None:
    path, line = tmp_path / "a.jsonl", '{"place": "größer"}\n'.encode()
    for length in range(len(line)):
        path.write_bytes(b'{"n": 1}\n' + line[:length])
        assert read_json_lines(path) == [{"n": 1}]
        append_json(path, {"n": 2})
        assert read_json_lines(path) == [{"n": 1}, {"n": 2}]


def test_lines_come_back_as_they_were(tmp_path: Path) -> None:
    for line in ("ä", "", "\r\x0b\u2028"):  # no line end but one's own counts
        append_line(tmp_path / "a", line)
    assert read_lines(tmp_path / "a") == ["ä", "", "\r\x0b\u2028"]
