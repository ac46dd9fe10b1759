// One workbook: passes, outcomes, failures, and what is left alone, by cluster and automation.
param name string
param location string
param tags object
param applicationInsightsId string

resource workbook 'Microsoft.Insights/workbooks@2023-06-01' = {
  name: guid(resourceGroup().id, name)
  location: location
  tags: tags
  kind: 'shared'
  properties: {
    displayName: name
    category: 'workbook'
    sourceId: applicationInsightsId
    serializedData: string(loadJsonContent('../workbook.json'))
  }
}

output id string = workbook.id
