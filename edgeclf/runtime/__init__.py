"""The pipelined decode-extract-classify loop. Needs no training framework."""
