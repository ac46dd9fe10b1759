"""Compiled documents put to the local gateway over HTTP: random objects, and every one is accepted."""

from __future__ import annotations

import os
import random
from typing import Any

import ingress_builders
import msgspec
import pytest
from ingress_builders import NOW, Bench
from ingress_generator import behind, ingresses

from sandbox.arm import LocalArm
from sandbox.clock import Clock
from shared.clients.arm import Arm
from shared.clients.arm import arm as arm_client
from shared.ingress_sync.observation import Observation
from shared.ingress_sync.state import PartRecord
from shared.model.gateway import parts
from shared.model.plan import ActionKind
from shared.model.snapshot import AzureReading

SETS = 300 if os.environ.get("KUBEKEEPER_SWEEP") == "full" else 25
WAF = "Microsoft.Network/applicationGatewayWebApplicationFirewallPolicies"
Document = dict[str, Any]


class LiveBench(Bench):
    """A bench whose gateway is the local Resource Manager's, read and written by the app's own client."""

    def __init__(self, arm: Arm, clock: Clock, gateway_id: str, *objects: Any) -> None:
        self.arm, self.clock = arm, clock
        super().__init__(*objects, gateway=arm.get(gateway_id).document)
        self.policy["gateway"] = gateway_id

    def observe(self) -> Observation:
        seen = super().observe()
        reading = AzureReading(id=self.policy["gateway"], status=200, read_at=NOW, body=self.gateway)
        return msgspec.structs.replace(seen, azure=(reading,))

    def put(self) -> bool:
        """One round against the local gateway; whether something was written."""
        compiled, plan = self.decide()
        if not any(action.kind is ActionKind.PUT_GATEWAY for action in plan.actions):
            return False
        document = msgspec.json.decode(msgspec.json.encode(compiled.document))
        uploads = {upload.name for upload in compiled.uploads}
        for part in parts(document, "sslCertificates"):
            if part["name"] in uploads:
                part["properties"] |= {"data": "cGZ4", "password": "x"}
        begun = self.arm.put(self.policy["gateway"], document, if_match=self.gateway["etag"])
        self.clock.advance(60)
        assert self.arm.poll(begun.status_url).state == "Succeeded"
        self.gateway = self.arm.get(self.policy["gateway"]).document
        records = {key: PartRecord(sent=sent) for key, sent in compiled.parts.items()}
        self.state = msgspec.structs.replace(self.state, parts=records, routes=compiled.routes)
        return True


@pytest.mark.parametrize("block", range(5))
def test_every_compiled_document_is_accepted_and_then_nothing_is_left_to_write(block: int) -> None:
    clock = Clock(NOW)
    with LocalArm(clock) as arm:
        client = arm_client({"KUBEKEEPER_ARM_ENDPOINT": arm.url}, credential=arm.credential(), now=clock.now)
        policy = arm.put(arm.id_of(WAF, "waf"), {"location": "westeurope", "properties": {}})
        before, ingress_builders.WAF = ingress_builders.WAF, policy
        try:
            for seed in range(block * SETS // 5, (block + 1) * SETS // 5):
                rng = random.Random(seed)
                gateway = arm.add_gateway(f"gw{seed}")
                objects = [
                    msgspec.json.decode(msgspec.json.encode(one).replace(before.encode(), policy.encode()))
                    for one in ingresses(rng, 6)
                ]
                bench = LiveBench(client, clock, gateway, *behind(rng), *objects)
                bench.put()
                assert not bench.put(), (seed, bench.decide()[0].changes)
                bench.objects["ingresses"] = objects[:3]
                bench.put()
                assert not bench.put(), seed
        finally:
            ingress_builders.WAF = before
