"""What a training needs of a slice, before one is paid for: bytes, seconds, dollars."""
