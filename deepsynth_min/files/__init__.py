"""What lies on a disk or on the hub: written whole or not at all, downloaded, indexed by line."""
