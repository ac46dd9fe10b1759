// One AKS cluster: pools through the AKS API, disks and machines in the node resource group.
using '../main.bicep'

param environmentName = 'prod'
param location = 'westeurope'
param scopes = [
  { resourceGroup: 'rg-aks-prod', automations: ['autoscaling-aks'] }
  { resourceGroup: 'MC_rg-aks-prod_prod_westeurope', automations: ['autoscaling', 'disk-release'] }
  { resourceGroup: 'rg-network-prod', automations: ['ingress-sync'] }
]
param alwaysReady = 1
