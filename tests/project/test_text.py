"""No file under version control names a package index or a path on somebody's machine."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTS = ("pypi", "pythonhosted", "download.pytorch", "registry.npmjs", "conda.anaconda", "deb.debian")
FORBIDDEN = re.compile(
    rf"({'|'.join(re.escape(host) for host in HOSTS)})\.(org|com)"
    r"|(?<![\w.~-])/(work|root|home|Users|opt)/\w"
    r"|--(extra-)?index-url|--find-links"
)


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def findings(text: str) -> list[str]:
    return [match.group() for match in FORBIDDEN.finditer(text)]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_index_address_or_machine_path_in_the_repository() -> None:
    found: dict[str, list[str]] = {}
    for path in tracked():
        if path == Path(__file__) or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" not in content and (hits := findings(content.decode(errors="replace"))):
            found[str(path.relative_to(ROOT))] = hits
    assert found == {}


def test_the_search_finds_addresses_and_machine_paths_only() -> None:
    for text in (
        "https://pypi.org/simple",
        "torch @ file:///opt/wheels/t.whl",
        "cd /home/me/distillery",
        "--index-url x",
    ):
        assert findings(text), text
    for text in ("https://arxiv.org/abs/1503.02531", "src/work/x", "/usr/share/datasets", "~/data"):
        assert not findings(text), text
