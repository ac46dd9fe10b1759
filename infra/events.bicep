// Azure's own events to the app's trigger `cluster_event`, and outcomes' topic to it as well. Deployed after the code: Event
// Grid asks the function for a handshake, so it has to be there.
//
//   az deployment group create -g GROUP --template-file infra/events.bicep --parameters functionApp=... storageAccount=... topic=...
param functionApp string
param storageAccount string
param topic string
param location string = resourceGroup().location
param tags object = {}

@description('AKS clusters whose own events are wanted: resource ids.')
param managedClusterIds array = []

var destination = {
  endpointType: 'AzureFunction'
  properties: {
    resourceId: resourceId('Microsoft.Web/sites/functions', functionApp, 'cluster_event')
    maxEventsPerBatch: 1
    preferredBatchSizeInKilobytes: 64
  }
}
var deadLetter = {
  endpointType: 'StorageBlob'
  properties: {
    resourceId: resourceId('Microsoft.Storage/storageAccounts', storageAccount)
    blobContainerName: 'dead-letters'
  }
}
var retry = { maxDeliveryAttempts: 30, eventTimeToLiveInMinutes: 1440 }

resource custom 'Microsoft.EventGrid/topics@2025-02-15' existing = {
  name: topic
}

// What the forwarder sends; what the app itself publishes on the same topic is not for it.
resource fromCluster 'Microsoft.EventGrid/topics/eventSubscriptions@2025-02-15' = {
  parent: custom
  name: 'kubekeeper'
  properties: {
    destination: destination
    deadLetterDestination: deadLetter
    retryPolicy: retry
    eventDeliverySchema: 'CloudEventSchemaV1_0'
    filter: {
      advancedFilters: [
        { operatorType: 'StringBeginsWith', key: 'type', values: ['Kubekeeper.Cluster.'] }
      ]
    }
  }
}

resource managedTopics 'Microsoft.EventGrid/systemTopics@2025-02-15' = [for (id, index) in managedClusterIds: {
  name: 'evgst-kubekeeper-${index}'
  location: location
  tags: tags
  properties: { source: id, topicType: 'Microsoft.ContainerService.ManagedClusters' }
}]

resource fromManaged 'Microsoft.EventGrid/systemTopics/eventSubscriptions@2025-02-15' = [for (id, index) in managedClusterIds: {
  parent: managedTopics[index]
  name: 'kubekeeper'
  properties: {
    destination: destination
    deadLetterDestination: deadLetter
    retryPolicy: retry
    eventDeliverySchema: 'CloudEventSchemaV1_0'
  }
}]
