"""What features are about."""

from __future__ import annotations

from feast import Entity, ValueType

image = Entity(
    name="image",
    join_keys=["image_id"],
    value_type=ValueType.STRING,
    description="One stored image; image_id is the SHA-256 of its bytes.",
)
