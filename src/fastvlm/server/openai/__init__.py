"""OpenAI's API: schemas, messages, completions, structured output, the OpenAPI document."""
