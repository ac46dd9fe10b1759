// Azure's own events of a subscription that holds clusters: what happened to machines and disks, the health of hosts, and
// what AKS says of its clusters. Deployed after the code, once for each subscription:
//
//   az deployment sub create -l LOCATION --template-file infra/subscription-events.bicep --parameters appId=... storageAccountId=... identityId=... resourceGroupName=...
targetScope = 'subscription'

@description('Resource id of the function app.')
param appId string

@description('Resource id of the app\'s storage account.')
param storageAccountId string

@description('The app\'s identity, as which dead letters are written where Event Grid allows it.')
param identityId string

@description('An existing resource group of this subscription, for the system topics.')
param resourceGroupName string

@description('A managed cluster of this subscription. A system topic has to be in the region of what it tells about.')
type managedCluster = {
  id: string
  location: string
}

@description('AKS clusters whose own events are wanted: upgrades of pools, versions whose support ends.')
param managedClusters managedCluster[] = []

module topics 'modules/subscription-topics.bicep' = {
  scope: resourceGroup(resourceGroupName)
  name: 'kubekeeper-subscription-events'
  params: {
    appId: appId
    storageAccountId: storageAccountId
    identityId: identityId
    subscriptionId: subscription().id
    managedClusters: managedClusters
  }
}
