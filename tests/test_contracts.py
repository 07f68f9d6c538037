"""The import contracts hold, and what the documents point at exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from circuitseer_assets.settings import PROJECT_ROOT


def test_imports_go_one_way_and_the_method_names_no_service() -> None:
    program = str(Path(sys.executable).with_name("lint-imports"))
    done = subprocess.run(
        [program, "--no-cache"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


DOCUMENTS = """
    README.md CONTRIBUTING.md CHANGELOG.md deploy/README.md docs/ENGINE.md docs/study.md
    models/tiny/README.md
"""


@pytest.mark.parametrize("document", DOCUMENTS.split())
def test_every_link_of_a_document_leads_somewhere(document: str) -> None:
    path = PROJECT_ROOT / document
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_every_picture_is_small_and_shown_and_those_of_the_readme_are_taken_anew() -> None:
    def named(pattern: str, *files: str) -> set[str]:
        return set(re.findall(pattern, "".join((PROJECT_ROOT / f).read_text() for f in files)))

    picture = r"\bimages/(\w+)\.png"
    files = {path.stem: path for path in (PROJECT_ROOT / "docs/images").glob("*.png")}
    assert named(picture, "README.md", "docs/study.md") == set(files)
    assert named(picture, "README.md") == named(r'keep\("(\w+)"\)', "tests/browser/test_ui.py")
    assert {name for name, file in files.items() if file.stat().st_size >= 400_000} == set()


def test_the_readme_names_every_make_target_that_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT_ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", (PROJECT_ROOT / "README.md").read_text()))
    assert named <= targets
