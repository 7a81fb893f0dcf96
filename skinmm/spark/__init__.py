"""Apache Spark: prediction and packing on a cluster."""
