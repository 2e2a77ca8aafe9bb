"""The page of figures: one section for each benchmark, in the order of the table, renewed one by one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.__main__ import BENCHMARKS, section, write
from benchmarks.measure import Growth, Row


def test_a_section_replaces_its_predecessor_and_leaves_the_others(tmp_path: Path) -> None:
    page, (first, second, *_) = tmp_path / "performance.md", BENCHMARKS
    write(page, section(second, [Row("quotes", 1234.5, beside=2469.0, peer="a peer", note="p50 1 | p99 2 ms")]))
    write(page, section(first, [Row("failed", 0, "", 7, "without it")]))
    write(page, section(second, [Row("quotes", 2000, beside=2500, peer="a peer", note="p50 1 | p99 2 ms")]))
    text = page.read_text()
    assert text.startswith("# Performance\n")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [f"## {first}", f"## {second}"]
    assert f"`./dev bench {first}`" in text
    assert "| quotes | 2,000 /s | 2,500 /s (a peer) | 0.80 | p50 1 \\| p99 2 ms |" in text
    assert "1,234" not in text
    assert "| failed | 0 | 7 (without it) |  |  |" in text


def test_growth_is_a_row_with_its_limit() -> None:
    row = Growth((10, 100, 1000), (0.001, 0.1, 10.0)).row("copies")
    assert (row.name, round(row.figure, 6), row.peer) == ("copies", 2.0, "n log n")
    assert row.note == "10: 1 ms, 100: 100 ms, 1,000: 10,000 ms; WORSE THAN n log n"
