"""A run before it is paid for: its step counted on the meta device, its memory, time and cost."""
