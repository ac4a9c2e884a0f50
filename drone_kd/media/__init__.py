"""Images and recordings without ROS: raw and compressed images, image files, videos, bags."""
