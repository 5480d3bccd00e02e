"""The list of configs as documents: docs/model_zoo.md, model-index.yml and the metafiles."""
