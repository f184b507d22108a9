"""What a student minimises and how it is trained: objectives, the pixel queue, extractors, training stages."""
