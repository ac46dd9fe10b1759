"""The local world: stand-ins for Azure and Kubernetes, the local Functions host, the demo. Never deployed."""
