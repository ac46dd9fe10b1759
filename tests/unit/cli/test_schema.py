"""The published JSON Schema and the sample configuration say what the code does."""

from pathlib import Path

from shared.cli.schema import schema, schema_text
from shared.settings import parse_settings

ROOT = Path(__file__).parents[3]


def test_the_published_schema_is_current() -> None:
    published = (ROOT / "docs/reference/kubekeeper.schema.json").read_text()
    assert published == schema_text(), "run: keeper config schema -o docs/reference/kubekeeper.schema.json"


def test_every_key_is_described() -> None:
    undescribed = [
        f"{kind}.{key}"
        for kind, definition in schema()["$defs"].items()
        for key, value in definition["properties"].items()
        if not value.get("description")
    ]
    assert undescribed == []


def test_unknown_keys_are_refused_everywhere() -> None:
    assert all(d["additionalProperties"] is False for d in schema()["$defs"].values())


def test_the_sample_configuration_is_valid_and_hints_at_the_schema() -> None:
    sample = ROOT / "kubekeeper.example.yaml"
    first = sample.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=docs/reference/kubekeeper.schema.json"
    assert [c.name for c in parse_settings(sample.read_bytes(), sample.name).clusters] == ["prod", "staging"]
