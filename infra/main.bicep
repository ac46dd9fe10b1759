// Kubekeeper in one subscription: the app with what it needs, and roles where its clusters are.
//
//   azd up
//   az deployment sub create --location LOCATION --template-file infra/main.bicep --parameters infra/main.bicepparam
//
// Everything is private to identities: no shared keys, no connection strings, no secrets in settings.
targetScope = 'subscription'

@description('Short name of this installation; part of every name.')
@minLength(2)
@maxLength(12)
param environmentName string

@description('Region of the app. Best that of the clusters.')
param location string

@description('Resource group of the app; made when it is not there.')
param resourceGroupName string = 'rg-kubekeeper-${environmentName}'

@description('What an automation may do in a resource group is a custom role of this name; autoscaling-reads looks and changes nothing.')
type automation = 'autoscaling' | 'autoscaling-aks' | 'autoscaling-reads' | 'disk-release' | 'ingress-sync'

@description('A resource group that holds something of a cluster, and the automations that work there.')
type workplace = {
  resourceGroup: string
  subscriptionId: string?
  automations: automation[]
}

@description('Where the clusters\' machines, disks and gateways are. Roles are given there and nowhere else.')
param scopes workplace[] = []

@description('Object id of who runs keeper and uploads the configuration; empty: nobody is given a role.')
param operatorId string = ''

@allowed(['User', 'Group', 'ServicePrincipal'])
param operatorType string = 'User'

@description('Copies of the storage account; Standard_LRS where the region has no zones.')
@allowed(['Standard_LRS', 'Standard_ZRS', 'Standard_GRS', 'Standard_GZRS'])
param storageSku string = 'Standard_ZRS'

@description('Resource Manager of the cloud; by default that of the cloud this is deployed to.')
param armEndpoint string = environment().resourceManager

@description('Etcd backups with what protects them: versions, soft delete, lifecycle, and immutability for so many days (0: none).')
@minValue(0)
@maxValue(365)
param immutableDays int = 0

@description('Subnet for the app\'s outgoing traffic (delegated to Microsoft.App/environments); needed where the API server, etcd or Prometheus are private.')
param subnetId string = ''

@description('Subnet for private endpoints of the storage account and the vault; empty leaves them public, for identities only. Needs subnetId, or the app is locked out too.')
param privateEndpointSubnetId string = ''

@description('Names of secrets in the vault, each an app setting: prod-etcd-key is setting:PROD_ETCD_KEY in the configuration.')
param secrets string[] = []

@description('How often nodes, disks and gateways are looked at when no event asks for it: NCRONTAB, six fields. Most of what an idle cluster costs.')
param schedule string = '0 * * * * *'

@description('Instances kept warm for each work queue, so that an event waits for no cold start.')
@minValue(0)
@maxValue(10)
param alwaysReady int = 0

@description('Who is told when an alert fires: resource ids of action groups.')
param actionGroupIds array = []

@description('Tags of every resource.')
param tags object = {}

var token = toLower(uniqueString(subscription().id, environmentName, location))
var allTags = union(tags, { 'azd-env-name': environmentName, app: 'kubekeeper' })

resource group 'Microsoft.Resources/resourceGroups@2024-11-01' = {
  name: resourceGroupName
  location: location
  tags: allTags
}

module identity 'modules/identity.bicep' = {
  scope: group
  name: 'identity'
  params: {
    name: 'id-kubekeeper-${environmentName}'
    location: location
    tags: allTags
  }
}

module monitoring 'modules/monitoring.bicep' = {
  scope: group
  name: 'monitoring'
  params: {
    name: 'kubekeeper-${environmentName}'
    location: location
    tags: allTags
    principalId: identity.outputs.principalId
  }
}

module storage 'modules/storage.bicep' = {
  scope: group
  name: 'storage'
  params: {
    name: 'stkk${token}'
    location: location
    tags: allTags
    principalId: identity.outputs.principalId
    operatorId: operatorId
    operatorType: operatorType
    sku: storageSku
    immutableDays: immutableDays
    privateEndpointSubnetId: privateEndpointSubnetId
  }
}

module vault 'modules/vault.bicep' = {
  scope: group
  name: 'vault'
  params: {
    name: 'kv-kk-${token}'
    location: location
    tags: allTags
    principalId: identity.outputs.principalId
    operatorId: operatorId
    operatorType: operatorType
    privateEndpointSubnetId: privateEndpointSubnetId
  }
}

module topic 'modules/topic.bicep' = {
  scope: group
  name: 'topic'
  params: {
    name: 'evgt-kubekeeper-${environmentName}'
    location: location
    tags: allTags
    identityId: identity.outputs.id
    principalId: identity.outputs.principalId
  }
}

module app 'modules/app.bicep' = {
  scope: group
  name: 'app'
  params: {
    name: 'func-kubekeeper-${environmentName}-${take(token, 6)}'
    location: location
    tags: allTags
    identityId: identity.outputs.id
    clientId: identity.outputs.clientId
    storageAccountName: storage.outputs.name
    deploymentContainerUrl: storage.outputs.deploymentContainerUrl
    configurationUrl: storage.outputs.configurationUrl
    applicationInsightsConnectionString: monitoring.outputs.connectionString
    topicEndpoint: topic.outputs.endpoint
    vaultName: vault.outputs.name
    secrets: secrets
    schedule: schedule
    armEndpoint: armEndpoint
    subnetId: subnetId
    alwaysReady: alwaysReady
  }
}

module alerts 'modules/alerts.bicep' = {
  scope: group
  name: 'alerts'
  params: {
    name: 'kubekeeper-${environmentName}'
    location: location
    tags: allTags
    applicationInsightsId: monitoring.outputs.id
    actionGroupIds: actionGroupIds
  }
}

module workbook 'modules/workbook.bicep' = {
  scope: group
  name: 'workbook'
  params: {
    name: 'Kubekeeper ${environmentName}'
    location: location
    tags: allTags
    applicationInsightsId: monitoring.outputs.id
  }
}

// One custom role for each automation, with exactly the actions it uses, given only in the groups that ask for it.
module roles 'modules/roles.bicep' = [for (scope, index) in scopes: {
  scope: resourceGroup(scope.?subscriptionId ?? subscription().subscriptionId, scope.resourceGroup)
  name: 'kubekeeper-roles-${index}'
  params: {
    environmentName: environmentName
    principalId: identity.outputs.principalId
    automations: scope.automations
  }
}]

module reads 'modules/subscription-role.bicep' = [for id in union(map(scopes, one => one.?subscriptionId ?? subscription().subscriptionId), []): {
  scope: subscription(id)
  name: 'kubekeeper-reads'
  params: {
    environmentName: environmentName
    principalId: identity.outputs.principalId
    automations: flatten(map(filter(scopes, one => (one.?subscriptionId ?? subscription().subscriptionId) == id), one => one.automations))
  }
}]

output AZURE_RESOURCE_GROUP string = group.name
output AZURE_FUNCTION_APP string = app.outputs.name
output AZURE_FUNCTION_APP_ID string = app.outputs.id
output AZURE_STORAGE_ACCOUNT string = storage.outputs.name
output AZURE_STORAGE_ACCOUNT_ID string = storage.outputs.id
output AZURE_KEY_VAULT string = vault.outputs.name
output KUBEKEEPER_TOPIC string = topic.outputs.name
output KUBEKEEPER_CONFIG_URL string = storage.outputs.configurationUrl
output KUBEKEEPER_IDENTITY_ID string = identity.outputs.id
output KUBEKEEPER_PRINCIPAL_ID string = identity.outputs.principalId
output KUBEKEEPER_CLIENT_ID string = identity.outputs.clientId
