// One AKS cluster: pools through the AKS API, machines and disks in the node resource group, the gateway in its own.
using '../main.bicep'

param environmentName = 'prod'
param location = 'westeurope'
param scopes = [
  { resourceGroup: 'rg-aks-prod', automations: ['autoscaling-aks'] }
  { resourceGroup: 'MC_rg-aks-prod_prod_westeurope', automations: ['autoscaling-reads', 'disk-release'] }
  { resourceGroup: 'rg-network-prod', automations: ['ingress-sync'] }
]
param alwaysReady = 1
