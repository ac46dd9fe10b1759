// The function app on Flex Consumption, Linux, Python.
param name string
param location string
param tags object
param identityId string
param clientId string
param storageAccountName string
param deploymentContainerUrl string
param configurationUrl string
param applicationInsightsConnectionString string
param topicEndpoint string
param armEndpoint string
param vaultName string
param secrets array
param schedule string
param subnetId string
param alwaysReady int

@description('Python on the platform; the app is tested on 3.11, 3.12 and 3.13.')
param pythonVersion string = '3.12'

@description('Memory of an instance; a pass over 150,000 pods stays below 200 MB.')
@allowed([512, 2048, 4096])
param instanceMemoryMB int = 2048

param maximumInstanceCount int = 40

// Queue functions scale each by itself; these are the ones an event waits for.
var warmed = ['function:autoscaling_work', 'function:disk_release_work', 'function:ingress_sync_work']
var settings = {
  AzureWebJobsStorage__accountName: storageAccountName
  AzureWebJobsStorage__credential: 'managedidentity'
  AzureWebJobsStorage__clientId: clientId
  AZURE_CLIENT_ID: clientId
  APPLICATIONINSIGHTS_CONNECTION_STRING: applicationInsightsConnectionString
  APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${clientId};Authorization=AAD'
  KUBEKEEPER_CONFIG: configurationUrl
  KUBEKEEPER_ARM_ENDPOINT: armEndpoint
  KUBEKEEPER_EVENTS_ENDPOINT: topicEndpoint
  KUBEKEEPER_AUTOSCALING_SCHEDULE: schedule
  KUBEKEEPER_DISK_RELEASE_SCHEDULE: schedule
  KUBEKEEPER_ETCD_BACKUP_SCHEDULE: '0 */5 * * * *'
  KUBEKEEPER_INGRESS_SYNC_SCHEDULE: schedule
}

var references = toObject(secrets, one => toUpper(replace(one, '-', '_')), one => '@Microsoft.KeyVault(VaultName=${vaultName};SecretName=${one})')

resource plan 'Microsoft.Web/serverfarms@2024-04-01' = {
  name: 'plan-${name}'
  location: location
  tags: tags
  kind: 'functionapp'
  sku: { tier: 'FlexConsumption', name: 'FC1' }
  properties: { reserved: true }
}

resource app 'Microsoft.Web/sites@2024-04-01' = {
  name: name
  location: location
  tags: union(tags, { 'azd-service-name': 'kubekeeper' })
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identityId}': {} }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    keyVaultReferenceIdentity: identityId
    virtualNetworkSubnetId: subnetId == '' ? null : subnetId
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: deploymentContainerUrl
          authentication: {
            type: 'UserAssignedIdentity'
            userAssignedIdentityResourceId: identityId
          }
        }
      }
      scaleAndConcurrency: {
        maximumInstanceCount: maximumInstanceCount
        instanceMemoryMB: instanceMemoryMB
        alwaysReady: [for function in (alwaysReady == 0 ? [] : warmed): { name: function, instanceCount: alwaysReady }]
      }
      runtime: { name: 'python', version: pythonVersion }
    }
    siteConfig: {
      minTlsVersion: '1.2'
      ftpsState: 'Disabled'
    }
  }

  resource appSettings 'config' = {
    name: 'appsettings'
    properties: union(settings, references) // replaces all: what is not here is gone after each deployment
  }

  resource noFtp 'basicPublishingCredentialsPolicies' = {
    name: 'ftp'
    properties: { allow: false }
  }

  resource noScm 'basicPublishingCredentialsPolicies' = {
    name: 'scm'
    properties: { allow: false }
  }
}

output id string = app.id
output name string = app.name
