"""What has been computed: runs on disk, and what the numbers mean."""
