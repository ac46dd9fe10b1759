// Azure Government: `az cloud set --name AzureUSGovernment` first; the templates take the cloud's addresses from it. For
// Azure operated by 21Vianet in China: AzureChinaCloud and a region such as chinanorth3.
using '../main.bicep'

param environmentName = 'gov'
param location = 'usgovvirginia'
param scopes = [
  { resourceGroup: 'rg-kubernetes', automations: ['autoscaling', 'disk-release', 'ingress-sync'] }
]
param storageSku = 'Standard_LRS'
