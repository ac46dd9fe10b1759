// The few reads that Azure has for whole subscriptions only: sizes, quotas, the state of long-running operations.
targetScope = 'subscription'

param environmentName string
param principalId string

@description('Names of roles in actions.json that are given in this subscription.')
param automations array

var roles = loadJsonContent('../actions.json')
var named = map(automations, one => one == 'autoscaling-reads' ? 'autoscaling' : one)
var actions = union(flatten(map(named, one => roles[one].subscription)), [])

resource definition 'Microsoft.Authorization/roleDefinitions@2022-04-01' = if (!empty(actions)) {
  name: guid(subscription().id, environmentName, 'kubekeeper')
  properties: {
    roleName: 'Kubekeeper reads (${environmentName}, ${take(uniqueString(subscription().id), 5)})' // unique in the tenant
    description: 'What Kubekeeper reads of a whole subscription: sizes, quotas, the state of long-running operations.'
    type: 'CustomRole'
    assignableScopes: [subscription().id]
    permissions: [{ actions: actions, notActions: [], dataActions: [], notDataActions: [] }]
  }
}

resource assignment 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(actions)) {
  name: guid(subscription().id, principalId, environmentName)
  properties: {
    roleDefinitionId: definition.id
    principalId: principalId
    principalType: 'ServicePrincipal'
  }
}
