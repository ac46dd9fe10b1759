"""What one run of `keeper` works with: app settings, clients, the configured clusters.

Owns how the command line finds app settings: the environment first, then the `Values` of a
local.settings.json named by `--settings`, as Core Tools would read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import SettingsError

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.settings import Cluster, Settings


IDENTITY_SETTINGS = ("AZURE_", "IDENTITY_", "MSI_")
"""How the variables begin that say who this process is."""


class Session:
    """App settings, and clients built when first needed."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    @staticmethod
    def open(*, config: str | None, settings_file: str | None, verbose: bool) -> Session:
        """The session of one command line; SettingsError when the settings file cannot be read."""
        _set_up_logging(verbose=verbose)
        environ = dict(os.environ)
        if settings_file:
            environ = read_local_settings(Path(settings_file)) | environ
            # The host makes app settings environment variables, and azure-identity reads its own from there.
            os.environ.update({name: environ[name] for name in environ if name.startswith(IDENTITY_SETTINGS)})
        if config:
            environ["KUBEKEEPER_CONFIG"] = config
        return Session(environ)

    @cached_property
    def clients(self) -> Clients:
        """The clients the app itself would build from these settings."""
        from shared.bootstrap import Clients

        return Clients(self.environ)

    @property
    def settings(self) -> Settings:
        """The configuration; SettingsError when it is wrong or missing."""
        return self.clients.settings()

    def cluster(self, name: str | None) -> Cluster:
        """The named cluster, or the only one there is; SettingsError otherwise."""
        if name:
            return self.settings.cluster(name)
        if len(self.settings.clusters) == 1:
            return self.settings.clusters[0]
        known = ", ".join(cluster.name for cluster in self.settings.clusters)
        raise SettingsError(f"say which cluster with --cluster; the configuration has: {known}")

    def clusters(self, name: str | None) -> tuple[Cluster, ...]:
        """The named cluster, or all."""
        return (self.settings.cluster(name),) if name else self.settings.clusters


def session(context: typer.Context) -> Session:
    """The session of a running command."""
    found = context.find_object(Session)
    assert found is not None
    return found


def complete_cluster(incomplete: str) -> list[str]:
    """Cluster names for shell completion; none when the configuration cannot be read."""
    from shared.errors import AutomationError
    from shared.settings import load_settings

    # A blob would have to be fetched for every press of the tab key.
    if os.environ.get("KUBEKEEPER_CONFIG", "").startswith("http"):
        return []
    try:
        return [c.name for c in load_settings().clusters if c.name.startswith(incomplete)]
    except AutomationError:
        return []


ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster", "-c", autocompletion=complete_cluster, help="Cluster, where there are several."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def read_local_settings(path: Path) -> dict[str, str]:
    """The `Values` of a local.settings.json; SettingsError says what is wrong with it."""
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read '{path}': {error.strerror}; check --settings") from error
    except ValueError as error:
        raise SettingsError(f"'{path}' is not JSON ({error}); see local.settings.example.json") from error
    values = document.get("Values") if isinstance(document, dict) else None
    if not isinstance(values, dict):
        raise SettingsError(f"'{path}' has no object 'Values'; see local.settings.example.json")
    return {str(name): str(value) for name, value in values.items()}


def _set_up_logging(*, verbose: bool) -> None:
    import logging

    if not verbose:
        # SDKs warn at length about what the error line then says in one.
        logging.disable(logging.CRITICAL)
        return
    from shared.log import install_redaction

    install_redaction()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
