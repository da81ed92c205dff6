"""Records of JSON, JSON Lines, Arrow and Parquet files, each with the place it comes from; names of their fields."""
