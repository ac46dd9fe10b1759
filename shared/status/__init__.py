"""What a person looks at: the state of the fleet, gathered once and shown by `keeper status` and the page."""
