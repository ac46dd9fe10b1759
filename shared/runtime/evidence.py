"""Proofs of what was done, as documents in container `kubekeeper` under `evidence/<cluster>/<automation>/`.

A proof is stored before the write it is about leaves, so that even a crash in between leaves no change
without one. Its id is made from its content: storing the same again finds it there. Called by `act` of the
automations and by `keeper explain`; what a proof says is the automation's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from shared.clients.blob import BlobStore
from shared.errors import ConflictError, NotFoundError
from shared.runtime.claim import Claim

PREFIX = "evidence"


def evidence_id(data: bytes) -> str:
    """The name of a proof: the same for the same bytes."""
    return f"ev-{hashlib.sha256(data).hexdigest()[:24]}"


def blob_name(cluster: str, automation: str, identity: str) -> str:
    """Where a proof is stored."""
    return f"{PREFIX}/{cluster}/{automation}/{identity}.json"


def store_evidence(claim: Claim, store: BlobStore, data: bytes) -> str:
    """Store a proof (a JSON document), returning its id. LostLeaseError when the claim is no longer ours."""
    identity = evidence_id(data)
    name = blob_name(claim.cluster, claim.automation, identity)
    try:
        claim.create_blob(store, name, data)
    except ConflictError:
        # Ours from an earlier attempt: the name is a digest of the content.
        claim.ensure()
    return identity


def read_evidence(store: BlobStore, clusters: Iterable[str], automation: str, identity: str) -> bytes:
    """The proof with that id, of whichever cluster; NotFoundError when there is none."""
    for cluster in clusters:
        try:
            return store.read(blob_name(cluster, automation, identity)).data
        except NotFoundError:
            continue
    raise NotFoundError(f"there is no evidence '{identity}'; ids stand in the journal and in events")
