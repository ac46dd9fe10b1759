// The few reads that Azure has for whole subscriptions only: sizes, quotas, the state of long-running operations.
targetScope = 'subscription'

param environmentName string
param principalId string

var roles = loadJsonContent('../actions.json')
var actions = union(flatten(map(items(roles), role => role.value.subscription)), [])

resource definition 'Microsoft.Authorization/roleDefinitions@2022-04-01' = {
  name: guid(subscription().id, environmentName, 'kubekeeper')
  properties: {
    roleName: 'Kubekeeper reads (${environmentName})'
    description: 'What Kubekeeper reads of a whole subscription: sizes, quotas, the state of long-running operations.'
    type: 'CustomRole'
    assignableScopes: [subscription().id]
    permissions: [{ actions: actions, notActions: [], dataActions: [], notDataActions: [] }]
  }
}

resource assignment 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(subscription().id, principalId, environmentName)
  properties: {
    roleDefinitionId: definition.id
    principalId: principalId
    principalType: 'ServicePrincipal'
  }
}
