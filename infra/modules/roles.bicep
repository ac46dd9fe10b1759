// Custom roles of the automations, in one resource group. What they do stands in actions.json, which a test keeps
// equal to what the code really calls.
param environmentName string
param principalId string

@description('Names of roles in actions.json, or autoscaling-reads: what autoscaling looks at, where AKS changes the machines.')
param automations array

var written = loadJsonContent('../actions.json')
var actions = union(written, {
  'autoscaling-reads': { group: filter(written.autoscaling.group, one => endsWith(one, '/read')) }
})

resource definitions 'Microsoft.Authorization/roleDefinitions@2022-04-01' = [for automation in automations: {
  name: guid(resourceGroup().id, environmentName, automation)
  properties: {
    roleName: 'Kubekeeper ${automation} (${environmentName}, ${resourceGroup().name}, ${take(uniqueString(subscription().id), 5)})' // unique in the tenant
    description: 'What Kubekeeper\'s ${automation} does in this resource group, and nothing else.'
    type: 'CustomRole'
    assignableScopes: [resourceGroup().id]
    permissions: [{ actions: actions[automation].group, notActions: [], dataActions: [], notDataActions: [] }]
  }
}]

resource assignments 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (automation, index) in automations: {
  name: guid(resourceGroup().id, principalId, automation)
  properties: {
    roleDefinitionId: definitions[index].id
    principalId: principalId
    principalType: 'ServicePrincipal'
  }
}]
