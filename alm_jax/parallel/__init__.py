"""Device mesh, logical sharding rules and process set-up."""
