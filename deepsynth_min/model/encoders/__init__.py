"""Pages -> visual tokens: SAM and CLIP, or SAM and learned queries; SAM's attention."""
