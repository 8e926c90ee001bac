"""The Open Inference Protocol v2 (github.com/kserve/open-inference-protocol), over REST and gRPC."""
