"""The table of faults names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_fault_is_shown_by_a_test_that_exists():
    rows = [line.split("|") for line in (TESTS / "FAULTS.md").read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[3].strip() != "shown by"]
    assert len(rows) > 20
    for _, fault, _, shown_by, _ in rows:
        named = re.findall(r"`([^`:]+)(?:::(\w+))?`", shown_by)
        assert named, fault
        for file, test in named:
            source = (TESTS / file).read_text()
            assert f"def {test}(" in source or not test, f"{fault}: {file}::{test}"
