"""Many runs: sweeps, searches, repeats and studies."""
