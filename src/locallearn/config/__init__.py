"""From yaml, or from what Python passes, to checked, typed objects. Only `compose` and `explain` know Hydra."""
