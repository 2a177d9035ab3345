"""From a plain configuration to checked, typed objects. Knows neither Hydra nor how a run proceeds."""
