"""Images and recordings as files and bytes: raw, compressed, videos, bags. No ROS."""
