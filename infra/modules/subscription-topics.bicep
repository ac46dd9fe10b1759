// System topics of a subscription and what of them is wanted; the list is that of docs/reference/events.md.
param appId string
param storageAccountId string
param identityId string
param subscriptionId string
param managedClusters array

var destination = {
  endpointType: 'AzureFunction'
  properties: { resourceId: '${appId}/functions/cluster_event', maxEventsPerBatch: 1, preferredBatchSizeInKilobytes: 64 }
}
// Topics of a whole subscription are global, and a global topic can have no identity: Event Grid writes as itself there.
var deadLetter = {
  endpointType: 'StorageBlob'
  properties: { resourceId: storageAccountId, blobContainerName: 'dead-letters' }
}
var retry = { maxDeliveryAttempts: 30, eventTimeToLiveInMinutes: 1440 }
var operations = [
  'Microsoft.Compute/disks/delete'
  'Microsoft.Compute/disks/write'
  'Microsoft.Compute/virtualMachineScaleSets/deallocate/action'
  'Microsoft.Compute/virtualMachineScaleSets/delete'
  'Microsoft.Compute/virtualMachineScaleSets/delete/action'
  'Microsoft.Compute/virtualMachineScaleSets/powerOff/action'
  'Microsoft.Compute/virtualMachineScaleSets/virtualMachines/deallocate/action'
  'Microsoft.Compute/virtualMachineScaleSets/virtualMachines/delete'
  'Microsoft.Compute/virtualMachineScaleSets/virtualMachines/powerOff/action'
  'Microsoft.Compute/virtualMachineScaleSets/virtualMachines/write'
  'Microsoft.Compute/virtualMachineScaleSets/write'
  'Microsoft.Compute/virtualMachines/deallocate/action'
  'Microsoft.Compute/virtualMachines/delete'
  'Microsoft.Compute/virtualMachines/powerOff/action'
  'Microsoft.Compute/virtualMachines/start/action'
  'Microsoft.Compute/virtualMachines/write'
  'Microsoft.ContainerService/managedClusters/agentPools/delete'
  'Microsoft.ContainerService/managedClusters/agentPools/write'
  'Microsoft.Network/applicationGateways/delete'
  'Microsoft.Network/applicationGateways/start/action'
  'Microsoft.Network/applicationGateways/stop/action'
  'Microsoft.Network/applicationGateways/write'
]

resource resources 'Microsoft.EventGrid/systemTopics@2025-02-15' = {
  name: 'evgst-kubekeeper-resources'
  location: 'global'
  properties: { source: subscriptionId, topicType: 'Microsoft.Resources.Subscriptions' }
}

resource resourceEvents 'Microsoft.EventGrid/systemTopics/eventSubscriptions@2025-02-15' = {
  parent: resources
  name: 'kubekeeper'
  properties: {
    destination: destination
    deadLetterDestination: deadLetter
    retryPolicy: retry
    eventDeliverySchema: 'CloudEventSchemaV1_0'
    filter: {
      includedEventTypes: [
        'Microsoft.Resources.ResourceWriteSuccess'
        'Microsoft.Resources.ResourceDeleteSuccess'
        'Microsoft.Resources.ResourceActionSuccess'
      ]
      advancedFilters: [{ operatorType: 'StringIn', key: 'data.operationName', values: operations }]
    }
  }
}

resource health 'Microsoft.EventGrid/systemTopics@2025-02-15' = {
  name: 'evgst-kubekeeper-health'
  location: 'global'
  properties: { source: subscriptionId, topicType: 'Microsoft.ResourceNotifications.HealthResources' }
}

resource healthEvents 'Microsoft.EventGrid/systemTopics/eventSubscriptions@2025-02-15' = {
  parent: health
  name: 'kubekeeper'
  properties: {
    destination: destination
    deadLetterDestination: deadLetter
    retryPolicy: retry
    eventDeliverySchema: 'CloudEventSchemaV1_0'
    filter: {
      includedEventTypes: [
        'Microsoft.ResourceNotifications.HealthResources.AvailabilityStatusChanged'
        'Microsoft.ResourceNotifications.HealthResources.ResourceAnnotated'
      ]
    }
  }
}

resource managedTopics 'Microsoft.EventGrid/systemTopics@2025-02-15' = [for cluster in managedClusters: {
  name: take('evgst-kubekeeper-${replace(last(split(cluster.id, '/')), '_', '-')}', 50)
  location: cluster.location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identityId}': {} }
  }
  properties: { source: cluster.id, topicType: 'Microsoft.ContainerService.ManagedClusters' }
}]

resource managedEvents 'Microsoft.EventGrid/systemTopics/eventSubscriptions@2025-02-15' = [for (cluster, index) in managedClusters: {
  parent: managedTopics[index]
  name: 'kubekeeper'
  properties: {
    destination: destination
    deadLetterWithResourceIdentity: {
      identity: { type: 'UserAssigned', userAssignedIdentity: identityId }
      deadLetterDestination: deadLetter
    }
    retryPolicy: retry
    eventDeliverySchema: 'CloudEventSchemaV1_0'
  }
}]
