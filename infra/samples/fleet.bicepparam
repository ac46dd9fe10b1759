// One app for clusters in two subscriptions; each group gets the roles of the automations that work there.
using '../main.bicep'

param environmentName = 'fleet'
param location = 'westeurope'
param scopes = [
  { resourceGroup: 'rg-aks-eu', automations: ['autoscaling-aks'] }
  { resourceGroup: 'MC_rg-aks-eu_eu_westeurope', automations: ['autoscaling-reads', 'disk-release'] }
  {
    subscriptionId: '11111111-1111-1111-1111-111111111111'
    resourceGroup: 'rg-kubernetes-us'
    automations: ['autoscaling', 'disk-release', 'ingress-sync']
  }
]
param alwaysReady = 1
