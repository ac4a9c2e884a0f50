"""Reasons for which a received frame is not published; `CameraStats.count_drop` counts them."""

OLD, SUPERSEDED, UNDECODABLE, FAILED, DISABLED = DROPS = (
    "old",  # older than max_age, or out of order
    "superseded",  # replaced by a newer one before the worker was free
    "undecodable",  # not a readable image
    "failed",  # the inference failed
    "disabled",  # by ~/enable
)
