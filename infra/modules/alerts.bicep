// Log alerts on what the app says of itself; each line names the page that tells what to do.
param name string
param location string
param tags object
param applicationInsightsId string
param actionGroupIds array

var rules = [
  {
    name: 'backup-missed'
    severity: 1
    text: 'No verified etcd backup is younger than the objective (docs/etcd-backup.md).'
    query: 'traces | where message has "ObjectiveMissed" or message has "EtcdBackup.Missed"'
    window: 'PT1H'
    every: 'PT15M'
  }
  {
    name: 'message-poisoned'
    severity: 2
    text: 'A message failed for good and waits: keeper poison list (docs/operations.md).'
    query: 'traces | where message has "MessagePoisoned"'
    window: 'PT15M'
    every: 'PT5M'
  }
  {
    name: 'automation-silent'
    severity: 1
    text: 'A timer has not ticked for fifteen minutes: restart the app, or drive it by HTTP (docs/operations.md).'
    query: 'datatable(automation: string) ["autoscaling", "disk-release", "etcd-backup", "ingress-sync"] | join kind=leftanti (traces | where message startswith "Tick" | extend automation = extract("automation=([a-z-]+)", 1, message)) on automation'
    window: 'PT15M'
    every: 'PT5M'
  }
  {
    name: 'throttled'
    severity: 3
    text: 'Azure throttles the app; look for another client of the subscription that reads too often.'
    query: 'traces | where message has "TooManyRequests" or message has "Throttled"'
    window: 'PT30M'
    every: 'PT15M'
  }
  {
    name: 'ingress-quarantined'
    severity: 3
    text: 'An Ingress object was left out of the gateway; its Event says what to change (docs/ingress-sync.md).'
    query: 'traces | where message has "Quarantined"'
    window: 'PT15M'
    every: 'PT5M'
  }
]

resource alerts 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = [for rule in rules: {
  name: 'alert-${name}-${rule.name}'
  location: location
  tags: tags
  properties: {
    displayName: 'Kubekeeper: ${rule.name}'
    description: rule.text
    severity: rule.severity
    enabled: true
    scopes: [applicationInsightsId]
    evaluationFrequency: rule.every
    windowSize: rule.window
    criteria: {
      allOf: [
        {
          query: rule.query
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 0
          failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
        }
      ]
    }
    autoMitigate: true
    actions: { actionGroups: actionGroupIds }
  }
}]
