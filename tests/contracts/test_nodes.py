"""What happens to nodes and their pods when kubelets come, fall silent and return."""

from __future__ import annotations

from contracts.target import PODS, Target, condition, deployment, eventually, phases, pod, taints

UNREACHABLE = ["node.kubernetes.io/unreachable:NoExecute", "node.kubernetes.io/unreachable:NoSchedule"]
OUT_OF_SERVICE = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}


def test_a_deployments_pods_are_spread_and_run(target: Target, namespace: str, nodes) -> None:
    names = nodes(3)
    spec = {"nodeSelector": {"pool": names[0][:-2]}}
    target.client.create(f"/apis/apps/v1/namespaces/{namespace}/deployments", deployment("web", 3, **spec))
    eventually(lambda: phases(target, namespace) == ["Running"] * 3)
    pods = target.client.get(PODS.format(namespace))["items"]
    assert sorted(found["spec"]["nodeName"] for found in pods) == names
    assert all(condition(found, "Ready")["status"] == "True" for found in pods)
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/web"
    eventually(lambda: target.client.get(path)["status"].get("availableReplicas") == 3)


def test_a_deleted_pod_of_a_deployment_is_replaced(target: Target, namespace: str, nodes) -> None:
    nodes(1)
    target.client.create(f"/apis/apps/v1/namespaces/{namespace}/deployments", deployment("web", 1))
    eventually(lambda: phases(target, namespace) == ["Running"])
    (first,) = target.client.get(PODS.format(namespace))["items"]
    target.client.delete(f"{PODS.format(namespace)}/{first['metadata']['name']}")

    def is_replaced() -> bool:
        pods = target.client.get(PODS.format(namespace))["items"]
        return [found["metadata"]["uid"] != first["metadata"]["uid"] for found in pods] == [True]

    eventually(is_replaced)
    eventually(lambda: phases(target, namespace) == ["Running"])


def test_a_silent_node_becomes_unknown_and_recovers(target: Target, namespace: str, nodes) -> None:
    name, _ = nodes(2)
    target.client.create(PODS.format(namespace), pod("a", nodeSelector={"kubernetes.io/hostname": name}))
    eventually(lambda: phases(target, namespace) == ["Running"])
    target.agent.silence(name)

    eventually(lambda: taints(target, name) == UNREACHABLE)
    ready = condition(target.client.get(f"/api/v1/nodes/{name}"), "Ready")
    assert (ready["status"], ready["reason"]) == ("Unknown", "NodeStatusUnknown")
    assert ready["message"] == "Kubelet stopped posting node status."
    path = f"{PODS.format(namespace)}/a"
    eventually(lambda: condition(target.client.get(path), "Ready")["status"] == "False")
    found = target.client.get(path)
    assert found["status"]["phase"] == "Running" and "deletionTimestamp" not in found["metadata"]
    tolerated = {t["key"]: t.get("tolerationSeconds") for t in found["spec"]["tolerations"]}
    assert tolerated == {"node.kubernetes.io/not-ready": 300, "node.kubernetes.io/unreachable": 300}

    target.agent.wake(name)
    eventually(lambda: taints(target, name) == [])
    eventually(lambda: condition(target.client.get(path), "Ready")["status"] == "True")


def test_a_silent_nodes_pod_is_evicted_when_its_toleration_ends_and_stays(
    target: Target, namespace: str, nodes
) -> None:
    name, _ = nodes(2)
    toleration = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 1}
    selector = {"kubernetes.io/hostname": name}
    spec = {"nodeSelector": selector, "tolerations": [toleration | {"effect": "NoExecute"}]}
    target.client.create(PODS.format(namespace), pod("a", **spec))
    eventually(lambda: phases(target, namespace) == ["Running"])
    target.agent.silence(name)
    eventually(lambda: phases(target, namespace) == ["Terminating"])
    found = target.client.get(f"{PODS.format(namespace)}/a")
    disrupted = condition(found, "DisruptionTarget")
    assert (disrupted["reason"], disrupted["message"]) == (
        "DeletionByTaintManager",
        "Taint manager: deleting due to NoExecute taint",
    )
    target.agent.wake(name)
    eventually(lambda: phases(target, namespace) == [])


def test_out_of_service_ends_the_pods_of_a_node_that_is_not_ready(
    target: Target, namespace: str, nodes
) -> None:
    name, _ = nodes(2)
    spec = {"nodeSelector": {"kubernetes.io/hostname": name}, "tolerations": [{"operator": "Exists"}]}
    target.client.create(PODS.format(namespace), pod("a", **spec))
    eventually(lambda: phases(target, namespace) == ["Running"])
    target.agent.silence(name)
    eventually(lambda: taints(target, name) == UNREACHABLE)
    target.client.delete(f"{PODS.format(namespace)}/a")
    assert phases(target, namespace) == ["Terminating"]
    current = target.client.get(f"/api/v1/nodes/{name}")["spec"]["taints"]
    target.client.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": [*current, OUT_OF_SERVICE]}})
    # Pod garbage collection looks every 20 s.
    eventually(lambda: phases(target, namespace) == [], seconds=40)


def test_a_ready_service_endpoint_follows_the_pods_readiness(target: Target, namespace: str, nodes) -> None:
    nodes(1)
    port = {"port": 80, "targetPort": 8080}
    service = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [port]}}
    target.client.create(f"/api/v1/namespaces/{namespace}/services", service)
    target.client.create(f"/apis/apps/v1/namespaces/{namespace}/deployments", deployment("web", 1))
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"

    def endpoints() -> list[tuple[str, bool]]:
        found = target.client.get(slices, labelSelector="kubernetes.io/service-name=web")["items"]
        return [(e["addresses"][0], e["conditions"]["ready"]) for s in found for e in s["endpoints"] or []]

    eventually(lambda: [ready for _, ready in endpoints()] == [True])
    (found,) = target.client.get(PODS.format(namespace))["items"]
    assert endpoints() == [(found["status"]["podIP"], True)]
    target.agent.set_ready(namespace, found["metadata"]["name"], ready=False)
    eventually(lambda: endpoints() == [(found["status"]["podIP"], False)])
