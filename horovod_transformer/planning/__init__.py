"""What a run would take, before it is started: speeds of machines, plans, sweeps."""
