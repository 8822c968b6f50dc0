"""What the doctor's checks ask the machine."""

from __future__ import annotations

import pytest

from horovod_transformer.commands.doctor_checks import existing_parent, quota_left

QUOTA = """Disk quotas for user someone (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
nfs.example:/home {used} 9000000 10000000             120       0       0
"""


@pytest.mark.parametrize(
    ("report", "left"),
    [
        (QUOTA.format(used="8999000"), 1000 * 1024),
        (QUOTA.format(used="9500000*"), 0),
        ("Disk quotas for user someone (uid 1000): none\n", None),
        ("/dev/sda1  500 0 0  12 0 0\n", None),
        ("", None),
    ],
)
def test_quota_report(report, left):
    assert quota_left(report) == left


def test_existing_parent(tmp_path):
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    assert existing_parent(tmp_path) == tmp_path
