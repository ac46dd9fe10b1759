"""Ingress objects become an Application Gateway configuration, and nothing else on the gateway is touched."""
