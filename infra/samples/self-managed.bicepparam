// A cluster of kubeadm, Cluster API or aks-engine: machines, disks and gateway in its own group, private API server and etcd.
using '../main.bicep'

param environmentName = 'prod'
param location = 'westeurope'
param scopes = [
  { resourceGroup: 'rg-kubernetes', automations: ['autoscaling', 'disk-release', 'ingress-sync'] }
]
param subnetId = '/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-network/providers/Microsoft.Network/virtualNetworks/vnet/subnets/kubekeeper'
param privateEndpointSubnetId = '/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-network/providers/Microsoft.Network/virtualNetworks/vnet/subnets/endpoints'
param immutableDays = 30
param secrets = ['prod-kubeconfig', 'prod-etcd-ca', 'prod-etcd-certificate', 'prod-etcd-key']
