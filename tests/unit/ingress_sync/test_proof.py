"""What is compiled routes as the objects say: random sets of objects, and mistakes the proof must see."""

from __future__ import annotations

import os
import random

import pytest
from ingress_builders import Bench, gateway
from ingress_generator import behind, ingresses

from shared.ingress_sync.proof import DEVIATIONS, prove
from shared.model.plan import ActionKind

pytestmark = pytest.mark.no_cover

SETS = 5_000 if os.environ.get("KUBEKEEPER_SWEEP") == "full" else 300
CERTIFICATE = {"name": "theirs", "properties": {"publicCertData": "x"}}


def bench(seed: int) -> Bench:
    rng = random.Random(seed)
    live = gateway(private=rng.random() < 0.7, default=rng.random() < 0.3, sslCertificates=[CERTIFICATE])
    return Bench(*behind(rng), *ingresses(rng, rng.choice([1, 2, 4, 8])), gateway=live)


@pytest.mark.parametrize("block", range(10))
def test_random_objects_are_routed_as_kubernetes_says(block: int) -> None:
    for seed in range(block * SETS // 10, (block + 1) * SETS // 10):
        world = bench(seed)
        compiled, plan = world.decide()
        reasons = {left.reason for left in plan.left_alone}
        assert not reasons & {"NotProven", "Unsafe", "ProofFailed", "Invalid"}, (seed, plan.left_alone)
        if not plan.actions:
            continue
        proof = prove(world.observe(), compiled)
        assert proof.undeclared == (), (seed, str(proof.undeclared[0]))
        assert {one.deviation for one in proof.declared} <= DEVIATIONS.keys()
        world.take(compiled)
        again, plan = world.decide()
        assert not [a for a in plan.actions if a.kind is ActionKind.PUT_GATEWAY], (seed, again.changes)
