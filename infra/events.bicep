// What the forwarders of clusters send to the topic, to the app's trigger `cluster_event`. Deployed after the code: Event
// Grid asks the function for a handshake, so it has to be there.
//
//   az deployment group create -g GROUP --template-file infra/events.bicep --parameters functionApp=... storageAccount=... topic=... identityId=...
param functionApp string
param storageAccount string
param topic string

@description('The app\'s identity, as which dead letters are written: shared keys are off.')
param identityId string

resource custom 'Microsoft.EventGrid/topics@2025-02-15' existing = {
  name: topic
}

// What the app itself publishes on the same topic is not for it.
resource fromCluster 'Microsoft.EventGrid/topics/eventSubscriptions@2025-02-15' = {
  parent: custom
  name: 'kubekeeper'
  properties: {
    destination: {
      endpointType: 'AzureFunction'
      properties: {
        resourceId: resourceId('Microsoft.Web/sites/functions', functionApp, 'cluster_event')
        maxEventsPerBatch: 1
        preferredBatchSizeInKilobytes: 64
      }
    }
    deadLetterWithResourceIdentity: {
      identity: { type: 'UserAssigned', userAssignedIdentity: identityId }
      deadLetterDestination: {
        endpointType: 'StorageBlob'
        properties: {
          resourceId: resourceId('Microsoft.Storage/storageAccounts', storageAccount)
          blobContainerName: 'dead-letters'
        }
      }
    }
    retryPolicy: { maxDeliveryAttempts: 30, eventTimeToLiveInMinutes: 1440 }
    eventDeliverySchema: 'CloudEventSchemaV1_0'
    filter: {
      advancedFilters: [
        { operatorType: 'StringBeginsWith', key: 'type', values: ['Kubekeeper.Cluster.'] }
      ]
    }
  }
}
