"""The forwarder: runs inside a cluster and tells Kubekeeper when there is a reason to look.

    watch -> decide -> gather -> send

It carries hints, never data, so it may lose everything it knows at any moment: it lists again. It reads and
never writes; it is no part of the function app and has an image of its own (infra/forwarder).
"""
