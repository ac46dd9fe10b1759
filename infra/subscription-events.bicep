// Events of a subscription that holds clusters: what happened to machines and disks, and the health of hosts. Host health
// exists only at this scope. Deployed after the code, once for each subscription:
//
//   az deployment sub create -l LOCATION --template-file infra/subscription-events.bicep --parameters functionId=... deadLetterAccountId=...
targetScope = 'subscription'

@description('Resource id of the function: .../sites/APP/functions/cluster_event.')
param functionId string

@description('Resource id of the app\'s storage account.')
param deadLetterAccountId string

@description('Resource group of the system topics.')
param resourceGroupName string

module topics 'modules/subscription-topics.bicep' = {
  scope: resourceGroup(resourceGroupName)
  name: 'kubekeeper-subscription-events'
  params: {
    functionId: functionId
    deadLetterAccountId: deadLetterAccountId
    subscriptionId: subscription().id
  }
}
