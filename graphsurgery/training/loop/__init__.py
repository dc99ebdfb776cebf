"""Training itself: the plan, the steps, the devices, and runs that go on after a break."""
