"""The OpenAPI document in specs/; `python -m backend.tests.contract` writes it again."""

import yaml

from backend.main import create_app
from backend.tests.serving import ROOT, settings

PATH = ROOT / "specs" / "001-backend-task-api" / "contracts" / "openapi.yaml"


def served() -> dict[str, object]:
    """The document that a service without authentication serves."""
    return create_app(settings("postgresql://127.0.0.1/")).openapi()


def main() -> None:
    """Write the document."""
    PATH.parent.mkdir(parents=True, exist_ok=True)
    with open(PATH, "w", encoding="utf-8") as file:
        yaml.safe_dump(served(), file, sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    main()
