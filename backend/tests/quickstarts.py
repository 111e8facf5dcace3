"""The code in the quickstarts for the frontend."""

import re
from collections import defaultdict

from backend.tests.serving import ROOT

PAGES = [ROOT / "specs/002-better-auth-jwt/quickstart.md", ROOT / "specs/003-nextjs-client/quickstart.md"]


def files() -> dict[str, str]:
    """The content of each file; a block's first line names its file, and a file may consist of several blocks."""
    contents: dict[str, str] = defaultdict(str)
    for page in PAGES:
        for name, code in re.findall(r"^```\w+\n(?://|#) (\S+)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
            contents[name] += code
    return dict(contents)
